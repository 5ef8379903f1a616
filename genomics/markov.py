"""Markov models of DNA: the floor of every language model on it."""

from collections.abc import Sequence

import numpy as np

from genomics import alphabet
from genomics import tokenizers


def _interpolate(counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
  """Witten and Bell's rule, `[contexts, 4]` each."""
  total = counts.sum(-1, keepdims=True)
  kinds = np.sum(counts > 0, -1, keepdims=True)
  mixed = (counts + kinds * lower) / np.maximum(total + kinds, 1)
  return np.where(total > 0, mixed, lower)


class Causal:
  """The base after k others, interpolated with all shorter contexts.

  With n(c, b) the count of base b after the k bases c, n(c) its sum and T(c)
  the number of different bases seen after c,

    P_k(b | c) = (n(c, b) + T(c) P_{k-1}(b | c')) / (n(c) + T(c)),

  where c' lacks the first base of c, and P_{-1} is uniform.

  Args:
    order: k.
    train: sequences of codes to count in.
    both_strands: whether to count in their reverse complements too.

  Example:
    >>> train = [alphabet.encode("ACGT" * 50)]
    >>> Causal(1, train).bits(alphabet.encode("ACGT" * 5)).mean() < 0.2
    np.True_

  Source: Bell, Cleary and Witten, 1990, Text Compression.
  """

  def __init__(
    self, order: int, train: Sequence[np.ndarray], *, both_strands: bool = True
  ):
    self.order, self.both_strands = order, both_strands
    strands = list(train)
    if both_strands:
      strands += [alphabet.reverse_complement(x) for x in train]
    lower = np.full((1, 4), 0.25)
    self.tables = []
    for k in range(order + 1):
      counts = np.zeros(4 ** (k + 1))
      for codes in strands:
        number, known = tokenizers.kmer_numbers(codes, k + 1)
        counts += np.bincount(number[known], minlength=4 ** (k + 1))
      lower = _interpolate(
        counts.reshape(-1, 4), np.tile(lower, (4, 1))[: 4**k]
      )
      self.tables.append(lower)

  @property
  def name(self) -> str:
    """For reports."""
    strands = ", both strands" if self.both_strands else ""
    return f"Markov order {self.order}{strands}"

  def bits(self, codes: np.ndarray) -> np.ndarray:
    """-log2 of the probability of each known base.

    Args:
      codes: `[n]`; contexts reach back to the last unknown base.

    Returns:
      One number for each base that is known, in order.
    """
    probability = np.full(len(codes), np.nan)
    for k, table in enumerate(self.tables):
      number, known = tokenizers.kmer_numbers(codes, k + 1)
      found = table.reshape(-1)[number]
      probability[k:] = np.where(known, found, probability[k:])
    return -np.log2(probability[codes != alphabet.UNKNOWN])


class Bidirectional:
  """The base between k others on each side, interpolated with fewer.

  Args:
    sides: k.
    train: sequences of codes to count in.
    both_strands: whether to count in their reverse complements too.

  Example:
    >>> train = [alphabet.encode("ACGT" * 50)]
    >>> bits, right = Bidirectional(1, train).score(train[0])
    >>> bits.mean() < 0.2
    np.True_

  Source: as of `Causal`; a masked model must beat it.
  """

  def __init__(
    self, sides: int, train: Sequence[np.ndarray], *, both_strands: bool = True
  ):
    self.sides, self.both_strands = sides, both_strands
    strands = list(train)
    if both_strands:
      strands += [alphabet.reverse_complement(x) for x in train]
    lower = np.full((1, 4), 0.25)
    self.tables = []
    for k in range(sides + 1):
      counts = np.zeros(4 ** (2 * k) * 4)
      for codes in strands:
        number, known = _between(codes, k)
        counts += np.bincount(number[known], minlength=len(counts))
      lower = _interpolate(counts.reshape(-1, 4), _inner(lower, k))
      self.tables.append(lower)

  @property
  def name(self) -> str:
    """For reports."""
    return f"{self.sides}+{self.sides} neighbours"

  def score(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-log2 of each known base's probability, and whether it is the best guess.

    Args:
      codes: `[n]`; fewer neighbours count where one of them is not known.

    Returns:
      Two arrays, one number for each base that is known, in order.
    """
    rows = np.full((len(codes), 4), np.nan)
    for k, table in enumerate(self.tables):
      number, known = _between(codes, k)
      inside = slice(k, len(codes) - k)
      found = table[number // 4]
      rows[inside] = np.where(known[:, None], found, rows[inside])
    known = codes != alphabet.UNKNOWN
    rows, bases = rows[known], codes[known]
    chosen = np.take_along_axis(rows, bases[:, None].astype(int), 1)[:, 0]
    return -np.log2(chosen), np.argmax(rows, 1) == bases


def _between(codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of 2k neighbours and then the base between, and which are known."""
  count = max(len(codes) - 2 * k, 0)
  left = tokenizers.kmer_numbers(codes, k) if k else None
  middle = codes[k : k + count]
  known = middle < 4
  number = np.where(known, middle, 0).astype(np.int64)
  if left is not None:
    before, after = (x[:count] for x in left), (x[k + 1 :] for x in left)
    (a, ok_a), (b, ok_b) = before, after
    number = (a[:count] * 4**k + b[:count]) * 4 + number
    known = known & ok_a[:count] & ok_b[:count]
  return number, known


def _inner(lower: np.ndarray, k: int) -> np.ndarray:
  """The table of k - 1 neighbours a side, once for each of k."""
  if not k:
    return lower
  size = 4 ** (k - 1)
  table = lower.reshape(1, size, size, 1, 4)
  # The outermost on the left comes first, that on the right last.
  return np.broadcast_to(table, (4, size, size, 4, 4)).reshape(-1, 4)
