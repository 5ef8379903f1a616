"""What a kernel must know of a layout: which tiles every row visits."""

import dataclasses
import functools

import numpy as np

from jaxattn._src import layout as layout_lib

# A row of more tiles than this many mean ones is computed in parts.
_LONGEST = 2


@dataclasses.dataclass(frozen=True)
class Band:
  """Masks in closed form: `low <= s - p + offset <= high`, and a last column.

  Attributes:
    low: least distance from row to column that has an edge, or None.
    high: greatest such distance, or None.
    end: columns from here on have no edge, or None.
  """

  low: int | None
  high: int | None
  end: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """Runs of tiles, the longest first; each is computed by one block of threads.

  Attributes:
    head: `[V]` int32, the head of a run; None if all heads have the same runs.
    row: `[V]` int32, the row tile of a run.
    slot: `[V]` int32, which tile of the output it writes: its row, or one
      behind all rows for a further part of a row in parts.
    start: `[V]` int32, where its tiles begin in `cols`.
    full: `[V]` int32, how many of them need no mask; they come first.
    degree: `[V]` int32, how many there are.
    cols: `[T]` int32, the column tiles.
    table: `[T]` int32, the masks of the tiles.
    num_rows: row tiles of a head.
    num_slots: output tiles of a head.
    parts: `[heads or 1, S, P]` int32, the slots of rows in parts, of which the
      first is the row itself; -1 pads.
  """

  head: np.ndarray | None
  row: np.ndarray
  slot: np.ndarray
  start: np.ndarray
  full: np.ndarray
  degree: np.ndarray
  cols: np.ndarray
  table: np.ndarray
  num_rows: int
  num_slots: int
  parts: np.ndarray

  @property
  def num_partial(self) -> int:
    """Tiles that need a mask."""
    return int((self.degree - self.full).sum())


@functools.lru_cache(maxsize=256)
def rows(
  layout: layout_lib.Layout, heads: int | None, *, transpose: bool = False
) -> Rows:
  """Lists the runs of a layout.

  Args:
    layout: tiles, full ones first in each row.
    heads: how many heads are stacked in the layout; None if it is that of all.
    transpose: whether rows are tiles of keys.

  Returns:
    The runs. Rows without tiles have one too, of degree 0.
  """
  row, col = layout.rows, layout.cols
  num, width = layout.num_rows, layout.num_cols
  if transpose:
    row, col, num, width = col, row, width, num
  order = np.lexsort((col, layout.table > 0, row))
  row, col, table = row[order], col[order], layout.table[order]
  degree = np.bincount(row, minlength=num)
  full = np.bincount(row, weights=table == 0, minlength=num).astype(np.int64)
  first = np.concatenate([[0], np.cumsum(degree)])[:-1]
  limit = max(8, _LONGEST * -(-int(degree.sum()) // num))
  count = np.maximum(1, -(-degree // limit))
  owner = np.repeat(np.arange(num), count)
  part = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
  # Parts of equal length: the last would else be a short one.
  size = -(-degree[owner] // count[owner])
  begin = np.minimum(part * size, degree[owner])
  length = np.minimum(size, degree[owner] - begin)
  per_head = num // (heads or 1)
  head, local = owner // per_head, owner % per_head
  slot, extra = local.copy(), part > 0
  for h in range(heads or 1):
    (more,) = np.nonzero(extra & (head == h))
    slot[more] = per_head + np.arange(len(more))
  longest_first = np.argsort(-length, kind="stable")

  def pick(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[longest_first], np.int32)

  return Rows(
    head=None if heads is None else pick(head),
    row=pick(local),
    slot=pick(slot),
    start=pick(first[owner] + begin),
    full=pick(np.clip(full[owner] - begin, 0, length)),
    degree=pick(length),
    cols=(col % (width // (heads or 1))).astype(np.int32),
    table=table.astype(np.int32),
    num_rows=per_head,
    num_slots=int(slot.max()) + 1,
    parts=_parts(owner, slot, count, heads or 1, per_head),
  )


def _parts(
  owner: np.ndarray,
  slot: np.ndarray,
  count: np.ndarray,
  heads: int,
  per_head: int,
) -> np.ndarray:
  """Slots of the rows that are computed in parts."""
  (split,) = np.nonzero(count > 1)
  found: list[list[np.ndarray]] = [[] for _ in range(heads)]
  for row in split:
    found[row // per_head].append(slot[owner == row])
  most = max((len(f) for f in found), default=0)
  out = np.full((heads, most, int(count.max())), -1, np.int32)
  for head, slots in enumerate(found):
    for at, s in enumerate(slots):
      out[head, at, : len(s)] = s
  return out


@functools.lru_cache(maxsize=256)
def band(piece: layout_lib.Piece, heads: int | None) -> Band | None:
  """Describes all masks of a piece by one band, if that is possible.

  Args:
    piece: index maps and tiles.
    heads: how many heads are stacked in its layout, or None.

  Returns:
    The band of `column - row`, counted in tokens of the tiles, or None if masks
    are of another form.
  """
  layout = piece.layout
  (some,) = np.nonzero(layout.table)
  if not len(some):
    return Band(None, None, None)
  if heads is not None and heads > 1:
    return None
  _, bq, bk = layout.masks.shape
  real = piece.key.real.reshape(-1)
  end = len(real) if real.all() else int(np.argmin(real))
  if real[end:].any():
    return None  # Padding in every residue class.
  inside = np.arange(bk)[None, :] - np.arange(bq)[:, None]
  offset = layout.cols[some] * bk - layout.rows[some] * bq
  shapes = np.stack([offset, layout.table[some], layout.cols[some]], 1)
  cases = []
  for distance, table, col in np.unique(shapes, axis=0):
    there = np.broadcast_to(real[col * bk : (col + 1) * bk], (bq, bk))
    cases.append((inside + distance, layout.masks[table], there))
  low, high = -np.inf, np.inf
  # Distances without an edge on either side of those with one bound the band.
  for places, mask, there in cases:
    out, within = places[there & ~mask], places[mask]
    if np.any(out < within.min()):
      low = max(low, within.min())
    if np.any(out > within.max()):
      high = min(high, within.max())
  for places, mask, there in cases:
    if np.any(((places >= low) & (places <= high) & there) != mask):
      return None
  return Band(
    None if np.isinf(low) else int(low),
    None if np.isinf(high) else int(high),
    None if end == len(real) else end,
  )
