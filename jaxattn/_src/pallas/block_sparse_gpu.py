"""Block-sparse attention on Hopper: forward.

One block of threads computes a run of tiles of 128 queries: two warpgroups of
64 queries each, and a third that copies keys and values ahead of them. Runs
list their full tiles first, so that most steps need no mask.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxattn._src import layout as layout_lib
from jaxattn._src.pallas import gpu_masks
from jaxattn._src.pallas import mosaic
from jaxattn._src.pallas import row_tables

TILE = 128
_START = -1e30  # Below every score; finite, so that differences are.


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the kernels.

  Attributes:
    slots: tiles of keys and values in shared memory.
    turns: whether the two warpgroups take turns on the tensor cores, so that
      one multiplies while the other does its exponentials.
    query_step: keys of a step of the kernel of query gradients.
    query_slots: steps of it in shared memory.
    key_step: queries of a step of the kernel of key gradients.
    key_slots: steps of it in shared memory.
    paired: whether that kernel issues both products of a step at once.
  """

  slots: int = 2
  turns: bool = True
  query_step: int = 64
  query_slots: int = 2
  key_step: int = 64
  key_slots: int = 2
  paired: bool = False


# By the size of heads; the fastest of `benchmarks.tune_hopper` on an H200.
CONFIGS = {64: Config(query_step=128), 128: Config(paired=True)}


@dataclasses.dataclass(frozen=True)
class Problem:
  """Static facts of a piece, as the kernels see it.

  Attributes:
    piece: index maps and tiles of 128.
    heads: query heads, if the layout stacks one for each; else None.
    scale: factor of the scores; positive.
    segments: whether ids must be equal.
    positions: whether keys must not come after queries.
    config: sizes.
    interpret: parameters of the interpreter, or None.
  """

  piece: layout_lib.Piece
  heads: int | None
  scale: float
  segments: bool = False
  positions: bool = False
  config: Config = Config()
  interpret: Any = None

  def rows(self, *, by_key: bool = False) -> row_tables.Rows:
    """The runs of the layout."""
    return row_tables.rows(self.piece.layout, self.heads, transpose=by_key)

  def masking(self, *, by_key: bool = False) -> gpu_masks.Masking:
    """How masks are made."""
    band = row_tables.band(self.piece, self.heads)
    return gpu_masks.Masking(band, by_key, self.segments, self.positions)

  def tables(self, *, by_key: bool = False) -> dict[str, jax.Array]:
    """What every kernel reads to find its tiles."""
    rows = self.rows(by_key=by_key)
    names = ("row", "slot", "start", "full", "degree", "cols")
    found: dict[str, Any] = {name: getattr(rows, name) for name in names}
    if rows.head is not None:
      found["head"] = rows.head
    if self.masking().band is None:
      found["table"] = rows.table
      found["masks"] = gpu_masks.table(self.piece.layout, by_key=by_key)
    return {name: jnp.asarray(x) for name, x in found.items()}

  def grid(
    self, num_heads: int, batch: int, *, by_key: bool = False
  ) -> dict[str, Any]:
    """The grid over heads, runs and batch."""
    runs = len(self.rows(by_key=by_key).row)
    heads = 1 if self.heads is not None else num_heads
    return {
      "grid": (heads, runs, batch),
      "grid_names": ("heads", "runs", "batch"),
    }


def run_at(refs: dict[str, Any]) -> dict[str, Any]:
  """What a block of threads has to do: its entry of the tables."""
  at = lax.axis_index("runs")
  run = {n: refs[n][at] for n in ("row", "slot", "start", "full", "degree")}
  run["head"] = refs["head"][at] if "head" in refs else lax.axis_index("heads")
  run["batch"] = lax.axis_index("batch")
  return run


def turns(config: Config, barrier: Any) -> Any:
  """A function that waits for the other computing warpgroup to come by."""

  def meet() -> None:
    if config.turns:
      plgpu.barrier_arrive(barrier)
      plgpu.barrier_wait(barrier)

  return meet


