"""WikiHop: a query, documents that support it, and candidates."""

import pathlib

from experiments.common import files
from experiments.qa import records
from experiments.qa import squad

_WHAT = "WikiHop's JSON, train.json or dev.json of qangaroo"


def read(path: pathlib.Path) -> list[squad.Document]:
  """Reads a file: see `parse`.

  Args:
    path: such as `qangaroo_v1.1/wikihop/dev.json`.

  Returns:
    As of `parse`.

  Raises:
    UserError: as of `parse`, or if there is no such file.

  Source: as of `parse`.
  """
  return parse(records.read_bytes(path, _WHAT), str(path))


def parse(data: bytes, path: str) -> list[squad.Document]:
  """Reads a list of queries, each with its supports and candidates.

  Args:
    data: of the file.
    path: what to call it in errors.

  Returns:
    A document for every query, its supports a line each; the answer is wherever
    it is mentioned.

  Raises:
    UserError: naming the record that does not fit.

  Example:
    >>> item = (b'[{"id": "1", "query": "author_of x", "supports": ["By Bo."],'
    ...         b' "candidates": ["bo", "al"], "answer": "bo"}]')
    >>> (found,) = parse(item, "a.json")
    >>> found.questions[0].text, found.questions[0].answers[0].start
    ('author of x', 3)

  Source: Welbl et al., 2018, https://arxiv.org/abs/1710.06481.
  """
  content = records.parse(data, path)
  if not isinstance(content, list) or not content:
    raise files.UserError(f"{path}: not a list of queries; is it {_WHAT}?")
  documents, ids = [], set()
  for i, item in enumerate(content):
    where = f"{path}: record {i}"
    name, query, answer = (
      records.field(item, key, str, where, _WHAT)
      for key in ("id", "query", "answer")
    )
    candidates = records.strings(item, "candidates", where, _WHAT)
    text = "\n".join(records.strings(item, "supports", where, _WHAT))
    if name in ids:
      raise files.UserError(f"{where}: the id {name!r} stands twice.")
    if answer not in candidates:
      raise files.UserError(
        f"{where}: the answer {answer!r} is none of its candidates; is it "
        f"{_WHAT}?"
      )
    ids.add(name)
    found = records.places(text, answer)
    if answer not in [a.text for a in found]:
      found.append(squad.Answer(-1, answer))
    question = squad.Question(
      name,
      query.replace("_", " "),
      tuple(found),
      candidates=tuple(candidates),
    )
    documents.append(squad.Document(name, text, (question,)))
  return documents
