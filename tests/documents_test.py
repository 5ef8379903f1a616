"""The Python blocks of the documents run, in order, one namespace per page."""

import contextlib
import doctest
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]
_LONG = ("encoders", "etc", "patterns", "reversible", "routing", "sinkhorn")
_BLOCK = re.compile(
  r"(?P<skip><!-- not run[^>]*-->\s*)?^```python\n(?P<code>.*?)^```",
  re.MULTILINE | re.DOTALL,
)


def _marked(page):
  """Pages whose examples take ten seconds and more to compile are slow."""
  marks = [pytest.mark.slow] if page.stem in _LONG else []
  return pytest.param(page, id=page.name, marks=marks)


@pytest.mark.parametrize("page", [_marked(page) for page in _PAGES])
def test_code_blocks_run(page):
  names = dict(jax=jax, jnp=jnp, np=np, jaxattn=jaxattn)
  text = page.read_text()
  for block in _BLOCK.finditer(text):
    if block["skip"]:
      continue
    line = text[: block.start("code")].count("\n")
    if ">>>" in block["code"]:
      parsed = doctest.DocTestParser().get_doctest(
        block["code"], names, page.name, str(page), line
      )
      runner = doctest.DocTestRunner(
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
      )
      report = io.StringIO()
      runner.run(parsed, out=report.write, clear_globs=False)
      assert not runner.failures, report.getvalue()
      names = parsed.globs
    else:
      code = compile("\n" * line + block["code"], str(page), "exec")
      with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  """Relative links, and the section of a page where one is named."""
  for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
    if not re.match(r"[a-z]+:", target):
      assert (page.parent / target).exists(), target