def forward(
  problem: Problem,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  ids: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """Attention of every run.

  Args:
    problem: the piece.
    query: `[B, R * 128, N, H]` bfloat16 or float16, H 64 or 128.
    key: `[B, C * 128, K, H]`.
    value: `[B, C * 128, K, V]`, V 64 or 128.
    ids: int32 `[B or 1, length]` by name: `query_segment`, `key_segment`,
      `query_position`, `key_position`, as far as the problem wants them.

  Returns:
    `[B, slots * 128, N, V]` in query's dtype and `[B, N, slots * 128]` float32
    lse.
  """
  batch, _, heads, depth = query.shape
  width, kv_heads = value.shape[-1], key.shape[2]
  rows, config = problem.rows(), problem.config
  slots = max(1, min(config.slots, int(rows.degree.max())))
  given = {**problem.tables(), **ids}
  given.update(query=query, key=key, value=value)
  names = (*given, "out", "lse")
  shape = _Shape(depth, width, heads // kv_heads, slots, query.dtype)
  body = functools.partial(_forward_kernel, problem, shape, names)
  length = rows.num_slots * TILE
  return mosaic.kernel(
    body,
    problem.interpret,
    out_type=[
      jax.ShapeDtypeStruct((batch, length, heads, width), query.dtype),
      jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
    ],
    scratch_types=shape.scratch(),
    **problem.grid(heads, batch),
  )(*given.values())


@dataclasses.dataclass(frozen=True)
class _Shape:
  """Sizes of shared memory."""

  depth: int
  width: int
  group: int
  slots: int
  dtype: Any

  def scratch(self) -> list[Any]:
    """Queries, keys, values, outputs, lse, and the barriers of each."""

    def tiles(count: int, rows: int, columns: int) -> Any:
      shape = (count, rows, columns)
      return plgpu.SMEM(shape, self.dtype, transforms=mosaic.TILED)

    both, lane = mosaic.WORKERS, mosaic.LANE
    ready = plgpu.Barrier(num_barriers=self.slots)
    used = plgpu.Barrier(num_arrivals=both, num_barriers=self.slots)
    return [
      tiles(both, lane, self.depth),
      tiles(self.slots, TILE, self.depth),
      tiles(self.slots, TILE, self.width),
      tiles(both, lane, self.width) if self.width != self.depth else None,
      plgpu.SMEM((both, lane), jnp.float32),
      plgpu.Barrier(num_barriers=both),
      (ready, ready),
      (used, used),
      plgpu.Barrier(num_arrivals=both, num_barriers=1),
    ]


def _forward_kernel(
  problem: Problem, shape: _Shape, names: tuple[str, ...], *refs: Any
) -> None:
  named = dict(zip(names, refs, strict=False))
  queries, keys, values, outs, lses, asked, ready, used, meeting = refs[
    len(names) :
  ]
  outs = queries if outs is None else outs
  run = run_at(named)
  named["batch"] = batch = run["batch"]
  group = lax.axis_index("group")
  kv_head = lax.div(run["head"], jnp.int32(shape.group))

  def copies(name: str, tiles: Any, barrier: Any) -> Any:
    def copy(j: jax.Array, slot: jax.Array) -> None:
      first = named["cols"][run["start"] + j] * TILE
      source = named[name].at[batch, pl.ds(first, TILE), kv_head]
      plgpu.copy_gmem_to_smem(source, tiles.at[slot], barrier.at[slot])

    return copy

  streams = [
    mosaic.Stream(copies("key", keys, ready[0]), ready[0], used[0]),
    mosaic.Stream(copies("value", values, ready[1]), ready[1], used[1]),
  ]

  @pl.when(group < mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(240, action="increase")
    mine = queries.at[group]
    first = run["row"] * TILE + group * mosaic.LANE
    source = named["query"].at[batch, pl.ds(first, mosaic.LANE), run["head"]]
    plgpu.copy_gmem_to_smem(source, mine, asked.at[group])
    plgpu.barrier_wait(asked.at[group])
    meet = turns(problem.config, meeting.at[0])
    worker = _Worker(problem, shape, named, run, streams, meet, first)
    pl.when(group == 1)(meet)
    acc, top, total = worker.loop(mine, keys, values)
    pl.when(group == 0)(meet)
    worker.finish(acc, top, total, outs.at[group], lses.at[group])

  @pl.when(group == mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(24, action="decrease")
    mosaic.produce(run["degree"], shape.slots, streams)


@dataclasses.dataclass(frozen=True)
class _Worker:
  """A computing warpgroup of the forward kernel."""

  problem: Problem
  shape: _Shape
  refs: dict[str, Any]
  run: dict[str, Any]
  streams: list[mosaic.Stream]
  meet: Any
  first: jax.Array

  def loop(self, query: Any, keys: Any, values: Any) -> Any:
    """Visits all tiles: `[64, V]` weighted sums, `[64]` maxima and totals."""
    lane = mosaic.LANE
    carry = (
      mosaic.zeros((lane, self.shape.width)),
      mosaic.full(lane, _START),
      mosaic.full(lane, 0.0),
    )
    step = functools.partial(self._step, query, keys, values)
    rows = self.problem.rows()
    full, degree = self.run["full"], self.run["degree"]
    carry = lax.fori_loop(
      0, full, functools.partial(step, partial=False), carry
    )
    if rows.num_partial:
      carry = lax.fori_loop(
        full, degree, functools.partial(step, partial=True), carry
      )
    return carry

  def finish(
    self,
    acc: jax.Array,
    top: jax.Array,
    total: jax.Array,
    outs: Any,
    lses: Any,
  ) -> None:
    """Writes outputs and lse out, through shared memory."""
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    acc *= mosaic.spread(jnp.where(seen, 1.0 / total, 0.0), acc.shape, 0)
    lse = (top + jnp.log2(total)) / mosaic.LOG2E
    outs[...] = acc.astype(self.shape.dtype)
    lses[...] = jnp.where(seen, lse, -jnp.inf)
    plgpu.commit_smem()
    batch, head = self.run["batch"], self.run["head"]
    group = lax.axis_index("group")
    there = pl.ds(self.run["slot"] * TILE + group * mosaic.LANE, mosaic.LANE)
    plgpu.copy_smem_to_gmem(outs, self.refs["out"].at[batch, there, head])
    plgpu.copy_smem_to_gmem(lses, self.refs["lse"].at[batch, head, there])
    plgpu.wait_smem_to_gmem(0)

  def _step(
    self,
    query: Any,
    keys: Any,
    values: Any,
    j: Any,
    carry: Any,
    *,
    partial: bool,
  ) -> Any:
    acc, top, total = carry
    slot = lax.rem(j, jnp.int32(self.shape.slots))
    self.streams[0].wait(slot)
    (scores,) = mosaic.products((query, keys.at[slot]))
    self.streams[0].release(slot)
    self.meet()
    masking = self.problem.masking()
    if partial or masking.dynamic:
      at = self.run["start"] + j
      place = gpu_masks.Place(
        table=self.refs["table"][at] if "table" in self.refs else None,
        row=self.first,
        column=self.refs["cols"][at] * TILE,
        row_inside=lax.axis_index("group") * mosaic.LANE,
        column_inside=0,
      )
      scores = masking.apply(scores, self.refs, place, partial=partial)
    factor = self.problem.scale * mosaic.LOG2E
    highest = jnp.maximum(top, scores.max(axis=1) * factor)
    shrink = jnp.exp2(top - highest)
    weights = jnp.exp2(
      scores * factor - mosaic.spread(highest, scores.shape, 0)
    )
    acc *= mosaic.spread(shrink, acc.shape, 0)
    total = total * shrink + weights.sum(axis=1)
    rounded = weights.astype(self.shape.dtype)
    acc, total, highest, rounded = lax.optimization_barrier(
      (acc, total, highest, rounded)
    )
    self.streams[1].wait(slot)
    self.meet()
    acc = mosaic.add_product(
      acc, rounded, values.at[slot], self.problem.interpret
    )
    self.streams[1].release(slot)
    return acc, highest, total
