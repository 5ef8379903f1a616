"""What a static attention pattern is, and how patterns compose."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
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

  def mask(self, i: Any, j: Any) -> Any:
    """Evaluates the predicate on integer arrays that broadcast together.

    The arrays may be traced: decoding asks for tokens whose position is known
    at run time only.
    """
    raise NotImplementedError

  def count(self, i: Any, j: Any) -> Any:
    """How often each edge counts, as integers; 0 or 1 but for a `Sum`."""
    return self.mask(i, j) * 1

  @property
  def addends(self) -> tuple["Pattern", ...]:
    """Patterns without multiplicities whose sum this is."""
    return (self,)

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    """The keys of some queries, for decoding.

    Args:
      i: `[...]` int32 query indices, perhaps traced.
      length: S, number of keys.

    Returns:
      `[..., m]` int32 key indices and `[..., m]` bool, which of them are
      edges, each edge once; or None where most keys may be.
    """
    del i, length
    return None

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
    return Or(_plain(self), _plain(_pattern(other)))

  def __and__(self, other: "Pattern") -> "Pattern":
    products = [
      And(a, b) for a in self.addends for b in _pattern(other).addends
    ]
    return functools.reduce(Sum, products)

  def __sub__(self, other: "Pattern") -> "Pattern":
    return self & ~_pattern(other)

  def __add__(self, other: "Pattern") -> "Pattern":
    return Sum(self, _pattern(other))

  def __invert__(self) -> "Pattern":
    return Not(_plain(self))


def _pattern(other: Any) -> Pattern:
  if not isinstance(other, Pattern):
    raise ValueError(f"patterns combine with patterns, got {other!r}.")
  return other


def _plain(pattern: Pattern) -> Pattern:
  if len(pattern.addends) > 1:
    raise ValueError(
      "`|`, `~` and the right side of `-` are for patterns whose edges count "
      f"once; write the sum last: (a | b) + c. Got {pattern}."
    )
  return pattern


def key_steps(
  i: Any, low: int, high: int, step: int, length: int
) -> tuple[Any, Any]:
  """For `Pattern.keys`: every `step`-th key from `low` to `high` steps off."""
  offsets = step * np.arange(low, high + 1, dtype=np.int32)
  index = i[..., None] + offsets.reshape((1,) * i.ndim + (-1,))
  return inside(index, length)


def inside(index: Any, length: int) -> tuple[Any, Any]:
  """Key indices clipped to `[0, length)`, and which of them lay inside."""
  valid = (index >= 0) & (index < length)
  return jnp.clip(index, 0, length - 1), valid


def positive(name: str, value: int) -> None:
  """Raises ValueError unless `value` is at least 1."""
  if value < 1:
    raise ValueError(f"{name} must be at least 1, got {value}.")


def all_any(every: np.ndarray, some: np.ndarray) -> np.ndarray:
  """Classes of tiles, from whether all and whether some tokens have edges."""
  return np.where(every, FULL, np.where(some, PARTIAL, EMPTY)).astype(np.int8)


def same_keys(i: Any, keys: np.ndarray, length: int) -> tuple[Any, Any]:
  """For `Pattern.keys`: the same few keys for every query."""
  index = np.asarray(keys, np.int32).reshape((1,) * i.ndim + (-1,))
  index, valid = inside(index, length)
  shape = (*i.shape, index.shape[-1])
  return jnp.broadcast_to(index, shape), jnp.broadcast_to(valid, shape)


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
    second = self.second.resolve(q_len, k_len)
    return dataclasses.replace(self, first=first, second=second)

  def mask(self, i: Any, j: Any) -> Any:
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

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    pair = (self.first, self.second)
    ways = [(p.keys(i, length), q) for p, q in (pair, pair[::-1])]
    ways = [(found, other) for found, other in ways if found is not None]
    if not ways:
      return None
    (index, valid), other = min(ways, key=lambda way: way[0][0].shape[-1])
    return index, valid & other.mask(i[..., None], index)


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

  def mask(self, i: Any, j: Any) -> Any:
    return self.first.mask(i, j) | self.second.mask(i, j)

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    return np.maximum(
      self.first.classes(rows, cols), self.second.classes(rows, cols)
    )

  @property
  def toeplitz(self) -> bool:
    return self.first.toeplitz and self.second.toeplitz

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    first, second = self.first.keys(i, length), self.second.keys(i, length)
    if first is None or second is None:
      return None
    (index, valid), (more, fits) = first, second
    fits = fits & (self.first.mask(i[..., None], more) == np.False_)
    return (
      jnp.concatenate([index, more], axis=-1),
      jnp.concatenate([valid, fits], axis=-1),
    )


@dataclasses.dataclass(frozen=True)
class Sum(Pattern):
  """Edges of both patterns with multiplicity; written `a + b`.

  An edge that both have counts twice: softmax attention gives it twice the
  weight, as if the key stood there twice. `&` distributes over the sum.

  Example:
    >>> from jaxattn import patterns
    >>> pattern = Sum(patterns.Window(1, 1), patterns.Global(1, rows=False))
    >>> pattern.count(1, np.arange(4)).tolist()
    [2, 1, 1, 0]

  Source: the repeated blocks of BigBird's plans in Hugging Face Transformers,
  https://arxiv.org/abs/2007.14062.
  """

  first: Pattern
  second: Pattern

  def resolve(self, q_len: int, k_len: int) -> Pattern:
    first = self.first.resolve(q_len, k_len)
    return Sum(first, self.second.resolve(q_len, k_len))

  def mask(self, i: Any, j: Any) -> Any:
    return self.first.mask(i, j) | self.second.mask(i, j)

  def count(self, i: Any, j: Any) -> Any:
    return self.first.count(i, j) + self.second.count(i, j)

  @property
  def addends(self) -> tuple[Pattern, ...]:
    return self.first.addends + self.second.addends

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    return np.maximum(
      self.first.classes(rows, cols), self.second.classes(rows, cols)
    )


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

  def mask(self, i: Any, j: Any) -> Any:
    return self.inner.mask(i, j) == np.False_  # `~True` would be -2.

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    return (FULL - self.inner.classes(rows, cols)).astype(np.int8)

  @property
  def toeplitz(self) -> bool:
    return self.inner.toeplitz
