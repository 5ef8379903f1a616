"""Block-sparse attention on TPU: the three passes over the tiles of a piece.

The grid walks a flat list of tiles, which scalar prefetch hands to the index
maps, so that a row costs its own tiles and no more. Sums stay in vector memory
from the first tile of a row to its last.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxattn._src import layout as layout_lib
from jaxattn._src.engines import tile_passes
from jaxattn._src.pallas import tile_lists

LANES, SUBLANES = 128, 8
_START = -1e30  # Below every score; finite, so that differences are.
# What a score costs by the size of its tile, counted on compiled schedules:
# small ones do not fill the matrix unit, and every step has a price.
_TILES = {512: 1.0, 256: 1.3, 128: 2.2}
_LONGEST = 1 << 16  # Tiles whose list fits in scalar memory.
_WIDEST = 256  # Features of a head.
# Features of all query heads of a key head, which are in vector memory at once;
# twice as many do not compile for a v5e.
_WIDEST_GROUP = 1024


def obstacle(
  query: Any, key: Any, value: Any, *, relative: bool, scale: float, tile: Any
) -> str | None:
  """Why the kernels cannot serve a call, or None.

  Args:
    query: an array, or what has its shape and dtype.
    key: likewise.
    value: likewise.
    relative: whether there is a relative-position term.
    scale: factor of the scores.
    tile: tokens in a tile that were asked for, or None.
  """
  del scale
  if query.dtype not in (jnp.bfloat16, jnp.float32):
    return f"it takes bfloat16 and float32, not {query.dtype}"
  if not query.dtype == key.dtype == value.dtype:
    return "query, key and value differ in dtype"
  widest = max(query.shape[-1], value.shape[-1])
  if widest > _WIDEST:
    return f"heads may have up to {_WIDEST} features, not {widest}"
  group = query.shape[-2] // key.shape[-2]
  if group * LANES * -(-widest // LANES) > _WIDEST_GROUP:
    return f"{group} query heads for one of keys do not fit its memory"
  if relative:
    return "it has no relative-position term"
  if tile is not None and tile % LANES:
    return f"its tiles have multiples of {LANES} tokens, not {tile}"
  return None


@functools.lru_cache(maxsize=256)
def tile(pattern: Any, q_len: int, k_len: int) -> int:
  """Tokens in the tile that is cheapest for a pattern."""

  def cost(size: int) -> float:
    pieces = layout_lib.compile_pattern(pattern, q_len, k_len, size, whole=True)
    return _TILES[size] * sum(p.layout.scores for p in pieces)

  longest = max(q_len, k_len)
  sizes = [s for s in _TILES if s < 2 * longest] or [LANES]
  return min(sizes, key=cost)


@dataclasses.dataclass(frozen=True)
class Kernels:
  """The functions of `tile_passes`, by kernels.

  Attributes:
    interpret: parameters of the interpreter, or None.
  """

  interpret: Any = None

  def query_pass(
    self, plan: tile_passes.Plan, data: tile_passes.Operands
  ) -> tuple[jax.Array, jax.Array]:
    """Forward; see `tile_passes.query_pass`."""
    if _too_long(plan):
      return tile_passes.query_pass(plan, data)
    batch, heads, num, group, size, _ = data.query.shape
    width = data.value.shape[-1]
    call = _Call(plan, data, self.interpret, by_key=False)
    lead = (batch, heads, num, group, size)
    out, lse = call.run(
      _forward_kernel,
      [call.rows(data.query), call.columns(data.key), call.columns(data.value)],
      outputs=[(*lead, width), (*lead, LANES)],
      scratch=[(group, size, width), *[(group, size, LANES)] * 2],
    )
    return out, lse[..., 0]

  def query_gradient_pass(
    self,
    plan: tile_passes.Plan,
    data: tile_passes.Operands,
    dout: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
  ) -> tuple[jax.Array, None]:
    """Gradient of the queries; see `tile_passes.query_gradient_pass`."""
    if _too_long(plan):
      return tile_passes.query_gradient_pass(plan, data, dout, lse, delta)
    call = _Call(plan, data, self.interpret, by_key=False)
    group, size, depth = data.query.shape[3:]
    (found,) = call.run(
      _query_kernel,
      [
        call.rows(data.query),
        call.columns(data.key),
        call.columns(data.value),
        call.rows(dout),
        *(call.rows(x) for x in (lse, delta)),
      ],
      outputs=[data.query.shape],
      scratch=[(group, size, depth)],
    )
    return found, None

  def key_pass(
    self,
    plan: tile_passes.Plan,
    data: tile_passes.Operands,
    dout: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Gradients of keys and values; see `tile_passes.key_pass`."""
    if _too_long(plan):
      return tile_passes.key_pass(plan, data, dout, lse, delta)
    call = _Call(plan, data, self.interpret, by_key=True)
    shapes = [data.key.shape, data.value.shape]
    dk, dv = call.run(
      _key_kernel,
      [
        call.columns(data.query),
        call.rows(data.key),
        call.rows(data.value),
        call.columns(dout),
        *(call.columns(x) for x in (lse, delta)),
      ],
      outputs=shapes,
      scratch=[s[-2:] for s in shapes],
    )
    return dk, dv


