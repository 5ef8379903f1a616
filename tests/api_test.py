"""What the project promises of its public names and of its own shape."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import types

import pytest

import jaxattn
from jaxattn import feature_maps
from jaxattn import patterns
from jaxattn import positions
from tests import conftest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TREES = ("jaxattn", "experiments", "genomics", "benchmarks", "tests")
_MODULES = {
  "jaxattn": jaxattn,
  "jaxattn.feature_maps": feature_maps,
  "jaxattn.patterns": patterns,
  "jaxattn.positions": positions,
}
_EXPORTS = [
  (module, name)
  for module, loaded in _MODULES.items()
  for name in loaded.__all__
]
_MAX_FILE_LINES = 500
_MAX_FUNCTION_LINES = 60  # Signature and docstring not counted.


def _sources():
  for tree in _TREES:
    yield from sorted((_ROOT / tree).rglob("*.py"))


@pytest.mark.parametrize(("module", "name"), _EXPORTS)
def test_exported_names_are_documented(module, name):
  """With an example, which runs as a doctest, and a source."""
  value = getattr(_MODULES[module], name)
  doc = inspect.getdoc(value)
  assert doc, f"{module}.{name} has no docstring"
  if isinstance(value, types.ModuleType):
    return
  if not (inspect.isclass(value) or inspect.isfunction(value)):
    doc = inspect.getdoc(type(value))  # A constant: its class explains it.
  wanted = ["Example:", "Source:"]
  if inspect.isfunction(value):
    wanted += ["Returns:"]
    if inspect.signature(value).parameters:
      wanted += ["Args:"]
  for section in wanted:
    assert section in doc, f"{module}.{name} lacks {section}"
  assert ">>>" in doc, f"{module}.{name}: the example does not run"


@pytest.mark.parametrize(("module", "name"), _EXPORTS)
def test_functions_document_every_argument(module, name):
  value = getattr(_MODULES[module], name)
  if not inspect.isfunction(value):
    pytest.skip("not a function")
  doc = inspect.getdoc(value)
  for argument in inspect.signature(value).parameters:
    pattern = rf"^\s+\*{{0,2}}{argument}:"
    assert re.search(pattern, doc, re.MULTILINE), f"{name}: {argument}"


def test_all_lists_what_is_there():
  for module, loaded in _MODULES.items():
    public = {
      name
      for name, value in vars(loaded).items()
      if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    listed = set(loaded.__all__) - {"feature_maps", "patterns", "positions"}
    assert public == listed, module


def test_import_loads_no_flax_and_configures_nothing():
  script = (
    "import sys, jax; before = dict(jax.config.values); import jaxattn\n"
    "bad = {'flax', 'optax', 'experiments'} & set(sys.modules)\n"
    "assert not bad, bad\n"
    "assert dict(jax.config.values) == before"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_version_has_a_changelog_section():
  text = (_ROOT / "CHANGELOG.md").read_text()
  sections = re.findall(r"^## \[?([^\]\s]+)", text, re.MULTILINE)
  assert sections[0] == "Unreleased"
  assert sections[1] == jaxattn.__version__


def test_public_modules_import():
  for name in ("jaxattn.nn.linen", "jaxattn.nn.nnx"):
    assert inspect.getdoc(importlib.import_module(name))


def test_files_stay_short():
  long = {
    str(path.relative_to(_ROOT)): lines
    for path in _sources()
    if (lines := len(path.read_text().splitlines())) > _MAX_FILE_LINES
  }
  assert not long


def _body_lines(node):
  """Lines of a function's statements, without signature and docstring."""
  first = node.body[0]
  if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
    return node.end_lineno - first.end_lineno
  return node.end_lineno - first.lineno + 1


def test_functions_stay_short():
  long = {}
  for path in _sources():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        if _body_lines(node) > _MAX_FUNCTION_LINES:
          long[f"{path.relative_to(_ROOT)}:{node.name}"] = _body_lines(node)
  assert not long


def test_strict_dtypes_cover_what_is_free_of_flax():
  """A new or renamed test module must not escape strict dtypes in silence."""
  flax = re.compile(
    r"flax|optax|experiments|genomics|jaxattn import nn|jaxattn\.(nn|mod)"
  )
  found = {
    path.stem
    for path in (_ROOT / "tests").rglob("*_test.py")
    if path.parent.name != "parity" and not flax.search(path.read_text())
  }
  found -= {"benchmarks_test", "documents_test"}  # They compute in others.
  assert found == conftest.STRICT_DTYPES


def test_nothing_names_a_machine():
  """No path of whoever wrote it."""
  homes = re.compile("/(" + "home|Users|root|work" + r")/\w")
  for path in _sources():
    assert not homes.search(path.read_text()), path
