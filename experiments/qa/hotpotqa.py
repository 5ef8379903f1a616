"""HotpotQA: questions upon several paragraphs, and the facts they need."""

import pathlib
from typing import Any

from experiments.common import files
from experiments.qa import records
from experiments.qa import squad

_WHAT = "HotpotQA's JSON of training or development"


def read(path: pathlib.Path) -> list[squad.Document]:
  """Reads a file: see `parse`.

  Args:
    path: such as `hotpot_dev_distractor_v1.json`.

  Returns:
    As of `parse`.

  Raises:
    UserError: as of `parse`, or if there is no such file.

  Source: as of `parse`.
  """
  return parse(records.read_bytes(path, _WHAT), str(path))


def parse(data: bytes, path: str) -> list[squad.Document]:
  """Reads a list of questions, each with the paragraphs to read.

  A document is the paragraphs in order, each after a line with its title. The
  answer is looked for in the supporting facts, and in all of the text if it is
  in none of these.

  Args:
    data: of the file.
    path: what to call it in errors.

  Returns:
    A document for every question.

  Raises:
    UserError: naming the record that does not fit.

  Source: Yang et al., 2018, https://arxiv.org/abs/1809.09600; the format at
  https://github.com/hotpotqa/hotpot.
  """
  content = records.parse(data, path)
  if not isinstance(content, list) or not content:
    raise files.UserError(f"{path}: not a list of questions; is it {_WHAT}?")
  documents, ids = [], set()
  for i, item in enumerate(content):
    where = f"{path}: record {i}"
    name = records.field(item, "_id", str, where, _WHAT)
    if name in ids:
      raise files.UserError(f"{where}: the _id {name!r} stands twice.")
    ids.add(name)
    documents.append(_document(item, name, where))
  return documents


def _document(item: Any, name: str, where: str) -> squad.Document:
  asked = records.field(item, "question", str, where, _WHAT)
  answer = records.field(item, "answer", str, where, _WHAT)
  text, sentences = _text(item, where)
  facts = []
  for fact in records.field(item, "supporting_facts", list, where, _WHAT):
    if not isinstance(fact, list) or len(fact) != 2:
      raise files.UserError(
        f"{where}: a supporting fact must be [title, sentence], got {fact!r}."
      )
    # A few published ones name a sentence that is not there.
    if tuple(fact) in sentences:
      facts.append(sentences[tuple(fact)])
  kind = answer.lower() if answer.lower() in ("yes", "no") else "span"
  found: list[squad.Answer] = []
  if kind == "span":
    everywhere = records.places(text, answer, limit=1000)
    found = [
      a
      for a in everywhere
      if any(f.start <= a.start < f.start + len(f.text) for f in facts)
    ] or everywhere
    if answer not in [a.text for a in found]:
      found.append(squad.Answer(-1, answer))
  question = squad.Question(
    name, asked, tuple(found), kind=kind, facts=tuple(facts)
  )
  spans = tuple((s.start, s.start + len(s.text)) for s in sentences.values())
  return squad.Document(name, text, (question,), spans)


def _text(
  item: Any, where: str
) -> tuple[str, dict[tuple[str, int], squad.Answer]]:
  """The paragraphs as one text, and (title, number) -> sentence."""
  text, sentences = "", {}
  for paragraph in records.field(item, "context", list, where, _WHAT):
    fits = isinstance(paragraph, list) and len(paragraph) == 2
    if not fits or not isinstance(paragraph[0], str):
      raise files.UserError(
        f"{where}: context must be a list of [title, [sentences]]; is it "
        f"{_WHAT}?"
      )
    title = paragraph[0]
    said = records.strings({"context": paragraph[1]}, "context", where, _WHAT)
    text += title + "\n"
    for i, sentence in enumerate(said):
      sentences[title, i] = squad.Answer(len(text), sentence)
      text += sentence
    text += "\n"
  return text, sentences