def _too_long(plan: tile_passes.Plan) -> bool:
  return plan.piece.layout.tiles > _LONGEST


@dataclasses.dataclass(frozen=True)
class _Call:
  """One kernel over the tiles of a piece."""

  plan: tile_passes.Plan
  data: tile_passes.Operands
  interpret: Any
  by_key: bool

  def rows(self, x: jax.Array) -> tuple[jax.Array, pl.BlockSpec]:
    """An array `[B, K, tiles, ...]`, of which a row's tile is at hand."""
    return x, self._spec(x.shape, lambda row, col: row)

  def columns(self, x: jax.Array) -> tuple[jax.Array, pl.BlockSpec]:
    """The same for the tile of a column."""
    return x, self._spec(x.shape, lambda row, col: col)

  def _spec(
    self, shape: tuple[int, ...], pick: Callable[[Any, Any], Any]
  ) -> pl.BlockSpec:
    rest = len(shape) - 3

    def place(b: Any, k: Any, t: Any, row: Any, col: Any, *_: Any) -> Any:
      return (b, k, pick(row[t], col[t]), *[0] * rest)

    return pl.BlockSpec((None, None, None, *shape[3:]), place)

  def _ids(self) -> tuple[dict[str, int], list[Any]]:
    """Ids of both sides, spread along the axis they do not vary on."""
    piece = self.plan.piece
    sides = [(self.data.query_ids, piece.query), (self.data.key_ids, piece.key)]
    sides = sides[::-1] if self.by_key else sides
    names: dict[str, int] = {}
    found: list[Any] = []
    for name in ("valid", "segment", "position"):
      pair = [getattr(ids, name) for ids, _ in sides]
      if name != "valid" and any(x is None for x in pair):
        continue
      for side, (x, (_, index_map)) in enumerate(zip(pair, sides, strict=True)):
        if x is None:
          continue
        names[f"{name}{side}"] = len(found)
        found.append(self._spread(x, index_map.num, side))
    return names, found

  def _spread(
    self, x: jax.Array, num: int, side: int
  ) -> tuple[jax.Array, pl.BlockSpec]:
    x, many = x.astype(jnp.int32), x.shape[0] > 1
    size = x.shape[-1]
    shape = (size, LANES) if side == 0 else (SUBLANES, size)
    x = jnp.broadcast_to(
      x[..., :, None] if side == 0 else x[..., None, :], (*x.shape[:2], *shape)
    )

    # Heads stacked on the tile axis share the ids of their token.
    def place(b: Any, k: Any, t: Any, row: Any, col: Any, *_: Any) -> Any:
      at = lax.rem((row, col)[side][t], jnp.int32(num))
      return (b if many else 0, at, 0, 0)

    return x, pl.BlockSpec((None, None, *shape), place)

  def run(
    self,
    kernel: Callable[..., None],
    inputs: list[tuple[jax.Array, pl.BlockSpec]],
    *,
    outputs: list[tuple[int, ...]],
    scratch: list[tuple[int, ...]],
  ) -> list[jax.Array]:
    """Runs a kernel over all tiles, for every batch row and key head."""
    layout = self.plan.piece.layout
    listed = tile_lists.tiles(layout, transpose=self.by_key)
    masks = layout.masks.transpose(0, 2, 1) if self.by_key else layout.masks
    names, ids = self._ids()
    table = jnp.asarray(masks.astype(np.int8))
    spec = pl.BlockSpec(
      (None, *table.shape[1:]), lambda b, k, t, r, c, m, f: (m[t], 0, 0)
    )
    given = [*inputs, *ids, (table, spec)]
    steps = _Steps(self.plan, self.by_key, names, len(inputs))
    batch, heads = self.data.query.shape[:2]
    return pl.pallas_call(
      functools.partial(_tile, kernel, steps, len(outputs)),
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(batch, heads, len(listed.row)),
        in_specs=[s for _, s in given],
        out_specs=[self._spec(s, lambda row, col: row) for s in outputs],
        scratch_shapes=[pltpu.VMEM(s, jnp.float32) for s in scratch],
      ),
      out_shape=[jax.ShapeDtypeStruct(s, jnp.float32) for s in outputs],
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary")
      ),
      interpret=False if self.interpret is None else self.interpret,
      cost_estimate=self._cost(len(inputs)),
    )(*map(jnp.asarray, listed), *(x for x, _ in given))

  def _cost(self, inputs: int) -> pl.CostEstimate:
    shape = self.data.query.shape
    scores = self.plan.piece.layout.scores * shape[0] * shape[1] * shape[3]
    products = 2 if inputs == 3 else 4 if self.by_key else 3
    moved = self.plan.piece.layout.tiles * self.data.key.shape[-2] * shape[1]
    size = self.data.key.dtype.itemsize
    return pl.CostEstimate(
      flops=2 * products * scores * shape[-1],
      transcendentals=scores,
      bytes_accessed=2 * moved * shape[0] * shape[-1] * size,
    )


