"""Patterns that are given by a plan, or that leave out leading tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import pattern_base


@dataclasses.dataclass(frozen=True)
class Moved(pattern_base.Pattern):
  """A pattern on the tokens from index `by` on, which it counts from 0.

  Attributes:
    inner: the pattern.
    by: how many tokens at the start take no part, for example global ones.

  Example:
    >>> from jaxattn import patterns
    >>> pattern = Moved(patterns.Chunked(2), 1)
    >>> pattern.mask(2, np.arange(5)).astype(int).tolist()
    [0, 1, 1, 0, 0]

  Source: the extra tokens of Zaheer et al., 2020,
  https://arxiv.org/abs/2007.14062, section 2 (BigBird-ETC).
  """

  inner: pattern_base.Pattern
  by: int

  def __post_init__(self) -> None:
    if self.by < 0:
      raise ValueError(f"by must not be negative, got {self.by}.")

  def resolve(self, q_len: int, k_len: int) -> pattern_base.Pattern:
    rest = (max(q_len - self.by, 1), max(k_len - self.by, 1))
    return Moved(self.inner.resolve(*rest), self.by)

  def mask(self, i: Any, j: Any) -> Any:
    # Clipped, because patterns promise nothing about negative indices.
    row, col = ((abs(x - self.by) + x - self.by) // 2 for x in (i, j))
    taking_part = (i >= self.by) & (j >= self.by)
    return self.inner.mask(row, col) & taking_part

  def count(self, i: Any, j: Any) -> Any:
    return sum(p.mask(i, j) * 1 for p in self.addends)

  @property
  def addends(self) -> tuple[pattern_base.Pattern, ...]:
    addends = self.inner.addends
    return tuple(Moved(p, self.by) for p in addends) if addends[1:] else (self,)

  def classes(
    self, rows: pattern_base.Tiles, cols: pattern_base.Tiles
  ) -> np.ndarray:
    inner = self.inner.classes(
      *(
        pattern_base.Tiles(np.maximum(t.index - self.by, 0))
        for t in (rows, cols)
      )
    )
    row, col = (
      pattern_base.all_any(t.low >= self.by, t.high >= self.by)
      for t in (rows, cols)
    )
    return np.minimum(inner, np.minimum(row[:, None], col[None, :]))

  @property
  def toeplitz(self) -> bool:
    return self.by == 0 and self.inner.toeplitz

  @property
  def fold(self) -> int:
    return self.inner.fold

  def columns(self, length: int) -> np.ndarray | None:
    found = self.inner.columns(max(length - self.by, 0))
    return None if found is None else found + self.by

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    rest = max(length - self.by, 1)
    found = self.inner.keys(jnp.maximum(i - self.by, 0), rest)
    if found is None or length <= self.by:
      return None
    index, valid = found
    return index + self.by, valid & (i >= self.by)[..., None]


@dataclasses.dataclass(frozen=True)
class RandomBlocks(pattern_base.Pattern):
  """Every block of queries sees `num` blocks of keys drawn at random.

  The draw is static: the same seed and lengths give the same blocks in every
  process.

  Attributes:
    num: key blocks per query block, distinct.
    block: tokens in a block.
    seed: of the draw.
    plan: instead of a draw, `[query blocks, num]` key blocks as an integer
      array or nested tuples; -1 is an empty slot.

  Example:
    >>> pattern = RandomBlocks(1, 2, plan=((1,), (0,)))
    >>> pattern.mask(0, np.arange(4)).astype(int).tolist()
    [0, 0, 1, 1]

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062, appendix D.
  Differs: blocks are drawn over the whole length.
  """

  num: int
  block: int
  seed: int = 0
  plan: Any = None

  def __post_init__(self) -> None:
    pattern_base.positive("num", self.num)
    pattern_base.positive("block", self.block)
    if self.plan is None:
      return
    plan = np.asarray(self.plan)
    if plan.ndim != 2 or not np.issubdtype(plan.dtype, np.integer):
      raise ValueError(
        "plan must be [query blocks, num] integers, got "
        f"{plan.dtype}{plan.shape}."
      )
    object.__setattr__(self, "plan", tuple(map(tuple, plan.tolist())))

  def resolve(self, q_len: int, k_len: int) -> pattern_base.Pattern:
    if self.plan is not None:
      return self
    num_rows, num_cols = -(-q_len // self.block), -(-k_len // self.block)
    count = min(self.num, num_cols)
    plan = [
      # Each row has a generator of its own: a longer input adds rows.
      np.random.default_rng((self.seed, row)).choice(
        num_cols, count, replace=False
      )
      for row in range(num_rows)
    ]
    return dataclasses.replace(self, plan=np.reshape(plan, (num_rows, count)))

  def mask(self, i: Any, j: Any) -> Any:
    if self.plan is None:
      raise ValueError("a random draw needs the lengths: call resolve first.")
    col = j // self.block
    if not isinstance(col, jax.Array):
      col = np.asarray(col)
    return (self._slots(i) == col[..., None]).any(-1)

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    slots = self._slots(i)
    places = range(slots.shape[-1])
    first = jnp.stack(
      [(slots[..., :p] != slots[..., p : p + 1]).all(-1) for p in places], -1
    )
    token = np.arange(self.block, dtype=np.int32)
    token = token.reshape((1,) * slots.ndim + (-1,))
    index, valid = pattern_base.inside(
      slots[..., None] * self.block + token, length
    )
    valid = valid & (first & (slots >= 0))[..., None]
    shape = (*slots.shape[:-1], -1)
    return index.reshape(shape), valid.reshape(shape)

  def _slots(self, i: Any) -> Any:
    """`[..., num]` key blocks of query indices, -1 where there is none."""
    if self.plan is None:
      raise ValueError("a random draw needs the lengths: call resolve first.")
    plan = np.asarray(self.plan, np.int32).reshape(len(self.plan), -1)
    plan = np.pad(plan, ((0, 1), (0, 0)), constant_values=-1)
    row = i // self.block
    if not isinstance(row, jax.Array):
      return plan[np.minimum(row, len(plan) - 1)]
    return jnp.asarray(plan)[jnp.minimum(row, len(plan) - 1)]

  def classes(
    self, rows: pattern_base.Tiles, cols: pattern_base.Tiles
  ) -> np.ndarray:
    num_rows = int(rows.high.max()) // self.block + 1
    num_cols = int(cols.high.max()) // self.block + 1
    table = self._table(num_rows, num_cols)
    r0, r1 = rows.low // self.block, rows.high // self.block + 1
    c0, c1 = cols.low // self.block, cols.high // self.block + 1
    if np.all(r1 - r0 == 1) and np.all(c1 - c0 == 1):
      return table[r0][:, c0] * np.int8(pattern_base.FULL)
    total = np.zeros((num_rows + 1, num_cols + 1), np.int32)
    total[1:, 1:] = table.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    count = total[r1][:, c1] - total[r0][:, c1] - total[r1][:, c0]
    count += total[r0][:, c0]
    area = (r1 - r0)[:, None] * (c1 - c0)[None, :]
    return pattern_base.all_any(count == area, count > 0)

  def _table(self, num_rows: int, num_cols: int) -> np.ndarray:
    """`[num_rows, num_cols]` bool: which query block sees which."""
    if self.plan is None:
      raise ValueError("a random draw needs the lengths: call resolve first.")
    table = np.zeros((num_rows, num_cols), bool)
    plan = np.asarray(self.plan[:num_rows])
    for slot in plan.T:
      (row,) = np.nonzero((slot >= 0) & (slot < num_cols))
      table[row, slot[row]] = True
    return table
