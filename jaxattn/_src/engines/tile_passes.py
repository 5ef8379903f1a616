"""The three passes of block-sparse attention over one piece, in XLA.

Each pass visits, for every primary tile (queries; keys in `key_pass`), the
secondary tiles that it has edges with. Scores have the axes
`[B, K, c, g, p, d, e, s]`: batch, key head, primary tile, primary query heads,
primary token, slot, secondary query heads, secondary token; one of `g` and `e`
is 1.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import layout as layout_lib
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import relative_tiles


class Ids(NamedTuple):
  """Tiles of what the masks and labels compare, `[B or 1, num, tile]` or None."""

  valid: jax.Array | None = None
  segment: jax.Array | None = None
  position: jax.Array | None = None
  label: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a pass must know statically.

  Attributes:
    piece: index maps and tiles.
    scale: factor of the scores.
    budget: scores in flight at a time; bounds the temporary memory.
    label: label function of the relative term, or None.
    shared: whether all queries share the logits of the relative term.
    precision: of the matrix products.
  """

  piece: layout_lib.Piece
  scale: float
  budget: int
  label: relative_lib.Label | None
  shared: bool
  precision: Any


class Operands(NamedTuple):
  """Tiles of the inputs.

  Attributes:
    query: `[B, K, R, G, bq, H]`.
    key: `[B, K, C, 1, bk, H]`.
    value: `[B, K, C, 1, bk, V]`.
    query_ids: of the queries.
    key_ids: of the keys.
    logits: `[B or 1, K, R, G, bq, L]` of the relative term, with R = bq = 1 when
      shared by all queries, or None.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  query_ids: Ids
  key_ids: Ids
  logits: jax.Array | None


class _Slots(NamedTuple):
  """Tiles in flight: primary `[c]`, secondary `[c, d]`, mask ids or None."""

  primary: jax.Array
  secondary: jax.Array
  table: jax.Array | None


@dataclasses.dataclass(frozen=True)
class _Pass:
  """Scores and masks of one pass over a piece."""

  plan: Plan
  data: Operands
  by_key: bool

  @property
  def masked(self) -> bool:
    """Whether every tile needs a mask made at run time."""
    ids = (self.data.query_ids, self.data.key_ids)
    return any(x is not None for i in ids for x in i[:3])

  def products(self, primary: jax.Array, secondary: jax.Array) -> jax.Array:
    return jnp.einsum(
        "bkcgph,bkcdesh->bkcgpdes", primary, secondary,
        preferred_element_type=jnp.float32, precision=self.plan.precision,
    )

  def sums(self, weights: jax.Array, secondary: jax.Array) -> jax.Array:
    return jnp.einsum(
        "bkcgpdes,bkcdesh->bkcgph", weights.astype(secondary.dtype), secondary,
        preferred_element_type=jnp.float32, precision=self.plan.precision,
    )

  def scores(
      self, primary: jax.Array, secondary: jax.Array, slots: _Slots
  ) -> jax.Array:
    """Scaled scores, `-inf` where there is no edge."""
    scores = self.products(primary, secondary) * jnp.float32(self.plan.scale)
    if self.data.logits is not None:
      scores = scores + self.term(slots)
    keep = self._keep(slots)
    return scores if keep is None else jnp.where(keep, scores, -jnp.inf)

  def _keep(self, slots: _Slots) -> jax.Array | None:
    keep = None
    if slots.table is not None:
      masks = self.plan.piece.layout.masks
      masks = np.concatenate([masks, np.zeros_like(masks[:1])])
      masks = masks.transpose(0, 2, 1) if self.by_key else masks
      keep = jnp.moveaxis(jnp.asarray(masks)[slots.table], 1, 2)
      keep = keep[None, None, :, None, :, :, None, :]
    for test in self._tests(slots):
      test = test[:, None, :, None, :, :, None, :]
      keep = test if keep is None else keep & test
    return keep

  def _tests(self, slots: _Slots) -> list[jax.Array]:
    """Run-time masks, each `[B or 1, c, p, d, s]` or with axes of size 1."""
    tests = []
    for name, test in (
        ("valid", None), ("segment", jnp.equal),
        ("position", jnp.less_equal if self.by_key else jnp.greater_equal),
    ):
      first, second = self.ids(name, slots)
      if test is None:
        tests += [x for x in (first, second) if x is not None]
      elif first is not None and second is not None:
        tests.append(test(first, second))
    return tests

  def ids(
      self, name: str, slots: _Slots
  ) -> tuple[jax.Array | None, jax.Array | None]:
    """Ids of the primary `[B, c, p, 1, 1]` and secondary `[B, c, 1, d, s]`."""
    both = (self.data.query_ids, self.data.key_ids)
    first, second = (getattr(i, name) for i in (both[::-1] if self.by_key else both))
    maps = (self.plan.piece.query, self.plan.piece.key)
    first_map, second_map = maps[::-1] if self.by_key else maps
    # Heads stacked on the tile axis share the ids of their token.
    if first is not None:
      first = first[:, slots.primary % first_map.num][..., None, None]
    if second is not None:
      second = second[:, slots.secondary % second_map.num][:, :, None]
    return first, second

  def labels(self, slots: _Slots) -> jax.Array:
    """Labels `[B or 1, c, p, d, s]`."""
    first, second = self.ids("label", slots)
    if first is not None and second is not None:
      pair = (second, first) if self.by_key else (first, second)
      labels = self.plan.label(*jnp.broadcast_arrays(*pair))
    else:
      piece = self.plan.piece
      maps = (piece.key, piece.query) if self.by_key else (piece.query, piece.key)
      index = [jnp.asarray(m.index, jnp.int32) for m in maps]
      first = index[0][slots.primary % maps[0].num][:, :, None, None]
      second = index[1][slots.secondary % maps[1].num][:, None]
      distance = first - second if self.by_key else second - first
      labels = self.plan.label(distance)[None]
    size = self.data.logits.shape[-1]
    return jnp.clip(labels.astype(jnp.int32), 0, size - 1)

  def term(self, slots: _Slots) -> jax.Array:
    """The relative term of the scores."""
    labels = self.labels(slots)
    if not self.by_key:
      return relative_tiles.query_term(self.logits(slots), labels)
    logits = self.data.logits
    if self.plan.shared:
      logits = logits[:, :, :, None]
    else:
      logits = logits[:, :, slots.secondary]
    return relative_tiles.key_term(logits, labels)

  def logits(self, slots: _Slots) -> jax.Array:
    """The relative logits of the primary queries, or the table they share."""
    logits = self.data.logits
    return logits if self.plan.shared else logits[:, :, slots.primary]


def query_pass(plan: Plan, data: Operands) -> tuple[jax.Array, jax.Array]:
  """Forward: attention of every query tile over its key tiles.

  Returns:
    `[B, K, R, G, bq, V]` float32 outputs and `[B, K, R, G, bq]` float32 lse;
    zero and `-inf` for rows without edges.
  """
  run = _Pass(plan, data, by_key=False)

  def start(primary: jax.Array):
    shape = (*data.query.shape[:2], len(primary), *data.query.shape[3:5])
    top = jnp.full(shape, -jnp.inf, jnp.float32)
    return top, jnp.zeros_like(top), jnp.zeros(
        (*shape, data.value.shape[-1]), jnp.float32
    )

  def visit(carry, query: jax.Array, slots: _Slots):
    key, value = data.key[:, :, slots.secondary], data.value[:, :, slots.secondary]
    scores = run.scores(query, key, slots)
    top = scores.max((5, 6, 7))
    if carry is not None:
      top = jnp.maximum(top, carry[0])
    finite = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(scores - finite[..., None, None, None])
    total = weights.sum((5, 6, 7))
    out = run.sums(weights, value)
    if carry is not None:
      shrink = jnp.exp(carry[0] - finite)
      total = total + carry[1] * shrink
      out = out + carry[2] * shrink[..., None]
    return top, total, out

  def finish(carry):
    top, total, out = carry
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    lse = jnp.where(seen, top + jnp.log(total), -jnp.inf)
    return out / total[..., None], lse

  def rows(slots: _Slots, num_full: int):
    query = data.query[:, :, slots.primary]
    return finish(
        _over_slots(
            run, slots, num_full, _unit(data, plan),
            lambda carry, s: visit(carry, query, s),
            lambda: start(slots.primary),
        )
    )

  return _over_rows(run, rows, fill=(0.0, -jnp.inf))


def query_gradient_pass(
    plan: Plan, data: Operands, dout: jax.Array, lse: jax.Array, delta: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
  """Gradient of every query tile, and of the relative logits.

  Args:
    plan: the piece.
    data: tiles of the inputs.
    dout: `[B, K, R, G, bq, V]` cotangent of the merged output.
    lse: `[B, K, R, G, bq]` merged lse, finite.
    delta: `[B, K, R, G, bq]`, `sum(out * dout)` minus the cotangent of lse.

  Returns:
    `[B, K, R, G, bq, H]` float32, and the logits' gradient or None.
  """
  run = _Pass(plan, data, by_key=False)

  def rows(slots: _Slots, num_full: int):
    at = slots.primary
    query, do = data.query[:, :, at], dout[:, :, at]
    wide = lambda x: x[:, :, at][..., None, None, None]
    lse_rows, delta_rows = wide(lse), wide(delta)

    def visit(carry, s: _Slots):
      key, value = data.key[:, :, s.secondary], data.value[:, :, s.secondary]
      weights = jnp.exp(run.scores(query, key, s) - lse_rows)
      grad = weights * (run.products(do, value) - delta_rows)
      out = (run.sums(grad, key),)
      if data.logits is not None:
        out += (
            relative_tiles.query_gradient(run.logits(s), run.labels(s), grad),
        )
      if carry is None:
        return out
      return jax.tree.map(jnp.add, carry, out)

    def start():
      zero = jnp.zeros((*query.shape[:-1], data.query.shape[-1]), jnp.float32)
      if data.logits is None:
        return (zero,)
      return zero, jnp.zeros(run.logits(slots).shape, jnp.float32)

    return _over_slots(run, slots, num_full, _unit(data, plan), visit, start)

  if data.logits is None:
    return _over_rows(run, rows, fill=(0.0,))[0], None
  if plan.shared:
    return _over_rows(run, rows, fill=(0.0,), summed=1)
  return _over_rows(run, rows, fill=(0.0, 0.0))


def key_pass(
    plan: Plan, data: Operands, dout: jax.Array, lse: jax.Array, delta: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Gradients of every key and value tile; arguments as `query_gradient_pass`.

  Returns:
    `[B, K, C, 1, bk, H]` and `[B, K, C, 1, bk, V]`, float32.
  """
  run = _Pass(plan, data, by_key=True)

  def rows(slots: _Slots, num_full: int):
    key, value = data.key[:, :, slots.primary], data.value[:, :, slots.primary]

    def visit(carry, s: _Slots):
      at = s.secondary
      query, do = data.query[:, :, at], dout[:, :, at]
      wide = lambda x: x[:, :, at][:, :, :, None, None]
      weights = jnp.exp(run.scores(key, query, s) - wide(lse))
      grad = weights * (run.products(value, do) - wide(delta))
      out = run.sums(grad, query), run.sums(weights, do)
      return out if carry is None else jax.tree.map(jnp.add, carry, out)

    def start():
      return tuple(jnp.zeros(x.shape, jnp.float32) for x in (key, value))

    return _over_slots(run, slots, num_full, _unit(data, plan), visit, start)

  return _over_rows(run, rows, fill=(0.0, 0.0))