@dataclasses.dataclass(frozen=True)
class _Steps:
  """What a kernel knows of its tiles."""

  plan: tile_passes.Plan
  by_key: bool
  names: dict[str, int]
  num_inputs: int

  def dot(self, a: jax.Array, b: jax.Array, *, transpose: bool) -> jax.Array:
    """`a @ b^T`, or `a @ b`, float32."""
    axes = (((1,), (1 if transpose else 0,)), ((), ()))
    return lax.dot_general(
      a,
      b,
      axes,
      preferred_element_type=jnp.float32,
      precision=self.plan.precision,
    )

  def keep(self, ids: list[Any], mask: Any, flags: jax.Array) -> Any:
    """`[rows, columns]` bool: which scores count."""
    keep = (mask[...].astype(jnp.float32) > 0) | (
      flags & tile_lists.PARTIAL == 0
    )
    for name in ("valid", "segment", "position"):
      row, column = (
        None
        if f"{name}{side}" not in self.names
        else ids[self.names[f"{name}{side}"]]
        for side in (0, 1)
      )
      first = None if row is None else row[:, :1]
      second = None if column is None else column[:1, :]
      if name == "valid":
        keep = keep if first is None else keep & (first > 0)
        keep = keep if second is None else keep & (second > 0)
      elif first is not None and second is not None:
        if name == "segment":
          keep = keep & (first == second)
        else:
          seen = first <= second if self.by_key else first >= second
          keep = keep & seen
    return keep

  def masked(
    self, scores: jax.Array, ids: list[Any], mask: Any, flags: jax.Array
  ) -> jax.Array:
    """Scaled scores, `-inf` where there is no edge."""
    scores = scores * jnp.float32(self.plan.scale)
    return jnp.where(self.keep(ids, mask, flags), scores, -jnp.inf)


