"""Questions and windows of documents as rows of tokens."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from experiments.common import data as rows_lib
from experiments.common import encoders
from experiments.common import files
from experiments.common import tokens as tokens_lib
from experiments.qa import sentences as sentences_lib
from experiments.qa import squad

KINDS = ("span", "yes", "no")
SPANS = 8  # Places of answers that a row keeps, at most.


@dataclasses.dataclass(frozen=True)
class Form:
  """How rows are made.

  Attributes:
    length: T, tokens of a row.
    stride: tokens from the start of a window to that of the next; 0 for the
      first window only.
    max_question: tokens of a question; more are cut off.
    max_candidates: tokens of a question's candidates, each with a mark after
      it; 0 where answers are spans.
    max_sentences: sentences of a window that are told apart; 0 for none.

  Raises:
    UserError: if the numbers do not fit.

  Example:
    >>> Form(length=64, stride=0, max_question=16).places
    18

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 4.2.
  """

  length: int
  stride: int
  max_question: int
  max_candidates: int = 0
  max_sentences: int = 0

  def __post_init__(self) -> None:
    room = self.length - self.places
    if self.max_question < 1 or room < 1:
      raise files.UserError(
        f"--config.length {self.length} has no room for a document after "
        f"--config.max_question {self.max_question} tokens"
        + (
          f" and --config.max_candidates {self.max_candidates}."
          if self.max_candidates
          else "."
        )
      )
    if not 0 <= self.stride <= room:
      raise files.UserError(
        f"--config.stride must be in [0, {room}], what --config.length leaves "
        f"beside a question, got {self.stride}."
      )

  @property
  def places(self) -> int:
    """Tokens before the document, at most: question, two marks, candidates."""
    return self.max_question + 2 + self.max_candidates


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A question and where its answers stand.

  Attributes:
    question: of the document.
    document: its number.
    ids: `[q]`, of the question; of candidates, too, with marks before them.
    candidates: places in `ids` from and up to which each candidate stands.
    spans: first and last tokens of answers in the document.
  """

  question: squad.Question
  document: int
  ids: np.ndarray
  candidates: tuple[tuple[int, int], ...]
  spans: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Window:
  """A part of a document as one question's row sees it.

  Attributes:
    question: its number.
    start: first token of the document in the window.
    stop: the token after its last.
  """

  question: int
  start: int
  stop: int


