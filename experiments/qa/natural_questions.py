"""Natural Questions in its simplified form, an object a line."""

import itertools
import pathlib
from typing import Any

from experiments.common import files
from experiments.qa import records
from experiments.qa import squad

_WHAT = "Natural Questions' simplified JSON Lines, which have document_text"


def read(path: pathlib.Path) -> list[squad.Document]:
  """Reads a file: see `parse`.

  Args:
    path: of `.jsonl` or `.jsonl.gz`, such as `v1.0-simplified_*.jsonl.gz`.

  Returns:
    As of `parse`.

  Raises:
    UserError: as of `parse`, or if there is no such file.

  Source: as of `parse`.
  """
  return parse(records.read_bytes(path, _WHAT), str(path))


def parse(data: bytes, path: str) -> list[squad.Document]:
  """Reads lines with `document_text`, `question_text` and `annotations`.

  Every short answer is an answer, and the long ones are `facts`. Of several
  people, at least two must have found a short answer, or yes or no; else there
  is none. Yes and no need more of these than short answers.

  Args:
    data: of the file.
    path: what to call it in errors.

  Returns:
    A document for every line; its text is that of the file, tags included.

  Raises:
    UserError: naming the line that does not fit.

  Source: Kwiatkowski et al., 2019, https://aclanthology.org/Q19-1026; the
  format at https://github.com/google-research-datasets/natural-questions.
  """
  documents, ids = [], set()
  for item, where in records.lines(data, path):
    text = records.field(item, "document_text", str, where, _WHAT)
    asked = records.field(item, "question_text", str, where, _WHAT)
    name = str(item.get("example_id", where))
    if name in ids:
      raise files.UserError(f"{where}: the example_id {name} stands twice.")
    ids.add(name)
    question = _question(item, name, asked, text, where)
    title = str(item.get("document_title") or item.get("document_url") or name)
    documents.append(squad.Document(title, text, (question,)))
  if not documents:
    raise files.UserError(f"{path} holds no questions.")
  return documents


def _question(
  item: Any, name: str, asked: str, text: str, where: str
) -> squad.Question:
  tokens = text.split(" ")
  starts = list(itertools.accumulate((len(t) + 1 for t in tokens), initial=0))
  people = records.field(item, "annotations", list, where, _WHAT)
  if not people:
    raise files.UserError(
      f"{where}: has no annotations; those of the hidden test set are not "
      "published, take the development set."
    )
  shorts: list[squad.Answer] = []
  longs: list[squad.Answer] = []
  said = {"span": 0, "yes": 0, "no": 0}

  def answer(span: Any) -> squad.Answer:
    first, stop = (
      records.field(span, key, int, where, _WHAT)
      for key in ("start_token", "end_token")
    )
    if not 0 <= first < stop <= len(tokens):
      raise files.UserError(
        f"{where}: tokens [{first}, {stop}) are not in document_text, which "
        f"has {len(tokens)}; is it {_WHAT}?"
      )
    return squad.Answer(starts[first], " ".join(tokens[first:stop]))

  for person in people:
    spans = records.field(person, "short_answers", list, where, _WHAT)
    kind = records.field(person, "yes_no_answer", str, where, _WHAT).lower()
    long = records.field(person, "long_answer", dict, where, _WHAT)
    if kind in ("yes", "no"):
      said[kind] += 1
    elif spans:
      said["span"] += 1
    shorts += map(answer, spans)
    if long.get("start_token", -1) >= 0:
      longs.append(answer(long))
  kind = max(said, key=lambda key: said[key])
  enough = sum(said.values()) >= min(len(people), 2)
  return squad.Question(
    name,
    asked,
    tuple(dict.fromkeys(shorts)) if enough and kind == "span" else (),
    kind=kind if enough else "span",
    facts=tuple(dict.fromkeys(longs)),
  )
