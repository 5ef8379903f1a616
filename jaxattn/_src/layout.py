"""Compiles a pattern to pieces: index maps and tiles, in NumPy at trace time.

A piece is attention between tiles of re-indexed queries and keys. A strided
term is re-indexed by residue classes, so that a stride of `s` costs `1/s` of
the tiles instead of all of them; a term that touches few columns gathers them
first. Pieces are disjoint: each leaves out the edges of the earlier ones.
"""

import dataclasses
import functools
import hashlib
import itertools

import numpy as np

from jaxattn._src import block_patterns
from jaxattn._src import patterns

_TILES = {32: 1.6, 64: 1.15, 128: 1.0}  # Relative cost of a score, by tile.
_STRIP = 1 << 22  # Tile pairs classified at a time.


def _ceil(size: int, part: int) -> int:
  return -(-size // part)


@dataclasses.dataclass(frozen=True)
class Fold:
  """Tokens grouped by residue class modulo `stride`, each cut in tiles.

  Attributes:
    length: tokens in the original order.
    stride: number of residue classes; 1 keeps the order.
    tile: tokens in a tile.
  """

  length: int
  stride: int
  tile: int

  @property
  def per_class(self) -> int:
    """Tiles of one residue class."""
    return _ceil(_ceil(self.length, self.stride), self.tile)

  @property
  def num(self) -> int:
    """Tiles in all."""
    return self.stride * self.per_class

  @functools.cached_property
  def index(self) -> np.ndarray:
    """`[num, tile]` original indices; those from `length` on are padding."""
    place = np.arange(self.per_class * self.tile) * self.stride
    index = place[None, :] + np.arange(self.stride)[:, None]
    return index.reshape(self.num, self.tile)

  @functools.cached_property
  def real(self) -> np.ndarray:
    """`[num, tile]` bool, False at padding."""
    return self.index < self.length


@dataclasses.dataclass(frozen=True)
class Columns:
  """A subset of the tokens, cut in tiles.

  Attributes:
    columns: the original indices, ascending.
    tile: tokens in a tile.
  """

  columns: tuple[int, ...]
  tile: int

  @property
  def num(self) -> int:
    """Tiles in all."""
    return _ceil(len(self.columns), self.tile)

  @functools.cached_property
  def index(self) -> np.ndarray:
    """`[num, tile]` original indices; padding repeats the last."""
    pad = self.num * self.tile - len(self.columns)
    return np.pad(self.columns, (0, pad), mode="edge").reshape(-1, self.tile)

  @functools.cached_property
  def real(self) -> np.ndarray:
    """`[num, tile]` bool, False at padding."""
    real = np.arange(self.num * self.tile) < len(self.columns)
    return real.reshape(-1, self.tile)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """The tiles with edges, sorted by row, full ones first in each row.

  Attributes:
    num_rows: tiles of queries.
    num_cols: tiles of keys.
    rows: `[T]` int32, the query tile of each listed pair.
    cols: `[T]` int32, its key tile.
    table: `[T]` int32, 0 for a full pair, else which of `masks` it has.
    masks: `[1 + U, bq, bk]` bool; each distinct mask is stored once, and
      `masks[0]` is all True.
  """

  num_rows: int
  num_cols: int
  rows: np.ndarray
  cols: np.ndarray
  table: np.ndarray
  masks: np.ndarray

  @functools.cached_property
  def digest(self) -> str:
    """Names the content, for equality."""
    parts = (self.rows, self.cols, self.table, self.masks)
    shape = (self.num_rows, self.num_cols, *self.masks.shape)
    text = b"".join(np.ascontiguousarray(x).tobytes() for x in parts)
    return hashlib.sha1(text + repr(shape).encode()).hexdigest()

  def __hash__(self) -> int:
    return hash(self.digest)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Layout) and other.digest == self.digest

  @property
  def tiles(self) -> int:
    """Pairs of tiles with edges."""
    return len(self.rows)

  @property
  def scores(self) -> int:
    """Scores computed: tiles times their area."""
    return self.tiles * self.masks.shape[1] * self.masks.shape[2]

  def dense(self) -> np.ndarray:
    """`[num_rows * bq, num_cols * bk]` bool, for tests and drawings."""
    _, bq, bk = self.masks.shape
    out = np.zeros((self.num_rows, bq, self.num_cols, bk), bool)
    for row, col, table in zip(self.rows, self.cols, self.table, strict=True):
      out[row, :, col] = self.masks[table]
    return out.reshape(self.num_rows * bq, self.num_cols * bk)


