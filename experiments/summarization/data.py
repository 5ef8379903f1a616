"""Articles and their summaries: published files, papers, docstrings."""

import ast
import dataclasses
import gzip
import hashlib
import json
import pathlib
import re
import sysconfig
from collections.abc import Iterator

from experiments.common import fetch
from experiments.common import files

_PARTS = {
  "train": ("train",),
  "valid": ("valid", "val", "validation", "dev"),
  "test": ("test",),
}
_SUFFIXES = (".txt", ".json", ".jsonl", ".gz")
# Folders of the standard library that are no part of it, or hold tests.
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
_MARKS = re.compile(r"</?S>")


@dataclasses.dataclass(frozen=True)
class Article:
  """A text and its summary.

  Attributes:
    name: where it comes from.
    text: the article.
    summary: what a person wrote of it.

  Example:
    >>> Article("a", "long text", "text").summary
    'text'

  Source: none.
  """

  name: str
  text: str
  summary: str


@dataclasses.dataclass(frozen=True)
class Articles:
  """A set of articles and its split.

  Attributes:
    name: for the report.
    rule: how it is split, in words.
    train: to learn from.
    valid: to watch while training.
    test: for the result.

  Example:
    >>> Articles("a", "none", (), (), ()).train
    ()

  Source: none.
  """

  name: str
  rule: str
  train: tuple[Article, ...]
  valid: tuple[Article, ...]
  test: tuple[Article, ...]

  def digest(self, part: str) -> str:
    """Of the names, texts and summaries of a part."""
    found = hashlib.sha256()
    for article in getattr(self, part):
      found.update(repr(dataclasses.astuple(article)).encode())
    return found.hexdigest()[:16]


def load(name: str, path: str = "") -> Articles:
  """Loads articles.

  Args:
    name: `docstrings`, of Python's standard library; `papers`, fetched before;
      or `folder`, of published files.
    path: of the folder. It has a file or folder for each of train, test and
      valid (or val, validation, dev), in JSON lines, gzipped or not, as arXiv
      and PubMed (`article_text`, `abstract_text`) or BigPatent (`description`,
      `abstract`) were published.

  Returns:
    The articles.

  Raises:
    UserError: if the name is unknown, something is missing, or a line cannot be
      read, naming file and line.
  """
  if name not in ("docstrings", "papers", "folder"):
    raise files.UserError(
      f"unknown articles {name!r}; known: docstrings, papers, folder."
    )
  if bool(path) != (name == "folder"):
    raise files.UserError(
      "--config.path is that of the folder of --config.corpus=folder: got "
      f"corpus {name!r} and path {path!r}."
    )
  if name == "folder":
    found = _folder(pathlib.Path(path))
  else:
    found = _papers() if name == "papers" else _docstrings()
  for part in _PARTS:
    if not getattr(found, part):
      raise files.UserError(f"{found.name}: the {part} part is empty.")
  return found


def sentences(text: str) -> list[str]:
  """Sentences of a text, cut after `.`, `!`, `?` and at ends of lines.

  Args:
    text: any.

  Returns:
    The sentences, without space around them.

  Example:
    >>> sentences("One. Two!  Three")
    ['One.', 'Two!', 'Three']

  Source: none; a rule, which takes `e.g. this` for two.
  """
  cut = re.split(r"(?<=[.!?])\s+|\n+", text)
  return [x.strip() for x in cut if x.strip()]


def parse(line: str, place: str) -> Article:
  """Reads an article from a line of a published file.

  Args:
    line: JSON.
    place: file and line, for errors.

  Returns:
    The article; sentence marks `<S>` of abstracts are taken out.

  Raises:
    UserError: if it is no JSON object or lacks fields.

  Example:
    >>> parse('{"description": "long", "abstract": "short"}', "a:1").summary
    'short'

  Source: Cohan et al., 2018, https://arxiv.org/abs/1804.05685 (arXiv, PubMed);
  Sharma et al., 2019, https://arxiv.org/abs/1906.03741 (BigPatent).
  """
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise files.UserError(f"{place} is no JSON: {error}") from error
  if not isinstance(record, dict):
    raise files.UserError(f"{place} is no JSON object.")
  for text, summary, name in (
    ("article_text", "abstract_text", "article_id"),
    ("description", "abstract", "publication_number"),
  ):
    if text in record and summary in record:
      return Article(
        str(record.get(name, place)),
        _joined(record[text], f"{place}: {text}"),
        _joined(record[summary], f"{place}: {summary}"),
      )
  raise files.UserError(
    f"{place} has the fields {sorted(record)}; it needs article_text and "
    "abstract_text (arXiv, PubMed), or description and abstract (BigPatent)."
  )


