"""Probabilities by counting, which models are compared with."""

import numpy as np


def interpolate(
  seen: np.ndarray, wanted: np.ndarray, lower: np.ndarray, *, bits: int = 8
) -> np.ndarray:
  """Interpolated Witten-Bell probabilities in one order of contexts.

  `P_k(x | c) = (n(c, x) + m(c) P_{k-1}(x)) / (n(c) + m(c))`, where `m(c)` is
  the number of different symbols seen in the context `c`; `P_{k-1}` where `c`
  was not seen.

  Args:
    seen: `[n]` uint64, each a context shifted by `bits`, and the symbol in it.
    wanted: `[w]` uint64, whose probabilities are asked for.
    lower: `[w]` floats, their probabilities in the order below.
    bits: of a symbol.

  Returns:
    `[w]` floats.

  Example:
    >>> seen = np.array([0x0161, 0x0162], np.uint64)
    >>> interpolate(seen, seen[:1], np.array([0.5])).tolist()
    [0.5]

  Source: Bell, Cleary and Witten, 1990, Text Compression; Chen and Goodman,
  1998.
  """
  if not len(seen):
    return lower
  pairs, counts = _count(seen)
  contexts, first = _different(pairs >> np.uint64(bits))
  total = np.add.reduceat(counts, first).astype(np.float64)
  kinds = np.diff(np.append(first, len(pairs))).astype(np.float64)
  at, known = _find(contexts, wanted >> np.uint64(bits))
  pair, hit = _find(pairs, wanted)
  count = np.where(hit, counts[pair], 0)
  mixed = (count + kinds[at] * lower) / (total[at] + kinds[at])
  return np.where(known, mixed, lower)


def _different(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The different values of a sorted array, and where each begins."""
  change = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
  first = np.append(0, change)
  return ordered[first], first


def _count(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The different codes, ascending, and how often each occurs."""
  values, first = _different(np.sort(codes))
  return values, np.diff(np.append(first, len(codes)))


def _find(
  ordered: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Where each of `wanted` stands in `ordered`, and whether it does."""
  at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
  return at, ordered[at] == wanted