@dataclasses.dataclass(frozen=True)
class Piece:
  """One re-indexing of queries and keys, and the tiles between them.

  Attributes:
    query: index map of the queries.
    key: index map of the keys.
    layout: tiles between them.
    pattern: the edges it owns, in original indices.
  """

  query: Fold
  key: Fold | Columns
  layout: Layout
  pattern: patterns.Pattern

  def edges(self) -> np.ndarray:
    """`[T, S]` int, how often each original edge occurs, for tests."""
    dense = self.layout.dense()
    out = np.zeros((self.query.length, int(self.key.index.max()) + 1), np.int64)
    q, k = self.query.index.reshape(-1), self.key.index.reshape(-1)
    real_q, real_k = self.query.real.reshape(-1), self.key.real.reshape(-1)
    block = dense[real_q][:, real_k].astype(np.int64)
    np.add.at(out, (q[real_q][:, None], k[real_k][None, :]), block)
    return out


@functools.lru_cache(maxsize=256)
def compile_pattern(
  pattern: patterns.Pattern,
  q_len: int,
  k_len: int,
  tile: int | None = None,
  *,
  whole: bool = False,
) -> tuple[Piece, ...]:
  """Compiles a pattern to pieces whose edges are exactly its own.

  The pieces are disjoint, but for those of different addends of a sum.

  Args:
    pattern: edges in original indices.
    q_len: T.
    k_len: S.
    tile: tokens in a tile; None chooses by a cost model.
    whole: whether tiles have this size even where there are fewer tokens.

  Returns:
    The pieces; none when the pattern is empty.
  """
  pattern = pattern.resolve(q_len, k_len)
  if len(pattern.addends) > 1:
    compiled = [
      compile_pattern(p, q_len, k_len, tile, whole=whole)
      for p in pattern.addends
    ]
    return tuple(itertools.chain(*compiled))
  groups = _groups(_terms(pattern), q_len, k_len, tile)
  pieces, earlier = [], None
  for (stride, columns), terms in groups.items():
    union = functools.reduce(patterns.Or, terms)
    owned = union if earlier is None else union - earlier
    earlier = union if earlier is None else earlier | union
    query, key = _maps(stride, columns, owned, q_len, k_len, tile, whole)
    layout = _layout(owned, query, key)
    if layout.tiles:
      pieces.append(Piece(query, key, layout, owned))
  return tuple(pieces)


def _terms(pattern: patterns.Pattern) -> list[patterns.Pattern]:
  """Writes a pattern as a union of terms, distributing `&` over `|`."""
  if isinstance(pattern, patterns.Or):
    return _terms(pattern.first) + _terms(pattern.second)
  if isinstance(pattern, patterns.And):
    return [
      patterns.And(a, b)
      for a in _terms(pattern.first)
      for b in _terms(pattern.second)
    ]
  if isinstance(pattern, block_patterns.Moved):
    return [
      dataclasses.replace(pattern, inner=p) for p in _terms(pattern.inner)
    ]
  return [pattern]


def _groups(
  terms: list[patterns.Pattern], q_len: int, k_len: int, tile: int | None
) -> dict[tuple[int, tuple[int, ...] | None], list[patterns.Pattern]]:
  """Terms by how they are re-indexed; plain ones first, to own the overlaps."""
  found: dict[tuple[int, tuple[int, ...] | None], list] = {(1, None): []}
  for term in dict.fromkeys(terms):
    columns = term.columns(k_len)
    ways: list[tuple[int, tuple[int, ...] | None]] = [(1, None)]
    if term.fold > 1:
      ways.append((term.fold, None))
    if columns is not None and 0 < len(columns) < k_len:
      ways.append((1, tuple(columns.tolist())))
    best = ways[0]
    if len(ways) > 1:
      best = min(ways, key=lambda way: _cost(term, *way, q_len, k_len, tile))
    found.setdefault(best, []).append(term)
  return {way: group for way, group in found.items() if group}


