"""What any reader must beat, without learning."""

import collections
import math
import re
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from experiments.qa import metrics
from experiments.qa import sentences
from experiments.qa import squad

_WORD = re.compile(r"\w+")


def all_floors(
  documents: Sequence[squad.Document], *, seed: int = 0
) -> dict[str, metrics.Scores]:
  """Scores of answers that no one had to learn.

  Args:
    documents: with the questions to answer.
    seed: of the random span.

  Returns:
    Name -> scores: a random span of up to 8 words, the first sentence, the
    sentence most like the question, and what that one says beyond it.
  """
  rng = np.random.default_rng(seed)
  found: dict[str, dict[str, str]] = collections.defaultdict(dict)
  golds = {}
  for document in documents:
    if not document.questions:
      continue
    search = Search(document.text)
    for question in document.questions:
      golds[question.id] = question.golds
      sentence = search.best(question.text)
      said = {
        "random span": random_span(document.text, search.words, rng),
        "first sentence": search.first(),
        "most similar sentence": sentence,
        "its words beyond the question": beyond(sentence, question.text),
      }
      for name, text in said.items():
        found[name][question.id] = text
  return {name: metrics.score(said, golds) for name, said in found.items()}


def random_span(
  text: str, words: Sequence[tuple[int, int]], rng: np.random.Generator
) -> str:
  """From one word to another, 8 words at most.

  Args:
    text: of the document.
    words: characters from and up to which each stands.
    rng: draws the span.

  Returns:
    The text of the span.

  Example:
    >>> random_span("one", [(0, 3)], np.random.default_rng(0))
    'one'

  Source: none.
  """
  if not words:
    return ""
  first = int(rng.integers(len(words)))
  last = min(first + int(rng.integers(8)), len(words) - 1)
  return text[words[first][0] : words[last][1]]


class Search:
  """Finds the sentence of a text that is most like a question.

  The sentence that maximises, over the different words of the question that it
  holds, the sum of

    log(1 + 1 / count of the word in the text).

  Args:
    text: of the document.
    spans: its sentences; none for those of `sentences.split`.

  Example:
    >>> Search("Al sat. Bo ran home.").best("Who ran?")
    'Bo ran home.'

  Source: the sliding window of Richardson et al., 2013 (MCTest), section 5.1,
  upon sentences as in Rajpurkar et al., 2016,
  https://arxiv.org/abs/1606.05250, section 5.
  """

  def __init__(self, text: str, spans: Sequence[tuple[int, int]] = ()):
    spans = spans or sentences.split(text)
    self._sentences = [text[a:b].strip() for a, b in spans]
    self._counts: collections.Counter[str] = collections.Counter()
    self._holders: dict[str, set[int]] = collections.defaultdict(set)
    for i, sentence in enumerate(self._sentences):
      for word in _words(sentence):
        self._counts[word] += 1
        self._holders[word].add(i)
    self.words = [m.span() for m in _WORD.finditer(text)]

  def first(self) -> str:
    """The first sentence; "" of an empty text."""
    return self._sentences[0] if self._sentences else ""

  def best(self, question: str) -> str:
    """The sentence most like the question, the first of equal ones."""
    found = self.ranked(question, 1)
    return self._sentences[found[0]] if found else ""

  def ranked(self, question: str, count: int) -> list[int]:
    """The sentences most like the question, the most similar first."""
    scores = dict.fromkeys(range(len(self._sentences)), 0.0)
    for word in set(_words(question)):
      for i in self._holders.get(word, ()):
        scores[i] += math.log1p(1 / self._counts[word])
    return sorted(scores, key=lambda i: (-scores[i], i))[:count]


def beyond(sentence: str, question: str) -> str:
  """The longest run of words in a sentence that the question does not hold.

  Args:
    sentence: that should hold the answer.
    question: whose words are none of the answer.

  Returns:
    The run, the first of equal ones; the sentence if there is none.

  Example:
    >>> beyond("The code of os is 12.", "What is the code of os?")
    '12'

  Source: as of `Search`, with a run in place of a constituent.
  """
  asked, runs, last = set(_words(question)), [], None
  for match in _WORD.finditer(sentence):
    if match.group().lower() in asked:
      last = None
    elif last is None:
      last = [match.start(), match.end(), 1]
      runs.append(last)
    else:
      last[1], last[2] = match.end(), last[2] + 1
  if not runs:
    return sentence
  start, stop, _ = max(runs, key=lambda run: run[2])
  return sentence[start:stop]


def _words(text: str) -> Iterator[str]:
  return (m.group().lower() for m in _WORD.finditer(text))
