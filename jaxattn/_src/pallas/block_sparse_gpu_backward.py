"""Block-sparse attention on Hopper: gradients of queries, keys and values.

Two kernels without atomic additions, so that results are the same every time:
one computes what a run of query tiles needs, the other a run of key tiles.
Both compute the weights again from the log-sum-exp.
"""

import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxattn._src.pallas import block_sparse_gpu
from jaxattn._src.pallas import gpu_masks
from jaxattn._src.pallas import mosaic

TILE = block_sparse_gpu.TILE


class Inputs(NamedTuple):
  """What both kernels are given.

  Attributes:
    query: `[B, R * 128, N, H]` bfloat16 or float16.
    key: `[B, C * 128, K, H]`.
    value: `[B, C * 128, K, V]`.
    ids: as of `block_sparse_gpu.forward`.
    dout: `[B, R * 128, N, V]` in query's dtype.
    lse: `[B, N, R * 128]` float32, finite.
    delta: `[B, N, R * 128]` float32.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  ids: dict[str, jax.Array]
  dout: jax.Array
  lse: jax.Array
  delta: jax.Array

  def named(self, tables: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """All arrays by name, after the tables of a problem."""
    arrays = self._asdict()
    ids = arrays.pop("ids")
    return {**tables, **ids, **arrays}


def query_gradient(
  problem: block_sparse_gpu.Problem, inputs: Inputs
) -> jax.Array:
  """Gradient of the queries of every run, not yet times the scale.

  Returns:
    `[B, slots * 128, N, H]` in query's dtype.
  """
  sizes = _Sizes.of(problem, inputs, by_key=False)
  given = inputs.named(problem.tables())
  batch, _, heads, depth = inputs.query.shape
  names = (*given, "dquery")
  body = functools.partial(_query_kernel, problem, sizes, names)
  shape = (batch, problem.rows().num_slots * TILE, heads, depth)
  return mosaic.kernel(
    body,
    problem.interpret,
    out_type=jax.ShapeDtypeStruct(shape, inputs.query.dtype),
    scratch_types=sizes.scratch(vectors=False),
    **problem.grid(heads, batch),
  )(*given.values())


def key_gradients(
  problem: block_sparse_gpu.Problem, inputs: Inputs
) -> tuple[jax.Array, jax.Array]:
  """Gradients of the keys, not yet times the scale, and values of every run.

  Returns:
    `[B, slots * 128, K, H]` and `[B, slots * 128, K, V]` in query's dtype.
  """
  sizes = _Sizes.of(problem, inputs, by_key=True)
  given = inputs.named(problem.tables(by_key=True))
  names = (*given, "dkey", "dvalue")
  batch, heads = inputs.key.shape[0], inputs.key.shape[2]
  body = functools.partial(_key_kernel, problem, sizes, names)
  length = problem.rows(by_key=True).num_slots * TILE
  return mosaic.kernel(
    body,
    problem.interpret,
    out_type=[
      jax.ShapeDtypeStruct(
        (batch, length, heads, x.shape[-1]), inputs.query.dtype
      )
      for x in (inputs.key, inputs.value)
    ],
    scratch_types=sizes.scratch(vectors=True),
    **problem.grid(heads, batch, by_key=True),
  )(*given.values())


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Sizes of shared memory; rows are what a run keeps, columns what streams."""

  depth: int
  width: int
  group: int
  step: int
  slots: int
  dtype: Any

  @classmethod
  def of(
    cls,
    problem: block_sparse_gpu.Problem,
    inputs: Inputs,
    *,
    by_key: bool,
  ) -> "_Sizes":
    query, key, value = inputs[:3]
    config, group = problem.config, query.shape[2] // key.shape[2]
    longest = int(problem.rows(by_key=by_key).degree.max())
    step = config.key_step if by_key else config.query_step
    slots = config.key_slots if by_key else config.query_slots
    steps = longest * (TILE // step) * (group if by_key else 1)
    return cls(
      depth=query.shape[-1],
      width=value.shape[-1],
      group=group,
      step=step,
      slots=max(1, min(slots, steps)),
      dtype=query.dtype,
    )

  @property
  def parts(self) -> int:
    """Steps of a tile."""
    return TILE // self.step

  def scratch(self, *, vectors: bool) -> list[Any]:
    """Rows, columns, lse and delta of whatever side has them, barriers."""

    def tiles(count: int, rows: int, columns: int) -> Any:
      shape = (count, rows, columns)
      return plgpu.SMEM(shape, self.dtype, transforms=mosaic.TILED)

    both, lane, slots = mosaic.WORKERS, mosaic.LANE, self.slots
    vector = (slots, self.step) if vectors else (both, lane)
    ready = plgpu.Barrier(num_barriers=slots)
    used = plgpu.Barrier(num_arrivals=both, num_barriers=slots)
    streams = 4 if vectors else 2
    return [
      (tiles(both, lane, self.depth), tiles(both, lane, self.width)),
      (
        tiles(slots, self.step, self.depth),
        tiles(slots, self.step, self.width),
      ),
      (plgpu.SMEM(vector, jnp.float32), plgpu.SMEM(vector, jnp.float32)),
      (plgpu.Barrier(num_barriers=both),) * (2 if vectors else 4),
      (ready,) * streams,
      (used,) * streams,
    ]


@dataclasses.dataclass(frozen=True)
class _Kernel:
  """What both kernels share: where things are, and the weights of a step."""

  problem: block_sparse_gpu.Problem
  sizes: _Sizes
  refs: dict[str, Any]
  run: dict[str, Any]
  by_key: bool

  @property
  def first(self) -> jax.Array:
    """First row of this warpgroup."""
    return self.run["row"] * TILE + lax.axis_index("group") * mosaic.LANE

  def tile(self, j: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which tile of the list step `j` visits, and which part of it."""
    parts = jnp.int32(self.sizes.parts)
    tile = lax.div(j, parts)
    return self.run["start"] + tile, lax.rem(j, parts) * self.sizes.step

  def masked(
    self, scores: jax.Array, j: jax.Array, *, partial: bool
  ) -> jax.Array:
    """Scores of a step, `-inf` where there is no edge."""
    masking = self.problem.masking(by_key=self.by_key)
    if not partial and not masking.dynamic:
      return scores
    at, inside = self.tile(j)
    place = gpu_masks.Place(
      table=self.refs["table"][at] if "table" in self.refs else None,
      row=self.first,
      column=self.refs["cols"][at] * TILE + inside,
      row_inside=lax.axis_index("group") * mosaic.LANE,
      column_inside=inside,
    )
    return masking.apply(scores, self.refs, place, partial=partial)

  def weights(self, scores: jax.Array, lse: jax.Array, axis: int) -> jax.Array:
    """Softmax weights, from lse in units of log 2."""
    factor = self.problem.scale * mosaic.LOG2E
    return jnp.exp2(scores * factor - mosaic.spread(lse, scores.shape, axis))

  def loop(self, step: Any, carry: Any, repeats: int = 1) -> Any:
    """All steps of a run: its full tiles, then its partial ones."""
    rows = self.problem.rows(by_key=self.by_key)
    full, degree = (self.run[n] * self.sizes.parts for n in ("full", "degree"))
    if repeats == 1:
      carry = lax.fori_loop(
        0, full, functools.partial(step, partial=False), carry
      )
      if rows.num_partial:
        carry = lax.fori_loop(
          full, degree, functools.partial(step, partial=True), carry
        )
      return carry
    return lax.fori_loop(
      0,
      repeats,
      lambda g, carry: self._again(step, carry, g, full, degree, rows),
      carry,
    )

  def _again(
    self, step: Any, carry: Any, g: Any, full: Any, degree: Any, rows: Any
  ) -> Any:
    carry = lax.fori_loop(
      0, full, functools.partial(step, partial=False, head=g), carry
    )
    if rows.num_partial:
      carry = lax.fori_loop(
        full, degree, functools.partial(step, partial=True, head=g), carry
      )
    return carry

  def fetch(self, pairs: list[tuple[Any, Any, Any]]) -> None:
    """Copies what this warpgroup keeps, and waits for it."""
    group = lax.axis_index("group")
    for source, target, barrier in pairs:
      plgpu.copy_gmem_to_smem(source, target.at[group], barrier.at[group])
    for _, _, barrier in pairs:
      plgpu.barrier_wait(barrier.at[group])

  def stream(self, source: Any, tiles: Any, ready: Any, used: Any) -> Any:
    """A stream of tiles; `source` maps a step to what is copied."""

    def copy(j: jax.Array, slot: jax.Array) -> None:
      plgpu.copy_gmem_to_smem(source(j), tiles.at[slot], ready.at[slot])

    return mosaic.Stream(copy, ready, used)


def _query_kernel(
  problem: block_sparse_gpu.Problem,
  sizes: _Sizes,
  names: tuple[str, ...],
  *refs: Any,
) -> None:
  named = dict(zip(names, refs, strict=False))
  rows, columns, vectors, asked, ready, used = refs[len(names) :]
  run = block_sparse_gpu.run_at(named)
  named["batch"] = batch = run["batch"]
  this = _Kernel(problem, sizes, named, run, by_key=False)
  group = lax.axis_index("group")
  kv_head = lax.div(run["head"], jnp.int32(sizes.group))

  def source(name: str) -> Any:
    def at(j: jax.Array) -> Any:
      tile, inside = this.tile(j)
      first = named["cols"][tile] * TILE + inside
      return named[name].at[batch, pl.ds(first, sizes.step), kv_head]

    return at

  keys, values = (
    this.stream(source(name), columns[i], ready[i], used[i])
    for i, name in enumerate(("key", "value"))
  )

  @pl.when(group < mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(240, action="increase")
    there = pl.ds(this.first, mosaic.LANE)
    wide = (batch, there, run["head"])
    thin = (batch, run["head"], there)
    this.fetch(
      [
        (named["query"].at[wide], rows[0], asked[0]),
        (named["dout"].at[wide], rows[1], asked[1]),
        (named["lse"].at[thin], vectors[0], asked[2]),
        (named["delta"].at[thin], vectors[1], asked[3]),
      ]
    )
    lse, delta = (mosaic.load(v.at[group], mosaic.BY_ROW) for v in vectors)

    def step(j: Any, carry: Any, *, partial: bool) -> Any:
      acc, lse, delta = carry
      slot = lax.rem(j, jnp.int32(sizes.slots))
      keys.wait(slot)
      values.wait(slot)
      scores, slopes = mosaic.products(
        *((rows[i].at[group], columns[i].at[slot]) for i in range(2))
      )
      values.release(slot)
      scores = this.masked(scores, j, partial=partial)
      weights = this.weights(scores, lse, 0)
      slopes = weights * (slopes - mosaic.spread(delta, slopes.shape, 0))
      acc = mosaic.add_product(
        acc, slopes.astype(sizes.dtype), columns[0].at[slot], problem.interpret
      )
      keys.release(slot)
      return acc, lse, delta

    start = mosaic.zeros((mosaic.LANE, sizes.depth))
    acc, _, _ = this.loop(step, (start, lse * mosaic.LOG2E, delta))
    mine = rows[0].at[group]
    mine[...] = acc.astype(sizes.dtype)
    plgpu.commit_smem()
    target = run["slot"] * TILE + group * mosaic.LANE
    out = named["dquery"].at[batch, pl.ds(target, mosaic.LANE), run["head"]]
    plgpu.copy_smem_to_gmem(mine, out)
    plgpu.wait_smem_to_gmem(0)

  @pl.when(group == mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(24, action="decrease")
    mosaic.produce(run["degree"] * sizes.parts, sizes.slots, [keys, values])


def _key_kernel(
  problem: block_sparse_gpu.Problem,
  sizes: _Sizes,
  names: tuple[str, ...],
  *refs: Any,
) -> None:
  named = dict(zip(names, refs, strict=False))
  rows, columns, vectors, asked, ready, used = refs[len(names) :]
  run = block_sparse_gpu.run_at(named)
  named["batch"] = batch = run["batch"]
  this = _Kernel(problem, sizes, named, run, by_key=True)
  group = lax.axis_index("group")
  steps = run["degree"] * sizes.parts

  def source(name: str, *, wide: bool) -> Any:
    def at(j: jax.Array) -> Any:
      member = lax.div(j, steps) if sizes.group > 1 else 0
      head = run["head"] * sizes.group + member
      tile, inside = this.tile(lax.rem(j, steps) if sizes.group > 1 else j)
      there = pl.ds(named["cols"][tile] * TILE + inside, sizes.step)
      place = (batch, there, head) if wide else (batch, head, there)
      return named[name].at[place]

    return at

  queries, douts, lses, deltas = (
    this.stream(
      source(name, wide=i < 2), (*columns, *vectors)[i], ready[i], used[i]
    )
    for i, name in enumerate(("query", "dout", "lse", "delta"))
  )

  @pl.when(group < mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(240, action="increase")
    place = (batch, pl.ds(this.first, mosaic.LANE), run["head"])
    this.fetch(
      [
        (named["key"].at[place], rows[0], asked[0]),
        (named["value"].at[place], rows[1], asked[1]),
      ]
    )

    def step(j: Any, carry: Any, *, partial: bool, head: Any = 0) -> Any:
      dkey, dvalue = carry
      slot = lax.rem(j + head * steps, jnp.int32(sizes.slots))
      pairs = [(rows[i].at[group], columns[i].at[slot]) for i in range(2)]
      queries.wait(slot)
      if problem.config.paired:
        douts.wait(slot)
        scores, slopes = mosaic.products(*pairs)
      else:
        (scores,), slopes = mosaic.products(pairs[0]), None
      scores = this.masked(scores, j, partial=partial)
      lses.wait(slot)
      lse = mosaic.load(vectors[0].at[slot], mosaic.BY_COLUMN) * mosaic.LOG2E
      lses.release(slot)
      weights = this.weights(scores, lse, 1).astype(sizes.dtype)
      if slopes is None:
        douts.wait(slot)
      dvalue = mosaic.add_product(
        dvalue, weights, columns[1].at[slot], problem.interpret
      )
      if slopes is None:
        (slopes,) = mosaic.products(pairs[1])
      douts.release(slot)
      deltas.wait(slot)
      delta = mosaic.load(vectors[1].at[slot], mosaic.BY_COLUMN)
      deltas.release(slot)
      slopes -= mosaic.spread(delta, slopes.shape, 1)
      slopes *= weights.astype(jnp.float32)
      dkey = mosaic.add_product(
        dkey, slopes.astype(sizes.dtype), columns[0].at[slot], problem.interpret
      )
      queries.release(slot)
      return dkey, dvalue

    start = tuple(
      mosaic.zeros((mosaic.LANE, n)) for n in (sizes.depth, sizes.width)
    )
    found = this.loop(step, start, repeats=sizes.group)
    target = run["slot"] * TILE + group * mosaic.LANE
    place = (batch, pl.ds(target, mosaic.LANE), run["head"])
    for tile, grad in zip(rows, found, strict=True):
      mine = tile.at[group]
      mine[...] = grad.astype(sizes.dtype)
    plgpu.commit_smem()
    for name, tile in zip(("dkey", "dvalue"), rows, strict=True):
      plgpu.copy_smem_to_gmem(tile.at[group], named[name].at[place])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(group == mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(24, action="decrease")
    mosaic.produce(
      steps * sizes.group, sizes.slots, [queries, douts, lses, deltas]
    )