def _cost(
  pattern: patterns.Pattern,
  stride: int,
  columns: tuple[int, ...] | None,
  q_len: int,
  k_len: int,
  tile: int | None,
) -> float:
  """Scores that a re-indexing computes, weighted by the cost of its tile."""
  query, key = _maps(stride, columns, pattern, q_len, k_len, tile)
  count = sum(len(r) for r, _, _ in _classified(pattern, query, key))
  weight = np.interp(query.tile, list(_TILES), list(_TILES.values()))
  return count * query.tile * key.tile * float(weight)


def _maps(
  stride: int,
  columns: tuple[int, ...] | None,
  pattern: patterns.Pattern,
  q_len: int,
  k_len: int,
  tile: int | None,
  whole: bool = False,
) -> tuple[Fold, Fold | Columns]:
  """Index maps of a way of re-indexing, with the cheaper tile if none given."""
  k_size = len(columns) if columns else _ceil(k_len, stride)

  def maps(size: int) -> tuple[Fold, Fold | Columns]:
    # No wider than the tokens there are, in steps of a vector register.
    bq = min(size, 8 * _ceil(_ceil(q_len, stride), 8))
    bk = min(size, 8 * _ceil(k_size, 8))
    if whole:
      bq = bk = size
    query = Fold(q_len, stride, bq)
    return query, Columns(columns, bk) if columns else Fold(k_len, stride, bk)

  if tile is not None:
    return maps(tile)
  best, cheapest = maps(128), np.inf
  for size in (128, 64):
    query, key = maps(size)
    count = sum(len(r) for r, _, _ in _classified(pattern, query, key))
    cost = count * query.tile * key.tile * _TILES[size]
    if cost < cheapest:
      best, cheapest = (query, key), cost
  return best