def _unit(data: Operands, plan: Plan) -> int:
  """Scores of one slot of one row."""
  batch, heads, _, group, tile, _ = data.query.shape
  return batch * heads * group * tile * plan.piece.key.tile


def _over_slots(run: _Pass, slots: _Slots, num_full: int, unit: int, visit, start):
  """Visits the slots of some rows: full ones unmasked, then the others.

  Slots beyond the budget are scanned in chunks, so that a long row (a global
  token) needs no more memory than a short one.
  """
  width = slots.secondary.shape[1]
  num_full = 0 if run.masked else num_full
  limit = max(4, run.plan.budget // unit)
  carry = None
  for first, last, masked in ((0, num_full, False), (num_full, width, True)):
    size = last - first
    if not size:
      continue
    chunks = size // limit if size > limit else 0
    scanned = chunks * limit
    if scanned:
      carry = start() if carry is None else carry
      carry = _scan_slots(slots, first, limit, chunks, masked, carry, visit)
    if scanned < size:
      part = slice(first + scanned, last)
      table = slots.table[:, part] if masked else None
      carry = visit(carry, slots._replace(
          secondary=slots.secondary[:, part], table=table))
  return start() if carry is None else carry


def _scan_slots(slots, first, step, chunks, masked, carry, visit):
  def split(x):
    x = x[:, first : first + step * chunks].reshape(-1, chunks, step)
    return jnp.swapaxes(x, 0, 1)

  def body(carry, chunk):
    secondary, table = chunk
    at = slots._replace(secondary=secondary, table=table)
    return visit(carry, at), None

  xs = (split(slots.secondary), split(slots.table) if masked else None)
  return jax.lax.scan(body, carry, xs)[0]


def _over_rows(
    run: _Pass, rows: Callable, fill: Sequence[float], summed: int = 0
):
  """Runs `rows` on every group of primary tiles and puts the results in order.

  Args:
    run: the pass.
    rows: maps `_Slots` of `c` rows to arrays `[B, K, c, ...]`, followed by
      `summed` arrays that are added up over all calls.
    fill: value of each output at tiles without edges.
    summed: see `rows`.

  Returns:
    The outputs `[B, K, num, ...]`, then the sums.
  """
  layout = run.plan.piece.layout
  num = layout.num_cols if run.by_key else layout.num_rows
  parts, members, totals = [], [], None
  unit = _unit(run.data, run.plan)
  for group in layout_lib.groups(layout, transpose=run.by_key):
    outs = _group_rows(run, rows, group, unit, summed)
    count = len(outs) - summed
    parts.append(outs[:count])
    members.append(group.rows)
    if summed:
      extra = outs[count:]
      totals = extra if totals is None else jax.tree.map(
          jnp.add, totals, extra
      )
  order = np.full(num, -1)
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


def _group_rows(run: _Pass, rows, group: layout_lib.Group, unit: int, summed: int):
  """Maps `rows` over chunks of a group's rows."""
  count, width = group.cols.shape
  slots = min(width, max(4, run.plan.budget // unit))
  chunk = min(count, max(1, run.plan.budget // (unit * slots)))
  if summed:  # Rows repeated as padding would be added twice.
    chunk = max(c for c in range(1, chunk + 1) if count % c == 0)
  chunks = -(-count // chunk)
  if chunks == 1:
    at = _Slots(*(jnp.asarray(x) for x in (group.rows, group.cols, group.table)))
    return rows(at, group.num_full)
  chunk = -(-count // chunks) if not summed else chunk
  pad = chunks * chunk - count

  def split(x: np.ndarray) -> jax.Array:
    x = np.concatenate([x, np.repeat(x[-1:], pad, 0)])
    return jnp.asarray(x.reshape(chunks, chunk, *x.shape[1:]))

  outs = jax.lax.map(
      lambda at: rows(at, group.num_full),
      _Slots(split(group.rows), split(group.cols), split(group.table)),
  )
  kept = []
  for at, x in enumerate(outs):
    if at >= len(outs) - summed:
      kept.append(x.sum(0))
      continue
    x = jnp.moveaxis(x, 0, 2)
    kept.append(x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :count])
  return tuple(kept)
