"""NarrativeQA's questions upon summaries, an object a line."""

import pathlib

from experiments.common import files
from experiments.qa import records
from experiments.qa import squad

_WHAT = "JSON Lines with question, answer and passage, as of `fetch stories`"


def read(path: pathlib.Path) -> list[squad.Document]:
  """Reads a file: see `parse`.

  Args:
    path: of `.jsonl` or `.jsonl.gz`.

  Returns:
    As of `parse`.

  Raises:
    UserError: as of `parse`, or if there is no such file.

  Source: as of `parse`.
  """
  return parse(records.read_bytes(path, _WHAT), str(path))


def parse(data: bytes, path: str) -> list[squad.Document]:
  """Reads lines of `{"question", "answer": [...], "passage"}`.

  Answers are in the words of those who asked; many stand nowhere in the
  passage. Such ones count in scores and are none to learn from.

  Args:
    data: of the file.
    path: what to call it in errors.

  Returns:
    A document for every passage, in order, with its questions.

  Raises:
    UserError: naming the line that does not fit.

  Example:
    >>> line = b'{"question": "Who?", "answer": ["Bo."], "passage": "Bo ran."}'
    >>> (found,) = parse(line, "a.jsonl")
    >>> found.questions[0].answers
    (Answer(start=0, text='Bo'),)

  Source: Kocisky et al., 2018, https://arxiv.org/abs/1712.07040.
  """
  groups: dict[str, list[squad.Question]] = {}
  for item, where in records.lines(data, path):
    text = records.field(item, "passage", str, where, _WHAT)
    answers = records.strings(item, "answer", where, _WHAT)
    asked = records.field(item, "question", str, where, _WHAT)
    if not any(answer.strip() for answer in answers):
      raise files.UserError(f"{where}: has no answer; is it {_WHAT}?")
    found = [
      place
      for answer in answers
      for place in records.places(text, answer.strip().rstrip("."))
    ]
    question = squad.Question(where, asked, tuple(dict.fromkeys(found)))
    groups.setdefault(text, []).append(question)
  if not groups:
    raise files.UserError(f"{path} holds no questions.")
  return [
    squad.Document(f"passage {i}", text, tuple(questions))
    for i, (text, questions) in enumerate(groups.items())
  ]