def _classified(pattern, query: Fold, key: Fold | Columns):
  """Yields `(rows, cols, classes)` of the tiles that may have edges."""
  cols = patterns.Tiles(key.index)
  strip = max(1, _STRIP // cols.num)
  for start in range(0, query.num, strip):
    rows = patterns.Tiles(query.index[start : start + strip])
    classes = pattern.classes(rows, cols)
    some = np.any(query.real[start : start + strip], 1)
    classes = np.where(some[:, None], classes, patterns.EMPTY)
    r, c = np.nonzero(classes)
    yield r + start, c, classes[r, c]


def _layout(
  pattern: patterns.Pattern, query: Fold, key: Fold | Columns
) -> Layout:
  parts = list(_classified(pattern, query, key))
  rows, cols, classes = (np.concatenate(x) for x in zip(*parts, strict=True))
  padded = ~np.all(key.real, 1)
  table = np.where((classes == patterns.FULL) & ~padded[cols], 0, -1)
  (open_,) = np.nonzero(table)
  masks = [np.ones((query.tile, key.tile), bool)]
  known = {np.packbits(masks[0]).tobytes(): 0}
  shape_of, shapes = _alike(pattern, query, key, rows[open_], cols[open_])
  ids = np.empty(len(shapes), np.int64)
  for start in range(0, len(shapes), 128):
    pick = open_[shapes[start : start + 128]]
    found = pattern.mask(
      query.index[rows[pick]][:, :, None], key.index[cols[pick]][:, None, :]
    )
    found = found & key.real[cols[pick]][:, None, :]
    for at, mask in enumerate(found, start):
      name = np.packbits(mask).tobytes()
      if not mask.any():
        ids[at] = -1
        continue
      if name not in known:
        known[name] = len(masks)
        masks.append(mask)
      ids[at] = known[name]
  table[open_] = ids[shape_of]
  keep = table >= 0
  rows, cols, table = rows[keep], cols[keep], table[keep]
  order = np.lexsort((cols, table > 0, rows))
  return Layout(
    num_rows=query.num,
    num_cols=key.num,
    rows=rows[order].astype(np.int32),
    cols=cols[order].astype(np.int32),
    table=table[order].astype(np.int32),
    masks=np.stack(masks),
  )


def _alike(
  pattern: patterns.Pattern,
  query: Fold,
  key: Fold | Columns,
  rows: np.ndarray,
  cols: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds pairs of tiles that must have equal masks.

  Returns:
    For every pair which distinct shape it has, and one pair of each shape.
  """
  if not pattern.toeplitz or isinstance(key, Columns):
    every = np.arange(len(rows))
    return every, every
  distance = key.index[cols, 0] - query.index[rows, 0]
  padded = ~np.all(key.real, 1)
  shape = np.stack([distance, np.where(padded[cols], cols, -1)])
  _, first, inverse = np.unique(
    shape, axis=1, return_index=True, return_inverse=True
  )
  return inverse.reshape(-1), first


def stack(layouts: tuple[Layout, ...]) -> Layout:
  """Stacks the layouts of several heads along both tile axes.

  Args:
    layouts: one per head, of equal sizes.

  Returns:
    The layout over `heads * num_rows` and `heads * num_cols` tiles.
  """
  masks = [layouts[0].masks[0]]
  known = {np.packbits(masks[0]).tobytes(): 0}
  rows, cols, table = [], [], []
  for head, layout in enumerate(layouts):
    ids = np.zeros(len(layout.masks), np.int32)
    for at, mask in enumerate(layout.masks):
      name = np.packbits(mask).tobytes()
      if name not in known:
        known[name] = len(masks)
        masks.append(mask)
      ids[at] = known[name]
    rows.append(layout.rows + head * layout.num_rows)
    cols.append(layout.cols + head * layout.num_cols)
    table.append(ids[layout.table])
  return Layout(
    num_rows=len(layouts) * layouts[0].num_rows,
    num_cols=len(layouts) * layouts[0].num_cols,
    rows=np.concatenate(rows),
    cols=np.concatenate(cols),
    table=np.concatenate(table),
    masks=np.stack(masks),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """Rows of similar degree, processed together.

  Attributes:
    rows: `[R]` int32.
    cols: `[R, D]` int32, the tiles that each row visits, full ones first.
    table: `[R, D]` int32, their masks; the last of the layout's masks plus one
      stands for an empty slot.
    num_full: how many leading slots are full in every row.
  """

  rows: np.ndarray
  cols: np.ndarray
  table: np.ndarray
  num_full: int


@functools.lru_cache(maxsize=256)
def groups(layout: Layout, *, transpose: bool = False) -> tuple[Group, ...]:
  """Groups rows by degree, so that none pays for the longest.

  Args:
    layout: the tiles.
    transpose: whether rows are key tiles, as in the backward pass.

  Returns:
    Groups that together hold every row with edges exactly once.
  """
  rows = layout.cols if transpose else layout.rows
  cols = layout.rows if transpose else layout.cols
  order = np.lexsort((cols, layout.table > 0, rows))
  rows, cols, table = rows[order], cols[order], layout.table[order]
  num = layout.num_cols if transpose else layout.num_rows
  degree = np.bincount(rows, minlength=num)
  full = np.bincount(rows, weights=table == 0, minlength=num).astype(int)
  start = np.concatenate([[0], np.cumsum(degree)])
  kinds, kind_of = np.unique(
    np.stack([degree, full], 1), axis=0, return_inverse=True
  )
  counts = np.bincount(kind_of.reshape(-1))
  out = []
  for first, last in _partition(kinds, counts):
    width = int(kinds[first:last, 0].max())
    if width == 0:
      continue
    kind = kind_of.reshape(-1)
    (members,) = np.nonzero((kind >= first) & (kind < last) & (degree > 0))
    slot = np.arange(width)
    at = start[members][:, None] + np.minimum(slot, degree[members, None] - 1)
    used = slot < degree[members][:, None]
    out.append(
      Group(
        rows=members.astype(np.int32),
        cols=cols[at],
        table=np.where(used, table[at], len(layout.masks)).astype(np.int32),
        num_full=int(full[members].min()),
      )
    )
  return tuple(out)


def _partition(kinds: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
  """Cuts kinds of rows `(degree, full)`, sorted, in runs of least cost.

  A run costs its rows times its longest degree, masked slots a little more,
  plus a fixed price for the loop that every run compiles to.
  """
  num = len(kinds)
  price = 4 + 0.03 * float((kinds[:, 0] * counts).sum())
  best, cut = np.full(num + 1, np.inf), np.zeros(num + 1, int)
  best[0] = 0
  for last in range(1, num + 1):
    width = kinds[last - 1, 0]
    rows, full = 0, np.inf
    for first in range(last - 1, max(-1, last - 513), -1):
      rows += counts[first]
      full = min(full, kinds[first, 1])
      cost = best[first] + price + rows * (width + 0.15 * (width - full))
      if cost < best[last]:
        best[last], cut[last] = cost, first
  runs, last = [], num
  while last > 0:
    runs.append((int(cut[last]), last))
    last = cut[last]
  return runs[::-1]
