"""What a static attention pattern is, and how patterns compose."""

import dataclasses
from typing import Any

import numpy as np

EMPTY, PARTIAL, FULL = 0, 1, 2


class Pattern:
  """A set of edges `(i, j)`: query index `i` attends to key index `j`.

  Subclasses are frozen dataclasses, hashable and equal by value.

  Example:
    >>> from jaxattn import patterns
    >>> pattern = patterns.Window(2, 0) | patterns.Global(1)
    >>> pattern.mask(4, np.arange(6)).astype(int).tolist()
    [1, 0, 1, 1, 1, 0]

  Source: the lazily evaluated masks of splash attention
  (jax.experimental.pallas.ops.tpu).
  """

  def mask(self, i: Any, j: Any) -> np.ndarray:
    """Evaluates the predicate on integer arrays that broadcast together."""
    raise NotImplementedError

  def classes(self, rows: "Tiles", cols: "Tiles") -> np.ndarray:
    """Classifies every pair of tiles, `[rows.num, cols.num]` int8.

    EMPTY and FULL are promises; PARTIAL may stand for either and is settled by
    evaluating `mask` on the tile.
    """
    del rows, cols
    raise NotImplementedError

  def resolve(self, q_len: int, k_len: int) -> "Pattern":
    """The pattern with whatever needs the lengths drawn, e.g. random blocks."""
    del q_len, k_len
    return self

  @property
  def toeplitz(self) -> bool:
    """Whether the predicate depends on `j - i` alone."""
    return False

  @property
  def fold(self) -> int:
    """Stride whose residue classes the edges never leave; 1 when none."""
    return 1

  def columns(self, length: int) -> np.ndarray | None:
    """The few key indices that have edges, or None when there may be many."""
    del length
    return None

  def __or__(self, other: "Pattern") -> "Pattern":
    return Or(self, _pattern(other))

  def __and__(self, other: "Pattern") -> "Pattern":
    return And(self, _pattern(other))

  def __sub__(self, other: "Pattern") -> "Pattern":
    return And(self, Not(_pattern(other)))

  def __invert__(self) -> "Pattern":
    return Not(self)


def _pattern(other: Any) -> Pattern:
  if not isinstance(other, Pattern):
    raise ValueError(f"patterns combine with patterns, got {other!r}.")
  return other


class Tiles:
  """Token indices grouped in tiles, with what closed forms need of each.

  Attributes:
    index: `[num, size]` original token indices; padding repeats a real one.
    low: `[num]` smallest index of each tile.
    high: `[num]` largest index of each tile.
  """

  def __init__(self, index: np.ndarray):
    self.index = index
    self.low, self.high = index.min(1), index.max(1)

  @property
  def num(self) -> int:
    return self.index.shape[0]

  def span(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest of per-token `values`, per tile."""
    return values.min(1), values.max(1)


@dataclasses.dataclass(frozen=True)
class And(Pattern):
  """Edges of both patterns; written `a & b`.

  Example:
    >>> from jaxattn import patterns
    >>> bool(And(patterns.Causal(), patterns.Window(2, 2)).mask(3, 4))
    False

  Source: set intersection.
  """

  first: Pattern
  second: Pattern

  def resolve(self, q_len: int, k_len: int) -> Pattern:
    first = self.first.resolve(q_len, k_len)
    return And(first, self.second.resolve(q_len, k_len))

  def mask(self, i: Any, j: Any) -> np.ndarray:
    return self.first.mask(i, j) & self.second.mask(i, j)

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    return np.minimum(
      self.first.classes(rows, cols), self.second.classes(rows, cols)
    )

  @property
  def toeplitz(self) -> bool:
    return self.first.toeplitz and self.second.toeplitz

  @property
  def fold(self) -> int:
    return max(self.first.fold, self.second.fold)

  def columns(self, length: int) -> np.ndarray | None:
    found = [p.columns(length) for p in (self.first, self.second)]
    found = [c for c in found if c is not None]
    return min(found, key=len) if found else None


@dataclasses.dataclass(frozen=True)
class Or(Pattern):
  """Edges of either pattern; written `a | b`.

  Example:
    >>> from jaxattn import patterns
    >>> bool(Or(patterns.Causal(), patterns.Window(2, 2)).mask(3, 4))
    True

  Source: set union.
  """

  first: Pattern
  second: Pattern

  def resolve(self, q_len: int, k_len: int) -> Pattern:
    first = self.first.resolve(q_len, k_len)
    return Or(first, self.second.resolve(q_len, k_len))

  def mask(self, i: Any, j: Any) -> np.ndarray:
    return self.first.mask(i, j) | self.second.mask(i, j)

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    return np.maximum(
      self.first.classes(rows, cols), self.second.classes(rows, cols)
    )

  @property
  def toeplitz(self) -> bool:
    return self.first.toeplitz and self.second.toeplitz


@dataclasses.dataclass(frozen=True)
class Not(Pattern):
  """Edges that a pattern lacks; written `~a`, or `b - a` for `b & ~a`.

  Example:
    >>> from jaxattn import patterns
    >>> bool(Not(patterns.Causal()).mask(3, 4))
    True

  Source: set complement.
  """

  inner: Pattern

  def resolve(self, q_len: int, k_len: int) -> Pattern:
    return Not(self.inner.resolve(q_len, k_len))

  def mask(self, i: Any, j: Any) -> np.ndarray:
    return np.logical_not(self.inner.mask(i, j))

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    return (FULL - self.inner.classes(rows, cols)).astype(np.int8)

  @property
  def toeplitz(self) -> bool:
    return self.inner.toeplitz
