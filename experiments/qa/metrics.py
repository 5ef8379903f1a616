"""Exact match and F1 of answers, as SQuAD's published scripts have them."""

import collections
import dataclasses
import re
import string
from collections.abc import Mapping
from collections.abc import Sequence

from experiments.common import files

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Means over questions, in percent.

  Attributes:
    exact: questions whose answer is, normalised, one of the right ones.
    f1: of words, against the nearest right answer.
    count: questions.
    missing: those without a prediction, which count as wrong.
  """

  exact: float
  f1: float
  count: int
  missing: int


def normalize(text: str) -> str:
  """Lower case without punctuation, articles and extra white space.

  Args:
    text: an answer.

  Returns:
    Its words, joined by single spaces.

  Example:
    >>> normalize("The  Eiffel-Tower!")
    'eiffeltower'

  Source: Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250, section 6.1,
  and its evaluate-v1.1.py.
  """
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
  """1 if the prediction is one of the answers, normalised; else 0.

  Args:
    prediction: "" says that there is no answer.
    answers: right ones; none means that there is no answer.

  Returns:
    0 or 1.

  Example:
    >>> exact_match("the Norman", ["Norman", "Normans"])
    1.0

  Source: as of `normalize`; Rajpurkar et al., 2018 (no answer),
  https://arxiv.org/abs/1806.03822.
  """
  return float(normalize(prediction) in map(normalize, _golds(answers)))


def f1(prediction: str, answers: Sequence[str]) -> float:
  """Harmonic mean of precision and recall of words, with the best answer.

  Args:
    prediction: "" says that there is no answer.
    answers: right ones; none means that there is no answer.

  Returns:
    In [0, 1]; where either has no words, whether both have none.

  Example:
    >>> f1("the big red house", ["red house", "a barn"])
    0.8

  Source: as of `exact_match`.
  """
  return max(_f1(prediction, answer) for answer in _golds(answers))


def _golds(answers: Sequence[str]) -> list[str]:
  """Answers with words, as evaluate-v2.0.py; none of them: no answer."""
  return [a for a in answers if normalize(a)] or [""]


def shared_words(prediction: str, answer: str) -> int:
  """How many words two texts share, normalised, as often as both have them.

  Args:
    prediction: a text.
    answer: another.

  Returns:
    The count.

  Example:
    >>> shared_words("the red red cat", "Red, red dog!")
    2

  Source: as of `f1`.
  """
  found, wanted = normalize(prediction).split(), normalize(answer).split()
  common = collections.Counter(found) & collections.Counter(wanted)
  return sum(common.values())


def _f1(prediction: str, answer: str) -> float:
  found, wanted = normalize(prediction).split(), normalize(answer).split()
  if not found or not wanted:
    return float(found == wanted)
  same = shared_words(prediction, answer)
  if not same:
    return 0.0
  precision, recall = same / len(found), same / len(wanted)
  return 2 * precision * recall / (precision + recall)


def score(
  predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]
) -> Scores:
  """Scores predictions for all questions.

  Args:
    predictions: question id -> text.
    answers: question id -> right answers; an empty list: there is none.

  Returns:
    The scores; questions without a prediction count as wrong.

  Raises:
    UserError: if there are no questions, or a prediction is for none of them.

  Example:
    >>> score({"a": "Paris"}, {"a": ["paris"], "b": []})
    Scores(exact=50.0, f1=50.0, count=2, missing=1)

  Source: as of `exact_match`.
  """
  if not answers:
    raise files.UserError("there are no questions to score.")
  unknown = sorted(set(predictions) - set(answers))
  if unknown:
    raise files.UserError(
      f"{len(unknown)} predictions are for questions that are not there, the "
      f"first {unknown[0]!r}. Are they of another split?"
    )
  exact = sum(exact_match(p, answers[i]) for i, p in predictions.items())
  words = sum(f1(p, answers[i]) for i, p in predictions.items())
  count = len(answers)
  return Scores(
    100 * exact / count, 100 * words / count, count, count - len(predictions)
  )
