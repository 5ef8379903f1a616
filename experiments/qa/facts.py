"""Scores of supporting facts, as HotpotQA's published script has them."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from collections.abc import Set

from experiments.qa import floors
from experiments.qa import metrics
from experiments.qa import rows as rows_lib

_WHOLE = ("yes", "no", "noanswer")


@dataclasses.dataclass(frozen=True)
class FactScores:
  """Means over questions, in percent.

  Attributes:
    exact: questions of which all sentences and no others are found.
    f1: of sentences.
    joint_exact: questions of which the answer is right, too.
    joint_f1: of the products of precisions and of recalls of both.
  """

  exact: float
  f1: float
  joint_exact: float
  joint_f1: float


def score(
  found: Mapping[str, Set[int]],
  right: Mapping[str, Set[int]],
  texts: Mapping[str, str],
  answers: Mapping[str, Sequence[str]],
) -> FactScores:
  """Scores sentences and answers for all questions.

  Args:
    found: question id -> numbers of sentences; none counts as an empty set.
    right: question id -> numbers of sentences.
    texts: question id -> answer that was given.
    answers: question id -> right answers.

  Returns:
    The scores.

  Example:
    >>> score({"a": {1, 2}}, {"a": {1}}, {"a": "Bo"}, {"a": ["bo"]})
    FactScores(exact=0.0, f1=66.6..., joint_exact=0.0, joint_f1=66.6...)

  Source: Yang et al., 2018, https://arxiv.org/abs/1809.09600, section 5.1, and
  its hotpot_evaluate_v1.py.
  """
  sums = [0.0] * 4
  for name, wanted in right.items():
    said = found.get(name, set())
    same = len(said & wanted)
    facts = _ratio(same, len(said)), _ratio(same, len(wanted))
    exact = float(said == wanted)
    text = texts.get(name)
    both, right_text = (0.0, 0.0), 0.0
    if text is not None:
      right_text = metrics.exact_match(text, answers[name])
      both = max(
        (answer_overlap(text, gold) for gold in answers[name]), key=_f1
      )
    joint = facts[0] * both[0], facts[1] * both[1]
    each = exact, _f1(facts), exact * right_text, _f1(joint)
    sums = [a + b for a, b in zip(sums, each, strict=True)]
  return FactScores(*(100 * x / len(right) for x in sums))


def answer_overlap(text: str, gold: str) -> tuple[float, float]:
  """Precision and recall of words; yes and no are right only whole.

  Args:
    text: an answer.
    gold: the right one.

  Returns:
    Both, in [0, 1].

  Example:
    >>> answer_overlap("the red cat", "red dog"), answer_overlap("yes", "yes I")
    ((0.5, 0.5), (0.0, 0.0))

  Source: as of `score`.
  """
  said, right = metrics.normalize(text), metrics.normalize(gold)
  if said != right and (said in _WHOLE or right in _WHOLE):
    return 0.0, 0.0
  same = metrics.shared_words(said, right)
  return _ratio(same, len(said.split())), _ratio(same, len(right.split()))


def floor(rows: rows_lib.Rows, count: int = 2) -> dict[str, set[int]]:
  """The sentences most like each question, as facts that no one learned.

  Args:
    rows: with the questions.
    count: of sentences; HotpotQA's questions have two at least.

  Returns:
    Question id -> numbers of sentences.
  """
  found = {}
  for encoded in rows.questions:
    document = encoded.document
    search = floors.Search(rows.texts[document], rows.sentence_spans(document))
    asked = encoded.question
    found[asked.id] = set(search.ranked(asked.text, count))
  return found


def _ratio(part: int, whole: int) -> float:
  return part / whole if whole else 0.0


def _f1(both: tuple[float, float]) -> float:
  precision, recall = both
  total = precision + recall
  return 2 * precision * recall / total if total else 0.0
