"""TriviaQA: questions, and pages that may hold their answers."""

import pathlib
from typing import Any

from experiments.common import files
from experiments.qa import records
from experiments.qa import squad

_WHAT = "TriviaQA's JSON, such as qa/wikipedia-dev.json"
# Field of a question -> folder of its pages in `evidence`.
_FOLDERS = {"EntityPages": "wikipedia", "SearchResults": "web"}
_EVIDENCE = (
  "Give the folder `evidence` of triviaqa-rc.tar.gz as --config.evidence."
)


def read(path: pathlib.Path, evidence: pathlib.Path) -> list[squad.Document]:
  """Reads a file of questions and the pages that it names.

  Args:
    path: such as `triviaqa-rc/qa/wikipedia-dev.json`.
    evidence: folder with `wikipedia` and `web`.

  Returns:
    A document for every question: its pages, one after another, those of
    Wikipedia first. Answers are wherever the answer or an alias is mentioned.

  Raises:
    UserError: naming the record that does not fit, or a page that is missing.

  Source: Joshi et al., 2017, https://arxiv.org/abs/1705.03551; the format at
  https://nlp.cs.washington.edu/triviaqa.
  """
  content = records.parse(records.read_bytes(path, _WHAT), str(path))
  items = records.field(content, "Data", list, str(path), _WHAT)
  documents, ids = [], set()
  for i, item in enumerate(items):
    where = f"{path}: record {i}"
    name = records.field(item, "QuestionId", str, where, _WHAT)
    if name in ids:
      raise files.UserError(f"{where}: the id {name!r} stands twice.")
    ids.add(name)
    asked = records.field(item, "Question", str, where, _WHAT)
    text = "\n\n".join(_pages(item, evidence, where))
    question = squad.Question(name, asked, _answers(item, text, where))
    documents.append(squad.Document(name, text, (question,)))
  if not documents:
    raise files.UserError(f"{path} holds no questions.")
  return documents


def _pages(item: Any, evidence: pathlib.Path, where: str) -> list[str]:
  """The texts that a question names."""
  found = []
  for name, folder in _FOLDERS.items():
    if name not in item:
      continue  # Of the web's files only those with entities have pages.
    for page in records.field(item, name, list, where, _WHAT):
      if isinstance(page, dict) and "Filename" not in page:
        continue  # Published files have such; the page was not kept.
      file = records.field(page, "Filename", str, where, _WHAT)
      cure = f"{where} names it. {_EVIDENCE}"
      data = files.read_bytes(evidence / folder / file, cure)
      try:
        found.append(data.decode())
      except UnicodeDecodeError as error:
        raise files.UserError(
          f"{evidence / folder / file}: not UTF-8: {error}"
        ) from error
  if not found:
    raise files.UserError(
      f"{where}: names no page, neither of EntityPages nor SearchResults; is "
      f"it {_WHAT}?"
    )
  return found


def _answers(item: Any, text: str, where: str) -> tuple[squad.Answer, ...]:
  if "Answer" not in item:
    raise files.UserError(
      f"{where}: has no Answer; those of the test set are not published, take "
      "the development set."
    )
  answer = records.field(item, "Answer", dict, where, _WHAT)
  aliases = [
    records.field(answer, "Value", str, where, _WHAT),
    *records.strings(answer, "NormalizedAliases", where, _WHAT),
  ]
  if "Aliases" in answer:
    aliases += records.strings(answer, "Aliases", where, _WHAT)
  found = [a for alias in aliases for a in records.places(text, alias)]
  # By place: those first in the text are what a row keeps.
  found = sorted(dict.fromkeys(found), key=lambda a: (a.start < 0, a.start))
  return tuple(found)
