"""SQuAD's published format, and its articles joined into long documents."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.common import files


@dataclasses.dataclass(frozen=True)
class Answer:
  """A right answer: `document.text[start:start + len(text)] == text`.

  Attributes:
    start: character of the document; -1 where the text does not stand where the
      file says, as happens in published files. Such an answer counts in scores,
      and is none to learn from.
    text: the answer.
  """

  start: int
  text: str


@dataclasses.dataclass(frozen=True)
class Question:
  """A question; a span without answers says that the document has none.

  Attributes:
    id: of the file.
    text: the question.
    answers: in the document that the question belongs to.
    kind: `span`, or `yes` or `no`, which no answer need spell out.
    candidates: of which the answer is one, where the data say so.
    facts: sentences of the document that lead to the answer.
  """

  id: str
  text: str
  answers: tuple[Answer, ...]
  kind: str = "span"
  candidates: tuple[str, ...] = ()
  facts: tuple[Answer, ...] = ()

  @property
  def golds(self) -> tuple[str, ...]:
    """The texts that are right; none if there is no answer."""
    if self.kind != "span":
      return (self.kind,)
    return tuple(answer.text for answer in self.answers)


@dataclasses.dataclass(frozen=True)
class Document:
  """A text and the questions about it.

  Attributes:
    title: of the article.
    text: of a paragraph, or of all paragraphs of an article.
    questions: about it.
    sentences: characters from and up to which each stands, in order, where the
      data say so.
  """

  title: str
  text: str
  questions: tuple[Question, ...]
  sentences: tuple[tuple[int, int], ...] = ()


def read(path: pathlib.Path) -> list[Document]:
  """Reads a file of SQuAD 1.1 or 2.0: see `parse`.

  Args:
    path: such as `dev-v1.1.json`.

  Returns:
    The paragraphs, in order.

  Raises:
    UserError: as of `parse`, or if there is no such file.

  Source: Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250.
  """
  data = files.read_bytes(path, "It should be a SQuAD file, dev-v1.1.json.")
  return parse(data, str(path))


def parse(data: bytes, path: str) -> list[Document]:
  """Reads the content of a file of SQuAD 1.1 or 2.0.

  Args:
    data: JSON, such as `experiments.common.fetch.load("squad")` has it.
    path: what to call it in errors.

  Returns:
    A document for every paragraph, in order; those of one article share its
    title.

  Raises:
    UserError: naming the file and the line where it is not JSON, or the place
      in it where a field is missing or of another type, or an id comes again.

  Source: Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250; 2018,
  https://arxiv.org/abs/1806.03822.
  """
  try:
    content = json.loads(data)
  except UnicodeDecodeError as error:
    line = data[: error.start].count(b"\n") + 1
    raise files.UserError(f"{path}:{line}: not UTF-8: {error}") from error
  except json.JSONDecodeError as error:
    raise files.UserError(
      f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}."
    ) from error
  documents, ids = [], set()
  for article, where in _items(path, content, "data", "the file"):
    title = str(article.get("title") or where)
    for paragraph, place in _items(path, article, "paragraphs", where):
      text = _field(path, paragraph, "context", str, place)
      questions = []
      for item, at in _items(path, paragraph, "qas", place):
        question = _question(path, item, text, at)
        if question.id in ids:
          raise files.UserError(
            f"{path}: {at}: the id {question.id!r} stands twice."
          )
        ids.add(question.id)
        questions.append(question)
      documents.append(Document(title, text, tuple(questions)))
  if not ids:
    raise files.UserError(f"{path} holds no questions.")
  return documents


def join(
  paragraphs: Sequence[Document], *, separator: str = "\n"
) -> list[Document]:
  r"""Joins the paragraphs of every article into one long document.

  Args:
    paragraphs: of `read`.
    separator: between two.

  Returns:
    A document for each run of paragraphs with one title; answers are moved to
    where they stand in it.

  Example:
    >>> ask = Question("q", "Who?", (Answer(0, "Bo"),))
    >>> parts = [Document("t", "Al.", ()), Document("t", "Bo.", (ask,))]
    >>> (found,) = join(parts)
    >>> found.text, found.questions[0].answers[0].start
    ('Al.\nBo.', 4)

  Source: none; as long documents are made of short ones in the experiments.
  """
  groups: list[list[Document]] = []
  for paragraph in paragraphs:
    if not groups or groups[-1][0].title != paragraph.title:
      groups.append([])
    groups[-1].append(paragraph)
  return [_joined(group, separator) for group in groups]


def _joined(group: Sequence[Document], separator: str) -> Document:
  questions, start = [], 0
  for paragraph in group:
    for question in paragraph.questions:
      questions.append(
        dataclasses.replace(
          question,
          answers=_moved(question.answers, start),
          facts=_moved(question.facts, start),
        )
      )
    start += len(paragraph.text) + len(separator)
  text = separator.join(p.text for p in group)
  return Document(group[0].title, text, tuple(questions))


def _moved(answers: Sequence[Answer], by: int) -> tuple[Answer, ...]:
  return tuple(
    Answer(a.start + by if a.start >= 0 else -1, a.text) for a in answers
  )


def _question(path: str, item: Any, text: str, where: str) -> Question:
  answers = []
  if not item.get("is_impossible", False):
    for answer, at in _items(path, item, "answers", where):
      start = _field(path, answer, "answer_start", int, at)
      words = _field(path, answer, "text", str, at)
      if start < 0 or text[start : start + len(words)] != words:
        start = -1
      answers.append(Answer(start, words))
    if not answers:
      raise files.UserError(
        f"{path}: {where} has no answers, and is not marked is_impossible."
      )
  return Question(
    _field(path, item, "id", str, where),
    _field(path, item, "question", str, where),
    tuple(answers),
  )


def _field(path: str, item: Any, name: str, kind: type, where: str) -> Any:
  value = item.get(name) if isinstance(item, dict) else None
  if not isinstance(value, kind) or isinstance(value, bool):
    raise files.UserError(
      f"{path}: {where} needs a field {name!r} of type {kind.__name__}; is "
      "it a SQuAD file?"
    )
  return value


def _items(
  path: str, item: Any, name: str, where: str
) -> list[tuple[Any, str]]:
  """The objects of a list in the file, and where each stands."""
  values = _field(path, item, name, list, where)
  prefix = "" if where == "the file" else f"{where}."
  for i, value in enumerate(values):
    if not isinstance(value, dict):
      raise files.UserError(f"{path}: {prefix}{name}[{i}] is not an object.")
  return [(value, f"{prefix}{name}[{i}]") for i, value in enumerate(values)]