class Rows:
  """Rows `[mark] question [mark] window` of documents, by random access.

  A row has `tokens`, `types` (0 up to the second mark, 1 after), `valid`,
  `allowed` (where answers may lie; the first token says that there is none),
  `globals` (places of marks and question, -1 pads), `spans` (the answers in
  the window, or the first token), `kind` and `row`. Candidates stand after the
  question, each with a mark before it: then there are `candidates [C, M]`, the
  places of their tokens, and `chosen`, which is right. Where sentences are told
  apart there are `sentences [T]`, of each token the number in the window,
  `ends [S, 2]`, the first and last token of each, and `facts [S]`, whether it
  leads to the answer; -1 pads.

  Args:
    documents: with their questions.
    tokenizer: of `experiments.common.tokens`.
    form: of the rows.

  Raises:
    UserError: if there are no questions.

  Example:
    >>> ask = squad.Question("q", "Who?", (squad.Answer(0, "Bo"),))
    >>> rows = Rows([squad.Document("t", "Bo ran.", (ask,))],
    ...             tokens_lib.Bytes(), Form(16, 0, 6))
    >>> row = rows[0]
    >>> row["spans"][0].tolist(), row["globals"].tolist()
    ([6, 7], [0, 1, 2, 3, 4, 5, -1, -1])

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 4.2;
  Beltagy et al., 2020 (the question is global),
  https://arxiv.org/abs/2004.05150, section 6.1.
  """

  def __init__(
    self,
    documents: Sequence[squad.Document],
    tokenizer: tokens_lib.Tokenizer,
    form: Form,
  ):
    self.form = form
    self.mark = tokenizer.separator
    pairs = [(i, q) for i, d in enumerate(documents) for q in d.questions]
    if not pairs:
      raise files.UserError("there are no questions in this part of the data.")
    self.texts = {i: documents[i].text for i, _ in pairs}
    self.read = {i: tokenizer.offsets(t) for i, t in self.texts.items()}
    self._tokenizer = tokenizer
    self.questions = [
      Encoded(
        question,
        i,
        *self._asked(question),
        tuple(_places(question.answers, self.read[i][1])),
      )
      for i, question in pairs
    ]
    spans = [b - a for q in self.questions for a, b in q.candidates]
    self._mentions = (
      max(len(q.candidates) for q in self.questions),
      max(spans, default=0),
    )
    self._sentences: dict[int, np.ndarray] = {}
    self._documents = {i: documents[i] for i, _ in pairs}
    self.windows = [
      Window(k, *bounds)
      for k, encoded in enumerate(self.questions)
      for bounds in self._bounds(encoded)
    ]

  def _bounds(self, encoded: Encoded) -> Iterator[tuple[int, int]]:
    room = self.form.length - 2 - len(encoded.ids)
    count, start = len(self.read[encoded.document][0]), 0
    while True:
      yield start, min(start + room, count)
      if not self.form.stride or start + room >= count:
        return
      start += self.form.stride

  def _asked(
    self, question: squad.Question
  ) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """Ids of the question and its candidates, and where these stand."""
    form, mark = self.form, [self.mark]
    ids = self._tokenizer.offsets(question.text)[0][: form.max_question]
    if not form.max_candidates:
      return ids, ()
    parts, places = [ids], []
    at = len(ids)
    for candidate in question.candidates:
      found = self._tokenizer.offsets(candidate)[0]
      parts += [mark, found]
      places.append((at + 1, at + 1 + len(found)))
      at += 1 + len(found)
    if at - len(ids) > form.max_candidates:
      raise files.UserError(
        f"the candidates of question {question.id!r} are {at - len(ids)} "
        f"tokens, more than --config.max_candidates {form.max_candidates}."
      )
    return np.concatenate(parts).astype(ids.dtype), tuple(places)

  def sentence_of(self, document: int) -> np.ndarray:
    """Of each token of a document its sentence; -1 outside of any."""
    if document not in self._sentences:
      spans = np.array(self.sentence_spans(document)).reshape(-1, 2)
      first = self.read[document][1][:, 0]
      number = np.searchsorted(spans[:, 0], first, "right") - 1
      inside = number >= 0
      inside[inside] &= first[inside] < spans[number[inside], 1]
      self._sentences[document] = np.where(inside, number, -1)
    return self._sentences[document]

  def sentence_spans(self, document: int) -> Sequence[tuple[int, int]]:
    """Characters from and up to which each sentence of a document stands."""
    spans = self._documents[document].sentences
    return spans or sentences_lib.split(self.texts[document])

  def facts(self, question: int) -> set[int]:
    """The numbers of the sentences that lead to an answer.

    None where the data mark no sentences: then facts are other places.
    """
    encoded = self.questions[question]
    spans = self._documents[encoded.document].sentences
    starts = {a: i for i, (a, _) in enumerate(spans)}
    return {starts[f.start] for f in encoded.question.facts if spans}

  def learnable(self, empty_rate: float, seed: int) -> None:
    """Keeps the windows to learn from.

    These are windows with an answer, those of questions that say yes, no or
    that there is none, and of windows that the answer lies outside of, a share
    of `empty_rate`. Questions whose answers stand nowhere teach nothing.

    Raises:
      UserError: if nothing is left.
    """
    draws = np.random.default_rng(seed).random(len(self.windows))
    kept = []
    for window, draw in zip(self.windows, draws, strict=True):
      encoded = self.questions[window.question]
      asked = encoded.question
      always = asked.kind != "span" or not asked.answers or asked.candidates
      if always or self.spans(window):
        kept.append(window)
      elif encoded.spans and draw < empty_rate:
        kept.append(window)
    if not kept:
      raise files.UserError(
        "no window of the training documents holds an answer: set a larger "
        "--config.length, or a --config.stride."
      )
    self.windows = kept

  def spans(self, window: Window) -> list[tuple[int, int]]:
    """First and last tokens, in the row, of answers inside a window."""
    encoded = self.questions[window.question]
    shift = len(encoded.ids) + 2 - window.start
    return [
      (a + shift, b + shift)
      for a, b in encoded.spans
      if window.start <= a and b < window.stop
    ]

  def text(self, window: Window, first: int, last: int) -> str:
    """The text from one token of a row to another, both included."""
    encoded = self.questions[window.question]
    shift = window.start - len(encoded.ids) - 2
    offsets = self.read[encoded.document][1]
    start, stop = offsets[first + shift][0], offsets[last + shift][1]
    return self.texts[encoded.document][start:stop].strip()

  def golds(self) -> dict[str, tuple[str, ...]]:
    """Question id -> right answers."""
    return {q.question.id: q.question.golds for q in self.questions}

  def depth(self, question: int) -> int | None:
    """Where in a row of the whole document the first answer would start."""
    encoded = self.questions[question]
    if not encoded.spans:
      return None
    return min(a for a, _ in encoded.spans) + len(encoded.ids) + 2

  def __len__(self) -> int:
    return len(self.windows)

  def __getitem__(self, index: int) -> rows_lib.Batch:
    window = self.windows[int(index)]
    encoded = self.questions[window.question]
    ids = self.read[encoded.document][0][window.start : window.stop]
    head = np.concatenate([[self.mark], encoded.ids, [self.mark]])
    length = self.form.length
    row, valid = encoders.padded(np.concatenate([head, ids]), length, self.mark)
    after = np.arange(length) >= len(head)
    places = np.arange(self.form.places)
    spans = np.full((SPANS, 2), -1, np.int32)
    found = self.spans(window)[:SPANS] or [(0, 0)]
    spans[: len(found)] = found
    return {
      **self._chosen(encoded),
      **self._told_apart(window, len(head)),
      "tokens": row,
      "types": (after & valid).astype(np.int32),
      "valid": valid,
      "allowed": (after & valid) | (np.arange(length) == 0),
      "globals": np.where(places < len(head), places, -1).astype(np.int32),
      "spans": spans,
      "kind": np.asarray(KINDS.index(encoded.question.kind), np.int32),
      "row": np.asarray(index, np.int32),
    }

  def _chosen(self, encoded: Encoded) -> rows_lib.Batch:
    """Where candidates stand in a row, and which of them is right."""
    if not self.form.max_candidates:
      return {}
    count, most = self._mentions
    places = np.full((count, most), -1, np.int32)
    for i, (start, stop) in enumerate(encoded.candidates):
      places[i, : stop - start] = np.arange(start, stop) + 1
    question = encoded.question
    right = [c in question.golds for c in question.candidates]
    chosen = right.index(True) if any(right) else -1
    return {"candidates": places, "chosen": np.asarray(chosen, np.int32)}

  def _told_apart(self, window: Window, shift: int) -> rows_lib.Batch:
    """Sentences of a window, numbered from its first."""
    most = self.form.max_sentences
    if not most:
      return {}
    document = self.questions[window.question].document
    number = self.sentence_of(document)[window.start : window.stop]
    start = first_sentence(number)
    local = np.where(
      (number >= 0) & (number - start < most), number - start, -1
    )
    sentences = np.full(self.form.length, -1, np.int32)
    sentences[shift : shift + len(local)] = local
    ends = np.full((most, 2), -1, np.int32)
    places = np.flatnonzero(sentences >= 0)
    # The first of equal ones is written last.
    ends[sentences[places], 1] = places
    ends[sentences[places[::-1]], 0] = places[::-1]
    there = np.where(ends[:, 0] >= 0, 0, -1).astype(np.int32)
    for fact in self.facts(window.question):
      if 0 <= fact - start < most and there[fact - start] == 0:
        there[fact - start] = 1
    return {
      "sentences": sentences,
      "ends": ends,
      "facts": there,
      "first_sentence": np.asarray(start, np.int32),
    }

  def batches(self, batch_size: int) -> Iterator[rows_lib.Batch]:
    """All rows, in order; the last batch is filled with rows numbered -1."""
    for low in range(0, len(self), batch_size):
      index = [i if i < len(self) else 0 for i in range(low, low + batch_size)]
      items = [self[i] for i in index]
      batch = {k: np.stack([item[k] for item in items]) for k in items[0]}
      batch["row"] = np.where(
        np.arange(low, low + batch_size) < len(self), batch["row"], -1
      )
      yield batch


def first_sentence(number: np.ndarray) -> int:
  """The number of the first sentence of `sentence_of` a window; 0 for none."""
  there = number[number >= 0]
  return int(there[0]) if len(there) else 0


def _places(
  answers: Sequence[squad.Answer], offsets: np.ndarray
) -> Iterator[tuple[int, int]]:
  """First and last tokens of the answers that have a place."""
  if not len(offsets):
    return
  for answer in dict.fromkeys(answers):
    if answer.start < 0 or not answer.text:
      continue
    stop = answer.start + len(answer.text)
    first = int(np.searchsorted(offsets[:, 1], answer.start, "right"))
    last = int(np.searchsorted(offsets[:, 0], stop, "left")) - 1
    if first <= last:
      yield first, last
