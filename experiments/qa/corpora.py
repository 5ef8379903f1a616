"""The questions that a run learns from and is tested on."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common import fetch
from experiments.common import files
from experiments.qa import hotpotqa
from experiments.qa import natural_questions
from experiments.qa import needle
from experiments.qa import squad
from experiments.qa import stories
from experiments.qa import triviaqa
from experiments.qa import wikihop

Documents = list[squad.Document]
PARTS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents with questions, and their split.

  Attributes:
    name: for the report.
    rule: how they are split, in words.
    train: to learn from.
    valid: to watch while training.
    test: for the result.
  """

  name: str
  rule: str
  train: Documents
  valid: Documents
  test: Documents

  def digest(self, part: str) -> str:
    """Identifies the documents of a part: SHA-256, 16 digits."""
    state = hashlib.sha256()
    for document in getattr(self, part):
      item = json.dumps(dataclasses.asdict(document), sort_keys=True)
      state.update(item.encode())
    return state.hexdigest()[:16]

  def kinds(self) -> set[str]:
    """Kinds of answers to learn; `none` where a question has none."""
    questions = [q for d in self.train for q in d.questions]
    found = {q.kind for q in questions if q.kind != "span" or q.answers}
    return found | {"none" for q in questions if not q.golds}

  def has_candidates(self) -> bool:
    """Whether one of several candidates is the answer.

    Raises:
      UserError: if some questions have candidates and others have none.
    """
    found = {bool(q.candidates) for d in self._all() for q in d.questions}
    if len(found) > 1:
      raise files.UserError(
        f"corpus {self.name!r} mixes questions with and without candidates."
      )
    return found == {True}

  def has_facts(self) -> bool:
    """Whether the data say which of their sentences lead to the answers."""
    marked = (d.questions for d in self._all() if d.sentences)
    return any(q.facts for questions in marked for q in questions)

  def _all(self) -> Documents:
    return [d for part in PARTS for d in getattr(self, part)]


def split(documents: Sequence[squad.Document]) -> dict[str, Documents]:
  """Splits documents by a hash of their texts: 10 % valid, 10 % test.

  Args:
    documents: with questions.

  Returns:
    Part -> documents; no text is in two parts.

  Example:
    >>> docs = [squad.Document(str(i), str(i), ()) for i in range(200)]
    >>> [len(part) for part in split(docs).values()]
    [160, 20, 20]

  Source: none.
  """
  texts = sorted(
    {d.text for d in documents},
    key=lambda text: hashlib.sha256(text.encode()).digest(),
  )
  tenth = len(texts) // 10
  bounds = {"test": (0, tenth), "valid": (tenth, 2 * tenth)}
  where = {
    text: part
    for part, (low, high) in bounds.items()
    for text in texts[low:high]
  }
  parts: dict[str, Documents] = {part: [] for part in PARTS}
  for document in documents:
    parts[where.get(document.text, "train")].append(document)
  return parts


_RULE = "whole documents, by SHA-256 of their texts: 80 % / 10 % / 10 %"


def _needle(config: Any) -> Corpus:
  sizes = dict.fromkeys(("valid", "test"), config.needle_held_out)
  parts = {
    part: needle.make(
      part,
      documents=sizes.get(part, config.needle_documents),
      characters=config.needle_characters,
      needles=config.needles,
      num_names=config.needle_names,
    )
    for part in PARTS
  }
  rule = "by file of Python's library, SHA-256 of their names"
  return Corpus("needles in Python's library", rule, **parts)


def _stories(config: Any) -> Corpus:
  del config
  ((name, data),) = fetch.load("stories")
  parts = split(stories.parse(data, name))
  return Corpus("NarrativeQA on summaries", _RULE, **parts)


def _squad(config: Any) -> Corpus:
  """The two files of Wikipedia: development sets, split by article."""
  documents: Documents = []
  for name, data in fetch.load("squad"):
    if name in ("squaddev_v1.1.json", "new_wiki_v1.0.json"):
      # Both have articles of one title, and they are different texts.
      documents += _joined(config, squad.parse(data, name))
  # By title: an article's paragraphs must not be in two parts.
  titles = [squad.Document(d.title, d.title, ()) for d in documents]
  place = {
    d.title: part for part, found in split(titles).items() for d in found
  }
  parts: dict[str, Documents] = {part: [] for part in PARTS}
  for document in documents:
    parts[place[document.title]].append(document)
  rule = "whole articles, by SHA-256 of their titles: 80 % / 10 % / 10 %"
  return Corpus("SQuAD's development articles", rule, **parts)