def _tile(
  kernel: Callable[..., None],
  steps: _Steps,
  num_outputs: int,
  row: Any,
  column: Any,
  table: Any,
  flags: Any,
  *refs: Any,
) -> None:
  """One step of the grid: sorts out the references, and runs the kernel."""
  del row, column, table
  at = flags[pl.program_id(2)]
  inputs, rest = refs[: steps.num_inputs], refs[steps.num_inputs :]
  ids, rest = list(rest[: len(steps.names)]), rest[len(steps.names) :]
  mask, outputs = rest[0], rest[1 : 1 + num_outputs]
  scratch = rest[1 + num_outputs :]

  @pl.when(at & tile_lists.FIRST != 0)
  def _() -> None:
    for ref in scratch:
      ref[...] = jnp.zeros(ref.shape, ref.dtype)

  masked = functools.partial(steps.masked, ids=ids, mask=mask, flags=at)
  kernel(steps, at, masked, inputs, outputs, scratch)


def _repeat(x: jax.Array, size: int) -> jax.Array:
  """Columns that are all the same, `[rows, 128]`, as `[rows, size]`."""
  if size <= LANES:
    return x[:, :size]
  return jnp.tile(x, (1, -(-size // LANES)))[:, :size]


def _forward_kernel(
  steps: _Steps, at: Any, masked: Any, inputs: Any, outputs: Any, scratch: Any
) -> None:
  query, key, value = inputs
  out, lse = outputs
  acc, tops, totals = scratch

  @pl.when(at & tile_lists.FIRST != 0)
  def _() -> None:
    tops[...] = jnp.full(tops.shape, _START, jnp.float32)

  @pl.when(at & tile_lists.EMPTY == 0)
  def _() -> None:
    for g in range(query.shape[0]):
      scores = masked(steps.dot(query[g], key[0], transpose=True))
      top = tops[g]
      highest = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
      weights = jnp.exp(scores - _repeat(highest, scores.shape[1]))
      shrink = jnp.exp(top - highest)
      sums = jnp.sum(weights, axis=1, keepdims=True)
      totals[g] = shrink * totals[g] + sums
      tops[g] = highest
      found = steps.dot(weights.astype(value.dtype), value[0], transpose=False)
      acc[g] = acc[g] * _repeat(shrink, found.shape[1]) + found

  @pl.when(at & tile_lists.LAST != 0)
  def _() -> None:
    for g in range(query.shape[0]):
      seen = totals[g] > 0
      total = jnp.where(seen, totals[g], 1.0)
      out[g] = acc[g] / _repeat(total, acc.shape[2])
      lse[g] = jnp.where(seen, tops[g] + jnp.log(total), -jnp.inf)


def _query_kernel(
  steps: _Steps, at: Any, masked: Any, inputs: Any, outputs: Any, scratch: Any
) -> None:
  query, key, value, dout, lse, delta = inputs
  (acc,) = scratch

  @pl.when(at & tile_lists.EMPTY == 0)
  def _() -> None:
    for g in range(query.shape[0]):
      scores = masked(steps.dot(query[g], key[0], transpose=True))
      weights = jnp.exp(scores - lse[g][:, None])
      slopes = steps.dot(dout[g], value[0], transpose=True)
      slopes = weights * (slopes - delta[g][:, None])
      acc[g] += steps.dot(slopes.astype(key.dtype), key[0], transpose=False)

  @pl.when(at & tile_lists.LAST != 0)
  def _() -> None:
    outputs[0][...] = acc[...]


def _key_kernel(
  steps: _Steps, at: Any, masked: Any, inputs: Any, outputs: Any, scratch: Any
) -> None:
  query, key, value, dout, lse, delta = inputs
  dkey, dvalue = scratch

  @pl.when(at & tile_lists.EMPTY == 0)
  def _() -> None:
    for g in range(query.shape[0]):
      scores = masked(steps.dot(key[0], query[g], transpose=True))
      weights = jnp.exp(scores - lse[g][None, :])
      dvalue[...] += steps.dot(
        weights.astype(dout.dtype), dout[g], transpose=False
      )
      slopes = steps.dot(value[0], dout[g], transpose=True)
      slopes = weights * (slopes - delta[g][None, :])
      dkey[...] += steps.dot(
        slopes.astype(query.dtype), query[g], transpose=False
      )

  @pl.when(at & tile_lists.LAST != 0)
  def _() -> None:
    for out, acc in zip(outputs, scratch, strict=True):
      out[0] = acc[...]
