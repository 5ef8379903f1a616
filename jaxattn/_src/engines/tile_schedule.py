"""In which order the tiles of a layout are visited, and how many at a time."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import layout as layout_lib


class Slots(NamedTuple):
  """Tiles in flight.

  Attributes:
    primary: `[c]` int32, the row tiles.
    secondary: `[c, d]` int32, the tiles that each of them visits.
    table: `[c, d]` int32, their masks, or None when all are full.
  """

  primary: jax.Array
  secondary: jax.Array
  table: jax.Array | None


def over_slots(
  slots: Slots, num_full: int, limit: int, visit: Callable, start: Callable
) -> Any:
  """Visits the slots of some rows: full ones unmasked, then the others.

  Args:
    slots: all slots of the rows.
    num_full: how many leading slots are full in every row.
    limit: slots visited at a time; more are scanned in chunks, so that a long
      row (a global token) needs no more memory than a short one.
    visit: maps a carry, or None at first, and some slots to the next carry.
    start: makes the first carry of a scan.

  Returns:
    The last carry.
  """
  width = slots.secondary.shape[1]
  carry = None
  for first, last, masked in ((0, num_full, False), (num_full, width, True)):
    size = last - first
    if not size:
      continue
    chunks = size // limit if size > limit else 0
    middle = first + chunks * limit
    if chunks:
      carry = start() if carry is None else carry
      carry = _scan(_part(slots, first, middle, masked), chunks, carry, visit)
    if middle < last:
      carry = visit(carry, _part(slots, middle, last, masked))
  return start() if carry is None else carry


def _part(slots: Slots, first: int, last: int, masked: bool) -> Slots:
  table = (
    slots.table[:, first:last] if masked and slots.table is not None else None
  )
  return Slots(slots.primary, slots.secondary[:, first:last], table)


def _scan(slots: Slots, chunks: int, carry: Any, visit: Callable) -> Any:
  def split(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x.reshape(x.shape[0], chunks, -1), 0, 1)

  def body(carry: Any, chunk: Any) -> tuple[Any, None]:
    return visit(carry, Slots(slots.primary, *chunk)), None

  table = None if slots.table is None else split(slots.table)
  return jax.lax.scan(body, carry, (split(slots.secondary), table))[0]


def over_rows(
  layout: layout_lib.Layout,
  rows: Callable,
  *,
  transpose: bool,
  tiles: int,
  fill: tuple[float, ...],
  summed: int = 0,
) -> tuple[Any, ...]:
  """Runs `rows` on every group of rows and puts the results in order.

  Args:
    layout: the tiles.
    rows: maps `Slots` of `c` rows, and how many of their slots are full, to
      arrays `[B, K, c, ...]`, the last `summed` of which are added up over all
      calls instead.
    transpose: whether rows are tiles of keys.
    tiles: how many tiles to have in flight, if a row has no more.
    fill: for each output that is not summed, its value at rows without tiles.
    summed: see `rows`.

  Returns:
    The outputs `[B, K, num, ...]`, then the sums.
  """
  num = layout.num_cols if transpose else layout.num_rows
  parts, members, totals = [], [], None
  for group in layout_lib.groups(layout, transpose=transpose):
    outs = _group(rows, group, tiles, summed)
    parts.append(outs[: len(fill)])
    members.append(group.rows)
    extra = outs[len(fill) :]
    totals = extra if totals is None else jax.tree.map(jnp.add, totals, extra)
  order = np.full(num, -1)  # Rows without tiles take the row of `fill`.
  at = np.concatenate(members)
  order[at] = np.arange(len(at))
  results = []
  for value, pieces in zip(fill, zip(*parts, strict=True), strict=True):
    if len(at) < num:
      shape = (*pieces[0].shape[:2], 1, *pieces[0].shape[3:])
      pieces = (*pieces, jnp.full(shape, value, pieces[0].dtype))
    out = jnp.concatenate(pieces, 2) if len(pieces) > 1 else pieces[0]
    if not np.array_equal(order, np.arange(num)):
      out = out[:, :, order]
    results.append(out)
  return (*results, *(totals or ()))


def _group(
  rows: Callable, group: layout_lib.Group, tiles: int, summed: int
) -> tuple[Any, ...]:
  """Maps `rows` over chunks of a group's rows."""
  count, width = group.cols.shape
  chunk = max(1, min(count, tiles // width))
  if summed:  # Rows repeated as padding would be added twice.
    chunk = max(c for c in range(1, chunk + 1) if count % c == 0)
  chunks = -(-count // chunk)
  chunk = -(-count // chunks)
  arrays = (group.rows, group.cols, group.table)
  if chunks == 1:
    return rows(Slots(*map(jnp.asarray, arrays)), group.num_full)
  pad = chunks * chunk - count

  def split(x: np.ndarray) -> jax.Array:
    x = np.concatenate([x, np.repeat(x[-1:], pad, 0)])
    return jnp.asarray(x.reshape(chunks, chunk, *x.shape[1:]))

  outs = jax.lax.map(
    lambda slots: rows(slots, group.num_full), Slots(*map(split, arrays))
  )
  kept = []
  for x in outs[: len(outs) - summed]:
    x = jnp.moveaxis(x, 0, 2)
    kept.append(x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :count])
  return (*kept, *(x.sum(0) for x in outs[len(outs) - summed :]))