def _joined(value: object, place: str) -> str:
  if isinstance(value, str):
    value = [value]
  if not isinstance(value, list) or any(not isinstance(x, str) for x in value):
    raise files.UserError(f"{place} is neither a text nor a list of texts.")
  lines = (_MARKS.sub(" ", x).strip() for x in value)
  return "\n".join(" ".join(x.split()) for x in lines if x)


def _folder(folder: pathlib.Path) -> Articles:
  if not folder.is_dir():
    raise files.UserError(f"{folder} is no folder. Check --config.path.")
  parts = {}
  for part, names in _PARTS.items():
    paths = [
      p
      for p in sorted(folder.rglob("*"))
      if p.suffix in _SUFFIXES
      and p.is_file()
      and p.relative_to(folder).parts[0].split(".")[0] in names
    ]
    found = [x for p in paths for x in _lines(p)]
    parts[part] = tuple(x for x in found if x.text and x.summary)
  return Articles(folder.name, "as its files have it", **parts)


def _lines(path: pathlib.Path) -> Iterator[Article]:
  data = files.read_bytes(path)
  if path.suffix == ".gz":
    try:
      data = gzip.decompress(data)
    except (OSError, EOFError) as error:
      raise files.UserError(f"{path} is no whole gzip file: {error}") from error
  for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
    if line.strip():
      yield parse(line, f"{path}:{number}")


def _papers() -> Articles:
  parts: dict[str, list[Article]] = {"train": [], "val": [], "test": []}
  for name, data in fetch.load("papers"):
    record = json.loads(data)
    body = "\n".join(" ".join(x["text"].split()) for x in record["body"])
    summary = " ".join((record["abstract"] or "").split())
    if body and summary:
      parts[name.split("/")[0]].append(Article(name, body, summary))
  train, valid, test = (tuple(parts[p]) for p in ("train", "val", "test"))
  rule = "as the package has it"
  return Articles("papers of the ACL Anthology", rule, train, valid, test)


def _docstrings() -> Articles:
  """Functions and classes without their docstring, and its first paragraph."""
  root = pathlib.Path(sysconfig.get_paths()["stdlib"])
  parts: dict[str, list[Article]] = {p: [] for p in _PARTS}
  seen = set()
  for path in sorted(root.rglob("*.py")):
    module = path.relative_to(root)
    if _SKIPPED & set(module.parts):
      continue
    try:
      source = path.read_text("utf-8")
      tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, OSError):
      continue
    share = int(hashlib.sha256(module.as_posix().encode()).hexdigest(), 16) % 20
    part = {0: "valid", 1: "test"}.get(share, "train")
    for article in _documented(module.as_posix(), source, tree):
      if article.text not in seen:
        seen.add(article.text)
        parts[part].append(article)
  found = {part: tuple(articles) for part, articles in parts.items()}
  rule = "whole modules, by SHA-256 of their names: 90 % / 5 % / 5 %"
  return Articles("docstrings of Python's standard library", rule, **found)


def _documented(module: str, source: str, tree: ast.AST) -> Iterator[Article]:
  lines = source.splitlines()
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  for node in ast.walk(tree):
    if not isinstance(node, kinds):
      continue
    summary = (ast.get_docstring(node) or "").split("\n\n")[0]
    summary = " ".join(summary.split())
    if not 20 <= len(summary) <= 400:
      continue
    text = node.body[0]  # The docstring.
    kept = lines[node.lineno - 1 : text.lineno - 1]
    kept += lines[(text.end_lineno or text.lineno) : node.end_lineno]
    body = "\n".join(kept)
    if len(body) >= 100:
      yield Article(f"{module}:{node.name}", body, summary)
