"""Scores of predictions, with their floors and their uncertainty."""

import math
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np


def counts(labels: np.ndarray, chosen: np.ndarray) -> tuple[int, int, int, int]:
  """True positives, false positives, false negatives, true negatives.

  Args:
    labels: `[n]`, 0 or 1.
    chosen: `[n]`, 0 or 1.

  Returns:
    The four.

  Example:
    >>> counts(np.array([1, 1, 0]), np.array([1, 0, 0]))
    (1, 0, 1, 1)

  Source: none.
  """
  yes, positive = chosen.astype(bool), labels.astype(bool)
  pairs = (yes & positive, yes & ~positive, ~yes & positive, ~yes & ~positive)
  tp, fp, fn, tn = (int(np.sum(x)) for x in pairs)
  return tp, fp, fn, tn


def mcc(labels: np.ndarray, chosen: np.ndarray) -> float:
  """Matthews' correlation of labels and choices, of two or more classes.

  Args:
    labels: `[n]` ints.
    chosen: `[n]` ints.

  Returns:
    From -1 to 1; 0 where either never changes.

  Example:
    >>> mcc(np.array([0, 1, 1]), np.array([0, 1, 1]))
    1.0

  Source: Gorodkin, 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006.
  """
  kinds = np.unique(np.concatenate([labels, chosen]))
  true = np.array([np.sum(labels == k) for k in kinds], np.float64)
  found = np.array([np.sum(chosen == k) for k in kinds], np.float64)
  n, right = float(len(labels)), float(np.sum(labels == chosen))
  below = (n * n - np.sum(found**2)) * (n * n - np.sum(true**2))
  if below <= 0:
    return 0.0
  return float((right * n - np.sum(true * found)) / math.sqrt(below))


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
  """Chance that a positive scores higher than a negative; ties count half.

  Args:
    labels: `[n]`, 0 or 1.
    scores: `[n]` numbers.

  Returns:
    From 0 to 1; NaN without positives or without negatives.

  Example:
    >>> auroc(np.array([0, 1, 1]), np.array([0.1, 0.1, 0.3]))
    0.75

  Source: Hanley and McNeil, 1982, https://doi.org/10.1148/radiology.143.1.7063747.
  """
  positive, negative = _by_score(labels, scores)
  return float(_auroc(positive, negative))


def auprc(labels: np.ndarray, scores: np.ndarray) -> float:
  """Average precision: the mean precision at each positive.

  Args:
    labels: `[n]`, 0 or 1.
    scores: `[n]` numbers.

  Returns:
    From 0 to 1, of chance the share of positives; NaN without positives.

  Example:
    >>> auprc(np.array([0, 1, 1]), np.array([0.2, 0.1, 0.3])).__round__(3)
    0.833

  Source: Davis and Goadrich, 2006, https://doi.org/10.1145/1143844.1143874.
  """
  positive, negative = _by_score(labels, scores)
  return float(_auprc(positive, negative))


