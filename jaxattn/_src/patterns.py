"""Static attention patterns: which key index a query index may attend to.

A pattern is a predicate on original token indices, composed with `|`, `&` and
`-`. It is compiled at trace time, in NumPy, to the tiles that an engine visits;
see `jaxattn._src.layout`.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxattn._src.pattern_base import all_any
from jaxattn._src.pattern_base import And as And
from jaxattn._src.pattern_base import EMPTY as EMPTY
from jaxattn._src.pattern_base import FULL as FULL
from jaxattn._src.pattern_base import key_steps
from jaxattn._src.pattern_base import Not as Not
from jaxattn._src.pattern_base import Or as Or
from jaxattn._src.pattern_base import PARTIAL as PARTIAL
from jaxattn._src.pattern_base import Pattern as Pattern
from jaxattn._src.pattern_base import positive
from jaxattn._src.pattern_base import same_keys
from jaxattn._src.pattern_base import Sum as Sum
from jaxattn._src.pattern_base import Tiles as Tiles


def _between(
  low: np.ndarray, high: np.ndarray, floor: float, ceiling: float
) -> np.ndarray:
  """Class of tiles whose quantity spans `[low, high]`, wanted in a range."""
  full = (low >= floor) & (high <= ceiling)
  empty = (high < floor) | (low > ceiling)
  return np.where(full, FULL, np.where(empty, EMPTY, PARTIAL)).astype(np.int8)


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

  def mask(self, i: Any, j: Any) -> Any:
    return (i == i) & (j == j)

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

  def mask(self, i: Any, j: Any) -> Any:
    distance = j - i
    near = distance == distance
    if self.left is not None:
      near = near & (distance >= -self.left)
    if self.right is not None:
      near = near & (distance <= self.right)
    return near

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    low = cols.low[None, :] - rows.high[:, None]
    high = cols.high[None, :] - rows.low[:, None]
    return _between(low, high, _reach(self.left, -1), _reach(self.right, 1))

  @property
  def toeplitz(self) -> bool:
    return True

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    if self.left is None or self.right is None:
      return None
    return key_steps(i, -self.left, self.right, 1, length)


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
    positive("stride", self.stride)

  def mask(self, i: Any, j: Any) -> Any:
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

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    last = -(-length // self.stride) - 1
    return key_steps(i % self.stride, 0, last, self.stride, length)


@dataclasses.dataclass(frozen=True)
class Dilated(And):
  """A window over every `dilation`-th token; made by `dilated`.

  Attributes:
    first: the window.
    second: the stride.

  Example:
    >>> pattern = Dilated(Window(2, 0), Strided(2))
    >>> pattern.mask(4, np.arange(6)).astype(int).tolist()
    [0, 0, 1, 0, 1, 0]

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 3.1.
  """

  first: Window
  second: Strided

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    left, right, step = self.first.left, self.first.right, self.second.stride
    if left is None or right is None:
      return super().keys(i, length)
    return key_steps(i, -(left // step), right // step, step, length)


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
  positive("dilation", dilation)
  window = Window(
    None if left is None else left * dilation,
    None if right is None else right * dilation,
  )
  return window if dilation == 1 else Dilated(window, Strided(dilation))


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
    positive("size", self.size)

  def mask(self, i: Any, j: Any) -> Any:
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

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    start = (i // self.size - self.before) * self.size
    chunks = self.before + self.after + 1
    return key_steps(start, 0, chunks * self.size - 1, 1, length)


@dataclasses.dataclass(frozen=True)
class Summary(Pattern):
  """The last columns of every chunk of `stride`, seen by all queries.

  Attributes:
    stride: tokens in a chunk.
    size: columns of each chunk that everybody sees.
    shift: how many columns stand behind them in the chunk; heads that differ
      in it look at different columns.

  Example:
    >>> Summary(3, 1).mask(7, np.arange(6)).astype(int).tolist()
    [0, 0, 1, 0, 0, 1]

  Source: Child et al., 2019, https://arxiv.org/abs/1904.10509, section 4.3
  (0-indexed: `j mod stride` in `[stride - shift - size, stride - shift)`).
  """

  stride: int
  size: int = 1
  shift: int = 0

  def __post_init__(self) -> None:
    positive("stride", self.stride)
    positive("size", self.size)
    if self.shift < 0 or self.size + self.shift > self.stride:
      raise ValueError(
        f"size + shift must be in [1, stride={self.stride}] and shift not "
        f"negative, got size={self.size}, shift={self.shift}."
      )

  def mask(self, i: Any, j: Any) -> Any:
    last = self.stride - self.shift
    seen = (j % self.stride >= last - self.size) & (j % self.stride < last)
    return seen & (i == i)

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    seen = self.mask(0, cols.index)
    one = all_any(np.all(seen, 1), np.any(seen, 1))
    return np.broadcast_to(one[None, :], (rows.num, cols.num))

  def columns(self, length: int) -> np.ndarray | None:
    index = np.arange(length)
    return index[self.mask(0, index)]

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    index = np.arange(length)
    return same_keys(i, index[self.mask(0, index)], length)


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

  def mask(self, i: Any, j: Any) -> Any:
    row, col = i < self.num, j < self.num
    return (row & self.rows & (j == j)) | (col & self.cols & (i == i))

  def classes(self, rows: Tiles, cols: Tiles) -> np.ndarray:
    row = all_any(rows.high < self.num, rows.low < self.num) * self.rows
    col = all_any(cols.high < self.num, cols.low < self.num) * self.cols
    return np.maximum(row[:, None], col[None, :]).astype(np.int8)

  def keys(self, i: Any, length: int) -> tuple[Any, Any] | None:
    if self.rows:
      return None
    return same_keys(i, np.arange(self.num * self.cols), length)