def _joined(config: Any, documents: Documents) -> Documents:
  return squad.join(documents) if config.join_paragraphs else documents


# Name -> reader of a user's file.
READERS: dict[str, Callable[[pathlib.Path, Any], Documents]] = {
  "hotpotqa": lambda path, config: hotpotqa.read(path),
  "natural_questions": lambda path, config: natural_questions.read(path),
  "squad_file": lambda path, config: _joined(config, squad.read(path)),
  "stories_file": lambda path, config: stories.read(path),
  "triviaqa": lambda path, config: triviaqa.read(
    path, pathlib.Path(config.evidence)
  ),
  "wikihop": lambda path, config: wikihop.read(path),
}

CORPORA: dict[str, Callable[[Any], Corpus]] = {
  "needle": _needle,
  "squad": _squad,
  "stories": _stories,
}


def _local(config: Any) -> Corpus:
  """Files of the user: one to be split, or one for each part."""
  paths = {part: getattr(config, f"{part}_path") for part in PARTS}
  if not paths["train"]:
    raise files.UserError(
      f"corpus {config.corpus!r} needs --config.train_path, a file in its "
      "published format."
    )
  read = READERS[config.corpus]
  parts = {
    part: read(pathlib.Path(path), config)
    for part, path in paths.items()
    if path
  }
  rule = "as their files are"
  if "valid" not in parts and "test" not in parts:
    parts, rule = split(parts["train"]), _RULE
  elif "valid" not in parts:
    halves = split(parts["train"])
    parts["train"] = halves["train"] + halves["test"]
    parts["valid"] = halves["valid"]
    rule = "test as its file is; valid: a tenth of the training documents"
  elif "test" not in parts:
    raise files.UserError(
      "--config.valid_path without --config.test_path: the result needs "
      "questions that were not watched while training."
    )
  return Corpus(config.corpus, rule, **parts)


def load(config: Any) -> Corpus:
  """Loads the questions of a run.

  Args:
    config: of `experiments.qa.train`.

  Returns:
    The corpus.

  Raises:
    UserError: if the name is unknown, something is missing or cannot be read,
      or a part holds no questions.
  """
  known = sorted([*CORPORA, *READERS])
  if config.corpus not in known:
    raise files.UserError(
      f"unknown corpus {config.corpus!r}; known: {', '.join(known)}."
    )
  given = [p for p in PARTS if getattr(config, f"{p}_path")]
  if given and config.corpus in CORPORA:
    raise files.UserError(
      f"corpus {config.corpus!r} takes no --config.{given[0]}_path; corpora "
      f"that do: {', '.join(READERS)}."
    )
  corpus = CORPORA.get(config.corpus, _local)(config)
  for part in PARTS:
    if not any(d.questions for d in getattr(corpus, part)):
      raise files.UserError(
        f"the {part} part of corpus {config.corpus!r} has no questions: too "
        "few documents to be split. Give a file for each part."
      )
  return dataclasses.replace(
    corpus, train=thin(corpus.train, config.train_questions)
  )


def thin(documents: Documents, count: int) -> Documents:
  """Documents with about `count` questions in all; 0 for all.

  Args:
    documents: with questions.
    count: of questions, evenly thinned out.

  Returns:
    Those documents that have any left.

  Example:
    >>> asks = tuple(squad.Question(str(i), "Who?", ()) for i in range(4))
    >>> (kept,) = thin([squad.Document("t", "text", asks)], 2)
    >>> [q.id for q in kept.questions]
    ['0', '3']

  Source: none.
  """
  total = sum(len(d.questions) for d in documents)
  if not count or count >= total:
    return documents
  kept = set(np.linspace(0, total - 1, count).astype(int).tolist())
  found, at = [], 0
  for document in documents:
    numbers = range(at, at + len(document.questions))
    at += len(document.questions)
    chosen = tuple(
      q for n, q in zip(numbers, document.questions, strict=True) if n in kept
    )
    if chosen:
      found.append(dataclasses.replace(document, questions=chosen))
  return found
