"""Static attention patterns: which key index a query index may attend to.

A pattern is a predicate on original token indices, composed with `|`, `&` and
`-`. It is compiled at trace time, in NumPy, to the tiles that an engine visits;
see `jaxattn._src.layout`.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxattn._src.pattern_base import And as And
from jaxattn._src.pattern_base import EMPTY as EMPTY
from jaxattn._src.pattern_base import FULL as FULL
from jaxattn._src.pattern_base import Not as Not
from jaxattn._src.pattern_base import Or as Or
from jaxattn._src.pattern_base import PARTIAL as PARTIAL
from jaxattn._src.pattern_base import Pattern as Pattern
from jaxattn._src.pattern_base import Tiles as Tiles


def _between(
  low: np.ndarray, high: np.ndarray, floor: float, ceiling: float
) -> np.ndarray:
  """Class of tiles whose quantity spans `[low, high]`, wanted in a range."""
  full = (low >= floor) & (high <= ceiling)
  empty = (high < floor) | (low > ceiling)
  return np.where(full, FULL, np.where(empty, EMPTY, PARTIAL)).astype(np.int8)


def _all_any(every: np.ndarray, some: np.ndarray) -> np.ndarray:
  return np.where(every, FULL, np.where(some, PARTIAL, EMPTY)).astype(np.int8)


def _reach(value: int | None, sign: int) -> float:
  return sign * np.inf if value is None else sign * value


@dataclasses.dataclass(frozen=True)
class Full(Pattern):
  """Every edge: dense attention.

  Example:
    >>> bool(Full().mask(3, 9))
    True

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762.
  """

  def mask(self, i: Any, j: Any) -> np.ndarray:
    return np.ones(np.broadcast_shapes(np.shape(i), np.shape(j)), bool)

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    return np.full((rows.num, cols.num), FULL, np.int8)

  @property
  def toeplitz(self) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Window(Pattern):
  """Keys from `left` before the query to `right` after it.

  Attributes:
    left: how many keys before the query, itself not counted; None is
      unbounded, and a negative number starts after the query.
    right: how many keys after the query; None is unbounded.

  `Window(w - 1, 0)` is a causal window of `w` tokens with the query's own.

  Example:
    >>> Window(1, 0).mask(2, np.arange(4)).astype(int).tolist()
    [0, 1, 1, 0]

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 3.1.
  """

  left: int | None = None
  right: int | None = None

  def mask(self, i: Any, j: Any) -> np.ndarray:
    distance = j - i
    low, high = _reach(self.left, -1), _reach(self.right, 1)
    return (distance >= low) & (distance <= high)

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    low = cols.low[None, :] - rows.high[:, None]
    high = cols.high[None, :] - rows.low[:, None]
    return _between(low, high, _reach(self.left, -1), _reach(self.right, 1))

  @property
  def toeplitz(self) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Causal(Window):
  """Keys at or before the query.

  Example:
    >>> Causal().mask(1, np.arange(4)).astype(int).tolist()
    [1, 1, 0, 0]

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, section 3.2.3.
  """

  left: int | None = dataclasses.field(default=None, init=False)
  right: int | None = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True)
class Strided(Pattern):
  """Keys a multiple of `stride` away from the query, before and after.

  Attributes:
    stride: tokens between two keys.

  Example:
    >>> Strided(2).mask(1, np.arange(4)).astype(int).tolist()
    [0, 1, 0, 1]

  Source: Child et al., 2019, https://arxiv.org/abs/1904.10509, section 4.3.
  """

  stride: int

  def __post_init__(self) -> None:
    _positive("stride", self.stride)

  def mask(self, i: Any, j: Any) -> np.ndarray:
    return (i - j) % self.stride == 0

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    row_low, row_high = rows.span(rows.index % self.stride)
    col_low, col_high = cols.span(cols.index % self.stride)
    low = col_low[None, :] - row_high[:, None]
    high = col_high[None, :] - row_low[:, None]
    return _between(low, high, 0, 0)

  @property
  def toeplitz(self) -> bool:
    return True

  @property
  def fold(self) -> int:
    return self.stride


def dilated(
  left: int | None = None, right: int | None = None, *, dilation: int
) -> Pattern:
  """A window over every `dilation`-th token.

  Args:
    left: how many keys before the query, `dilation` tokens apart; None is
      unbounded.
    right: how many keys after the query.
    dilation: tokens between two keys; 1 is a plain window.

  Returns:
    The pattern: query `i` sees `i + m * dilation` for `-left <= m <= right`.

  Raises:
    ValueError: if `dilation` is not positive.

  Example:
    >>> dilated(1, 1, dilation=2).mask(4, np.arange(9)).astype(int).tolist()
    [0, 0, 1, 0, 1, 0, 1, 0, 0]

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 3.1.
  """
  _positive("dilation", dilation)
  window = Window(
    None if left is None else left * dilation,
    None if right is None else right * dilation,
  )
  return window if dilation == 1 else And(window, Strided(dilation))


@dataclasses.dataclass(frozen=True)
class Chunked(Pattern):
  """Keys of the query's own chunk and of its neighbours.

  Attributes:
    size: tokens in a chunk.
    before: how many earlier chunks a query sees.
    after: how many later chunks a query sees.

  Example:
    >>> Chunked(2).mask(3, np.arange(6)).astype(int).tolist()
    [0, 0, 1, 1, 0, 0]

  Source: Liu et al., 2018, https://arxiv.org/abs/1801.10198, section 4.2.3.
  """

  size: int
  before: int = 0
  after: int = 0

  def __post_init__(self) -> None:
    _positive("size", self.size)

  def mask(self, i: Any, j: Any) -> np.ndarray:
    distance = j // self.size - i // self.size
    return (distance >= -self.before) & (distance <= self.after)

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    row_low, row_high = rows.low // self.size, rows.high // self.size
    col_low, col_high = cols.low // self.size, cols.high // self.size
    return _between(
      col_low[None, :] - row_high[:, None],
      col_high[None, :] - row_low[:, None],
      -self.before,
      self.after,
    )


@dataclasses.dataclass(frozen=True)
class Summary(Pattern):
  """The last `count` columns of every chunk of `stride`, seen by all queries.

  Attributes:
    stride: tokens in a chunk.
    count: columns at the end of each chunk that everybody sees.

  Example:
    >>> Summary(3, 1).mask(7, np.arange(6)).astype(int).tolist()
    [0, 0, 1, 0, 0, 1]

  Source: Child et al., 2019, https://arxiv.org/abs/1904.10509, section 4.3
  (0-indexed: `j mod stride >= stride - count`).
  """

  stride: int
  count: int = 1

  def __post_init__(self) -> None:
    _positive("stride", self.stride)
    if not 0 < self.count <= self.stride:
      raise ValueError(
        f"count must be in [1, stride={self.stride}], got {self.count}."
      )

  def mask(self, i: Any, j: Any) -> np.ndarray:
    seen = np.asarray(j) % self.stride >= self.stride - self.count
    return seen & np.ones(np.shape(i), bool)

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    seen = self.mask(0, cols.index)
    one = _all_any(np.all(seen, 1), np.any(seen, 1))
    return np.broadcast_to(one[None, :], (rows.num, cols.num))

  def columns(self, length: int) -> np.ndarray | None:
    index = np.arange(length)
    return index[self.mask(0, index)]


def fixed(stride: int, count: int = 1) -> Pattern:
  """The fixed factorised pattern: own chunk, and every chunk's summary.

  Args:
    stride: tokens in a chunk.
    count: summary columns at the end of each chunk.

  Returns:
    `Chunked(stride) | Summary(stride, count)`; add `& Causal()` for a decoder.

  Raises:
    ValueError: if `count` is not in `[1, stride]`.

  Example:
    >>> fixed(2).mask(2, np.arange(4)).astype(int).tolist()
    [0, 1, 1, 1]

  Source: Child et al., 2019, https://arxiv.org/abs/1904.10509, section 4.3.
  """
  return Chunked(stride) | Summary(stride, count)


@dataclasses.dataclass(frozen=True)
class Global(Pattern):
  """The first `num` tokens see everything, everything sees them.

  Attributes:
    num: how many tokens at the start are global.
    rows: whether they see every key.
    cols: whether every query sees them.

  Example:
    >>> Global(1).mask(2, np.arange(3)).astype(int).tolist()
    [1, 0, 0]

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062, section 2.
  """

  num: int
  rows: bool = True
  cols: bool = True

  def mask(self, i: Any, j: Any) -> np.ndarray:
    row, col = np.less(i, self.num), np.less(j, self.num)
    return (row & self.rows) | (col & self.cols)

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    row = _all_any(rows.high < self.num, rows.low < self.num) * self.rows
    col = _all_any(cols.high < self.num, cols.low < self.num) * self.cols
    return np.maximum(row[:, None], col[None, :]).astype(np.int8)


@dataclasses.dataclass(frozen=True)
class RandomBlocks(Pattern):
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
    _positive("num", self.num)
    _positive("block", self.block)
    if self.plan is None:
      return
    plan = np.asarray(self.plan)
    if plan.ndim != 2 or not np.issubdtype(plan.dtype, np.integer):
      raise ValueError(
        "plan must be [query blocks, num] integers, got "
        f"{plan.dtype}{plan.shape}."
      )
    object.__setattr__(self, "plan", tuple(map(tuple, plan.tolist())))

  def resolve(self, q_len: int, k_len: int) -> "Pattern":
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

  def mask(self, i: Any, j: Any) -> np.ndarray:
    i, j = np.asarray(i) // self.block, np.asarray(j) // self.block
    num_rows, num_cols = int(i.max(initial=0)) + 1, int(j.max(initial=0)) + 1
    return self._table(num_rows, num_cols)[i, j]

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    num_rows = int(rows.high.max()) // self.block + 1
    num_cols = int(cols.high.max()) // self.block + 1
    total = np.zeros((num_rows + 1, num_cols + 1), np.int64)
    total[1:, 1:] = self._table(num_rows, num_cols).cumsum(0).cumsum(1)
    r0, r1 = rows.low // self.block, rows.high // self.block + 1
    c0, c1 = cols.low // self.block, cols.high // self.block + 1
    count = total[r1][:, c1] - total[r0][:, c1] - total[r1][:, c0]
    count += total[r0][:, c0]
    area = (r1 - r0)[:, None] * (c1 - c0)[None, :]
    return _all_any(count == area, count > 0)

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


def _positive(name: str, value: int) -> None:
  if value < 1:
    raise ValueError(f"{name} must be at least 1, got {value}.")
