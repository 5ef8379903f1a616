"""The three passes of block-sparse attention over one piece, in XLA.

Each pass visits, for every primary tile (queries; keys in `key_pass`), the
secondary tiles that it has edges with. Scores have the axes
`[B, K, c, g, p, d, e, s]`: batch, key head, primary tile, primary query heads,
primary token, slot, secondary query heads, secondary token; one of `g` and `e`
is 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import layout as layout_lib
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import relative_tiles
from jaxattn._src.engines import tile_schedule


class Ids(NamedTuple):
  """Tiles `[B or 1, num, tile]` of what masks and labels compare, or None."""

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
    logits: `[B or 1, K, R, G, bq, L]` of the relative term, or None; R and bq
      are 1 when all queries share them.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  query_ids: Ids
  key_ids: Ids
  logits: jax.Array | None


@dataclasses.dataclass(frozen=True)
class _Pass:
  """Scores and masks of one pass over a piece."""

  plan: Plan
  data: Operands
  by_key: bool

  def over_slots(
    self,
    slots: tile_schedule.Slots,
    num_full: int,
    visit: Callable,
    start: Callable,
  ) -> Any:
    """Visits the key or query tiles of some rows; see `tile_schedule`."""
    ids = (self.data.query_ids, self.data.key_ids)
    if any(x is not None for i in ids for x in i[:3]):
      num_full = 0  # Every tile needs a mask made at run time.
    limit = max(4, self.plan.budget // self._unit)
    return tile_schedule.over_slots(slots, num_full, limit, visit, start)

  def over_rows(
    self, rows: Callable, *, fill: tuple[float, ...], summed: int = 0
  ) -> Any:
    """Runs `rows` on all primary tiles; see `tile_schedule`."""
    return tile_schedule.over_rows(
      self.plan.piece.layout,
      rows,
      transpose=self.by_key,
      tiles=max(1, self.plan.budget // self._unit),
      fill=fill,
      summed=summed,
    )

  @property
  def _unit(self) -> int:
    """Scores of one slot of one row."""
    batch, heads, _, group, tile, _ = self.data.query.shape
    return batch * heads * group * tile * self.plan.piece.key.tile

  def products(self, primary: jax.Array, secondary: jax.Array) -> jax.Array:
    return jnp.einsum(
      "bkcgph,bkcdesh->bkcgpdes",
      primary,
      secondary,
      preferred_element_type=jnp.float32,
      precision=self.plan.precision,
    )

  def sums(self, weights: jax.Array, secondary: jax.Array) -> jax.Array:
    return jnp.einsum(
      "bkcgpdes,bkcdesh->bkcgph",
      weights.astype(secondary.dtype),
      secondary,
      preferred_element_type=jnp.float32,
      precision=self.plan.precision,
    )

  def scores(
    self, primary: jax.Array, secondary: jax.Array, slots: tile_schedule.Slots
  ) -> jax.Array:
    """Scaled scores, `-inf` where there is no edge."""
    scores = self.products(primary, secondary) * jnp.float32(self.plan.scale)
    if self.data.logits is not None:
      scores = scores + self.term(slots)
    keep = self._keep(slots)
    return scores if keep is None else jnp.where(keep, scores, -jnp.inf)

  def _keep(self, slots: tile_schedule.Slots) -> jax.Array | None:
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

  def _tests(self, slots: tile_schedule.Slots) -> list[jax.Array]:
    """Run-time masks, each `[B or 1, c, p, d, s]` or with axes of size 1."""
    tests = []
    for name, test in (
      ("valid", None),
      ("segment", jnp.equal),
      ("position", jnp.less_equal if self.by_key else jnp.greater_equal),
    ):
      first, second = self.ids(name, slots)
      if test is None:
        tests += [x for x in (first, second) if x is not None]
      elif first is not None and second is not None:
        tests.append(test(first, second))
    return tests

  def ids(
    self, name: str, slots: tile_schedule.Slots
  ) -> tuple[jax.Array | None, jax.Array | None]:
    """Ids of the primary `[B, c, p, 1, 1]` and secondary `[B, c, 1, d, s]`."""
    both = (self.data.query_ids, self.data.key_ids)
    first, second = (
      getattr(i, name) for i in (both[::-1] if self.by_key else both)
    )
    maps = (self.plan.piece.query, self.plan.piece.key)
    first_map, second_map = maps[::-1] if self.by_key else maps
    # Heads stacked on the tile axis share the ids of their token.
    if first is not None:
      first = first[:, slots.primary % first_map.num][..., None, None]
    if second is not None:
      second = second[:, slots.secondary % second_map.num][:, :, None]
    return first, second

  def labels(self, slots: tile_schedule.Slots) -> jax.Array:
    """Labels `[B or 1, c, p, d, s]`."""
    label, logits = self.plan.label, self.data.logits
    assert label is not None and logits is not None
    first, second = self.ids("label", slots)
    if first is not None and second is not None:
      pair = (second, first) if self.by_key else (first, second)
      labels = label(*jnp.broadcast_arrays(*pair))
    else:
      piece = self.plan.piece
      maps = (
        (piece.key, piece.query) if self.by_key else (piece.query, piece.key)
      )
      index = [jnp.asarray(m.index, jnp.int32) for m in maps]
      first = index[0][slots.primary % maps[0].num][:, :, None, None]
      second = index[1][slots.secondary % maps[1].num][:, None]
      distance = first - second if self.by_key else second - first
      labels = label(distance)[None]
    last = logits.shape[-1] - 1
    return jnp.clip(labels.astype(jnp.int32), 0, last)

  def term(self, slots: tile_schedule.Slots) -> jax.Array:
    """The relative term of the scores."""
    labels = self.labels(slots)
    if not self.by_key:
      return relative_tiles.query_term(self.logits(slots), labels)
    logits = self.data.logits
    assert logits is not None
    if self.plan.shared:
      logits = logits[:, :, :, None]
    else:
      logits = logits[:, :, slots.secondary]
    return relative_tiles.key_term(logits, labels)

  def logits(self, slots: tile_schedule.Slots) -> jax.Array:
    """The relative logits of the primary queries, or the table they share."""
    logits = self.data.logits
    assert logits is not None
    return logits if self.plan.shared else logits[:, :, slots.primary]


def query_pass(plan: Plan, data: Operands) -> tuple[Any, Any]:
  """Forward: attention of every query tile over its key tiles.

  Returns:
    `[B, K, R, G, bq, V]` float32 outputs and `[B, K, R, G, bq]` float32 lse;
    zero and `-inf` for rows without edges.
  """
  run = _Pass(plan, data, by_key=False)

  def start(primary: jax.Array):
    shape = (*data.query.shape[:2], len(primary), *data.query.shape[3:5])
    top = jnp.full(shape, -jnp.inf, jnp.float32)
    return (
      top,
      jnp.zeros_like(top),
      jnp.zeros((*shape, data.value.shape[-1]), jnp.float32),
    )

  def visit(carry, query: jax.Array, slots: tile_schedule.Slots):
    key, value = (
      data.key[:, :, slots.secondary],
      data.value[:, :, slots.secondary],
    )
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

  def rows(slots: tile_schedule.Slots, num_full: int):
    query = data.query[:, :, slots.primary]
    return finish(
      run.over_slots(
        slots,
        num_full,
        lambda carry, s: visit(carry, query, s),
        lambda: start(slots.primary),
      )
    )

  return run.over_rows(rows, fill=(0.0, -jnp.inf))


def query_gradient_pass(
  plan: Plan, data: Operands, dout: jax.Array, lse: jax.Array, delta: jax.Array
) -> tuple[Any, Any]:
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

  def rows(slots: tile_schedule.Slots, num_full: int):
    at = slots.primary
    query, do = data.query[:, :, at], dout[:, :, at]
    lse_rows, delta_rows = (
      x[:, :, at][..., None, None, None] for x in (lse, delta)
    )

    def visit(carry, s: tile_schedule.Slots):
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

    return run.over_slots(slots, num_full, visit, start)

  if data.logits is None:
    return run.over_rows(rows, fill=(0.0,))[0], None
  if plan.shared:
    return run.over_rows(rows, fill=(0.0,), summed=1)
  return run.over_rows(rows, fill=(0.0, 0.0))


def key_pass(
  plan: Plan, data: Operands, dout: jax.Array, lse: jax.Array, delta: jax.Array
) -> tuple[Any, Any]:
  """Gradients of every key and value tile; arguments as `query_gradient_pass`.

  Returns:
    `[B, K, C, 1, bk, H]` and `[B, K, C, 1, bk, V]`, float32.
  """
  run = _Pass(plan, data, by_key=True)

  def rows(slots: tile_schedule.Slots, num_full: int):
    key, value = data.key[:, :, slots.primary], data.value[:, :, slots.primary]

    def visit(carry, s: tile_schedule.Slots):
      at = s.secondary
      query, do = data.query[:, :, at], dout[:, :, at]
      lse_rows, delta_rows = (
        x[:, :, at][:, :, :, None, None] for x in (lse, delta)
      )
      weights = jnp.exp(run.scores(key, query, s) - lse_rows)
      grad = weights * (run.products(value, do) - delta_rows)
      out = run.sums(grad, query), run.sums(weights, do)
      return out if carry is None else jax.tree.map(jnp.add, carry, out)

    def start():
      return tuple(jnp.zeros(x.shape, jnp.float32) for x in (key, value))

    return run.over_slots(slots, num_full, visit, start)

  return run.over_rows(rows, fill=(0.0, 0.0))