def _by_score(
  labels: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Positives and negatives at each different score, ascending."""
  _, place = np.unique(scores, return_inverse=True)
  size = int(place.max(initial=-1)) + 1
  positive = np.bincount(place[labels == 1], minlength=size)
  negative = np.bincount(place[labels != 1], minlength=size)
  return positive.astype(np.float64), negative.astype(np.float64)


def _auroc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
  """From `[..., bins]` counts, scores ascending."""
  before = np.cumsum(negative, -1) - negative / 2
  pairs = positive.sum(-1) * negative.sum(-1)
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.sum(positive * before, -1) / pairs


def _auprc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
  """From `[..., bins]` counts, scores ascending."""
  positive, negative = positive[..., ::-1], negative[..., ::-1]
  hits = np.cumsum(positive, -1)
  shown = hits + np.cumsum(negative, -1)
  with np.errstate(invalid="ignore", divide="ignore"):
    precision = np.where(shown > 0, hits / np.maximum(shown, 1), 0)
    return np.sum(positive * precision, -1) / positive.sum(-1)


def binary(
  labels: np.ndarray, scores: np.ndarray, threshold: float = 0.5
) -> dict[str, float]:
  """All scores of a question of yes or no.

  Args:
    labels: `[n]`, 0 or 1.
    scores: `[n]`, higher for yes.
    threshold: yes from here on.

  Returns:
    `precision`, `recall`, `f1`, `mcc`, `accuracy`, `auroc`, `auprc` and
    `prevalence`, which is what chance has for `auprc`.

  Example:
    >>> binary(np.array([0, 1]), np.array([0.2, 0.9]))["f1"]
    1.0

  Source: none.
  """
  chosen = (scores >= threshold).astype(int)
  tp, fp, fn, tn = counts(labels, chosen)
  return {
    "precision": tp / max(tp + fp, 1),
    "recall": tp / max(tp + fn, 1),
    "f1": 2 * tp / max(2 * tp + fp + fn, 1),
    "mcc": mcc(labels, chosen),
    "accuracy": (tp + tn) / max(len(labels), 1),
    "auroc": auroc(labels, scores),
    "auprc": auprc(labels, scores),
    "prevalence": float(np.mean(labels == 1)),
  }


def bootstrap(
  score: Callable[[np.ndarray], float],
  groups: np.ndarray,
  *,
  draws: int = 1000,
  level: float = 0.95,
  seed: int = 0,
) -> tuple[float, float]:
  """An interval for a score, by drawing whole groups again.

  Args:
    score: `rows -> score`, of `[m]` places of rows, some of them more than
      once.
    groups: `[n]`, what rows belong together, such as those of one gene.
    draws: how many.
    level: share of the draws inside.
    seed: of the draws.

  Returns:
    The lower and the upper end.

  Example:
    >>> x = np.array([1.0, 1.0, 1.0])
    >>> bootstrap(lambda rows: x[rows].mean(), np.arange(3), draws=9)
    (1.0, 1.0)

  Source: Efron, 1979, https://doi.org/10.1214/aos/1176344552, by percentiles.
  """
  rng = np.random.default_rng(seed)
  order = np.argsort(groups, kind="stable")
  _, first = np.unique(groups[order], return_index=True)
  members = np.split(order, first[1:])
  found = []
  for _ in range(draws):
    chosen = rng.integers(len(members), size=len(members))
    found.append(score(np.concatenate([members[i] for i in chosen])))
  tail = (1 - level) / 2
  low, high = np.nanquantile(found, [tail, 1 - tail])
  return float(low), float(high)


class StreamingScores:
  """AUROC and AUPRC of many outputs, from batches that are not kept.

  Scores are rounded to half precision and counted: exact for what is rounded.
  An output takes 512 KiB.

  Args:
    outputs: how many.

  Example:
    >>> found = StreamingScores(1)
    >>> found.add(np.array([[0], [1]]), np.array([[0.1], [0.3]]))
    >>> found.auroc().tolist()
    [1.0]

  Source: the rank formula of `auroc`.
  """

  def __init__(self, outputs: int):
    self._counts = np.zeros((outputs, 2, 1 << 16), np.uint32)

  def add(self, labels: np.ndarray, scores: np.ndarray) -> None:
    """Counts `[b, outputs]` labels, 0 or 1, and scores."""
    raw = np.asarray(scores, np.float32).astype(np.float16)
    raw = raw + np.float16(0)  # Minus zero and zero are one.
    bits = raw.view(np.uint16)
    # Numbers sort as their bits do once these are turned for negative ones.
    rank = np.where(bits >> 15, ~bits, bits | np.uint16(1 << 15))
    at = np.broadcast_to(np.arange(rank.shape[1]), rank.shape)
    np.add.at(self._counts, (at, np.asarray(labels, np.int64), rank), 1)

  @property
  def positives(self) -> np.ndarray:
    """`[outputs]`, how many positives each had."""
    return self._counts[:, 1].sum(-1)

  @property
  def total(self) -> int:
    """Rows counted."""
    return int(self._counts[0].sum())

  def _each(self, rule: Callable[..., np.ndarray]) -> np.ndarray:
    rows = (x.astype(np.float64) for x in self._counts)
    return np.array([rule(x[1], x[0]) for x in rows])

  def auroc(self) -> np.ndarray:
    """`[outputs]`; NaN where an output has but one class."""
    return self._each(_auroc)

  def auprc(self) -> np.ndarray:
    """`[outputs]`; NaN where an output has no positive."""
    return self._each(_auprc)


def group_scores(
  scores: StreamingScores,
  groups: dict[str, slice],
  *,
  least: int = 50,
) -> dict[str, dict[str, float]]:
  """Medians and means over the outputs of each group.

  Outputs with fewer positives than `least`, or without negatives, are left
  out.

  Args:
    scores: counted.
    groups: name -> its outputs.
    least: positives that an output must have.

  Returns:
    Name -> `median_auroc`, `median_auprc`, their means, `prevalence` (the
    median, which is what chance has for `auprc`) and `outputs` that count.

  Source: the published figures of DeepSEA's data are medians: Nguyen et al.,
  2023, https://arxiv.org/abs/2306.15794, appendix.
  """
  positives, total = scores.positives, scores.total
  roc, prc = scores.auroc(), scores.auprc()
  counted = (positives >= max(least, 1)) & (positives < total)
  found = {}
  for name, outputs in groups.items():
    use = counted[outputs]
    row = {"outputs": float(use.sum())}
    for kind, values in (("auroc", roc), ("auprc", prc)):
      kept = values[outputs][use]
      row[f"median_{kind}"] = float(np.median(kept)) if len(kept) else math.nan
      row[f"mean_{kind}"] = float(np.mean(kept)) if len(kept) else math.nan
    share = positives[outputs][use] / max(total, 1)
    row["prevalence"] = float(np.median(share)) if len(share) else math.nan
    found[name] = row
  return found


def correct_prior(logits: np.ndarray, weight: float) -> np.ndarray:
  """Log-odds as they would be had positives not been weighted in training.

  Args:
    logits: of a model whose positives weighed `weight` in the loss.
    weight: for instance 8.

  Returns:
    `logits - ln(weight)`.

  Example:
    >>> float(correct_prior(np.array(0.0), 8.0).round(3))
    -2.079

  Source: Bayes' rule: the weight multiplies the odds. Elkan, 2001, The
  foundations of cost-sensitive learning.
  """
  return logits - math.log(weight)


def calibration_error(
  labels: np.ndarray, probabilities: np.ndarray, bins: int = 10
) -> float:
  """Mean distance of probabilities from how often they come true.

  Args:
    labels: `[n]`, 0 or 1.
    probabilities: `[n]` in [0, 1].
    bins: of equal width.

  Returns:
    From 0 to 1.

  Example:
    >>> calibration_error(np.array([0, 1]), np.array([0.0, 1.0]))
    0.0

  Source: Guo et al., 2017, https://arxiv.org/abs/1706.04599.
  """
  place = np.minimum((probabilities * bins).astype(int), bins - 1)
  size = np.bincount(place, minlength=bins)
  said = np.bincount(place, probabilities, minlength=bins)
  came = np.bincount(place, labels.astype(np.float64), minlength=bins)
  return float(np.sum(np.abs(said - came)) / max(size.sum(), 1))


def recall_at(
  labels: np.ndarray,
  scores: np.ndarray,
  false_positives: int,
) -> float:
  """The share of positives found before so many negatives are.

  Args:
    labels: `[n]`, 0 or 1.
    scores: `[n]` numbers.
    false_positives: allowed, for instance so many a million bases scanned.

  Returns:
    From 0 to 1.

  Example:
    >>> recall_at(np.array([1, 0, 1]), np.array([3.0, 2.0, 1.0]), 0)
    0.5

  Source: none.
  """
  negative = np.sort(scores[labels != 1])[::-1]
  positive = scores[labels == 1]
  if not len(positive):
    return math.nan
  if false_positives >= len(negative):
    return 1.0
  return float(np.mean(positive > negative[false_positives]))


def standard(values: Sequence[float]) -> tuple[float, float]:
  """Mean and standard error over seeds.

  Args:
    values: one a seed.

  Returns:
    The two; the error of one value is NaN.

  Example:
    >>> standard([1.0, 3.0])
    (2.0, 1.0)

  Source: none.
  """
  mean = float(np.mean(values))
  if len(values) < 2:
    return mean, math.nan
  return mean, float(np.std(values, ddof=1) / math.sqrt(len(values)))
