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
  body = functools.partial(_body, _Queries, problem, sizes, names)
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
  body = functools.partial(_body, _Keys, problem, sizes, names)
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


class _Memory(NamedTuple):
  """Shared memory and barriers; see `_Sizes.scratch`."""

  rows: Any
  columns: Any
  vectors: Any
  asked: Any
  ready: Any
  used: Any


@dataclasses.dataclass(frozen=True)
class _Kernel:
  """What both kernels share: where things are, and the weights of a step."""

  problem: block_sparse_gpu.Problem
  sizes: _Sizes
  refs: dict[str, Any]
  run: dict[str, Any]
  memory: _Memory

  by_key = False

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

  def stream(self, at: int, source: Any) -> mosaic.Stream:
    """The stream number `at`; `source` maps a step to what is copied."""
    tiles = (*self.memory.columns, *self.memory.vectors)[at]
    ready, used = self.memory.ready[at], self.memory.used[at]

    def copy(j: jax.Array, slot: jax.Array) -> None:
      plgpu.copy_gmem_to_smem(source(j), tiles.at[slot], ready.at[slot])

    return mosaic.Stream(copy, ready, used)

  def pairs(self, slot: jax.Array) -> list[tuple[Any, Any]]:
    """What the scores and their slopes are the products of."""
    rows, columns = self.memory.rows, self.memory.columns
    group = lax.axis_index("group")
    return [(rows[i].at[group], columns[i].at[slot]) for i in range(2)]

  def add(
    self, acc: jax.Array, weights: jax.Array, column: int, slot: jax.Array
  ) -> jax.Array:
    """`acc` plus weights times a tile of columns."""
    tile = self.memory.columns[column].at[slot]
    return mosaic.add_product(acc, weights, tile, self.problem.interpret)

  def store(self, names: tuple[str, ...], found: Any) -> None:
    """Writes sums out, through the memory of the rows."""
    group, rows = lax.axis_index("group"), self.memory.rows
    target = self.run["slot"] * TILE + group * mosaic.LANE
    there = pl.ds(target, mosaic.LANE)
    for tile, grad in zip(rows, found, strict=False):
      mine = tile.at[group]
      mine[...] = grad.astype(self.sizes.dtype)
    plgpu.commit_smem()
    for name, tile in zip(names, rows, strict=False):
      out = self.refs[name].at[self.run["batch"], there, self.run["head"]]
      plgpu.copy_smem_to_gmem(tile.at[group], out)
    plgpu.wait_smem_to_gmem(0)


class _Queries(_Kernel):
  """Gradient of a run of queries."""

  @property
  def steps(self) -> jax.Array:
    """How many there are."""
    return self.run["degree"] * self.sizes.parts

  def streams(self) -> list[mosaic.Stream]:
    """Keys and values."""
    head = lax.div(self.run["head"], jnp.int32(self.sizes.group))

    def source(name: str) -> Any:
      def at(j: jax.Array) -> Any:
        tile, inside = self.tile(j)
        there = pl.ds(self.refs["cols"][tile] * TILE + inside, self.sizes.step)
        return self.refs[name].at[self.run["batch"], there, head]

      return at

    return [self.stream(i, source(n)) for i, n in enumerate(("key", "value"))]

  def work(self) -> None:
    """What a computing warpgroup does."""
    batch, head = self.run["batch"], self.run["head"]
    there = pl.ds(self.first, mosaic.LANE)
    rows, vectors = self.memory.rows, self.memory.vectors
    targets = (*rows, *vectors)
    names = ("query", "dout", "lse", "delta")
    places = [(batch, there, head)] * 2 + [(batch, head, there)] * 2
    self.fetch(
      [
        (self.refs[name].at[place], target, asked)
        for name, place, target, asked in zip(
          names, places, targets, self.memory.asked, strict=True
        )
      ]
    )
    group = lax.axis_index("group")
    lse, delta = (mosaic.load(v.at[group], mosaic.BY_ROW) for v in vectors)
    start = mosaic.zeros((mosaic.LANE, self.sizes.depth))
    acc, _, _ = self.loop(self._step, (start, lse * mosaic.LOG2E, delta))
    self.store(("dquery",), (acc,))

  def _step(self, j: Any, carry: Any, *, partial: bool) -> Any:
    acc, lse, delta = carry
    keys, values = self.streams()
    slot = lax.rem(j, jnp.int32(self.sizes.slots))
    keys.wait(slot)
    values.wait(slot)
    scores, slopes = mosaic.products(*self.pairs(slot))
    values.release(slot)
    scores = self.masked(scores, j, partial=partial)
    weights = self.weights(scores, lse, 0)
    slopes = weights * (slopes - mosaic.spread(delta, slopes.shape, 0))
    acc = self.add(acc, slopes.astype(self.sizes.dtype), 0, slot)
    keys.release(slot)
    return acc, lse, delta


class _Keys(_Kernel):
  """Gradients of a run of keys and values."""

  by_key = True

  @property
  def steps(self) -> jax.Array:
    """How many there are, for all query heads of the key head."""
    return self._steps_of_head * self.sizes.group

  @property
  def _steps_of_head(self) -> jax.Array:
    return self.run["degree"] * self.sizes.parts

  def streams(self) -> list[mosaic.Stream]:
    """Queries, cotangents of outputs, lse and delta."""
    group, steps = self.sizes.group, self._steps_of_head
    batch = self.run["batch"]

    def source(name: str, *, wide: bool) -> Any:
      def at(j: jax.Array) -> Any:
        member = lax.div(j, steps) if group > 1 else 0
        head = self.run["head"] * group + member
        tile, inside = self.tile(lax.rem(j, steps) if group > 1 else j)
        there = pl.ds(self.refs["cols"][tile] * TILE + inside, self.sizes.step)
        place = (batch, there, head) if wide else (batch, head, there)
        return self.refs[name].at[place]

      return at

    names = ("query", "dout", "lse", "delta")
    return [
      self.stream(i, source(name, wide=i < 2)) for i, name in enumerate(names)
    ]

  def work(self) -> None:
    """What a computing warpgroup does."""
    there = pl.ds(self.first, mosaic.LANE)
    place = (self.run["batch"], there, self.run["head"])
    rows, asked = self.memory.rows, self.memory.asked
    self.fetch(
      [
        (self.refs["key"].at[place], rows[0], asked[0]),
        (self.refs["value"].at[place], rows[1], asked[1]),
      ]
    )
    sizes = (self.sizes.depth, self.sizes.width)
    start = tuple(mosaic.zeros((mosaic.LANE, n)) for n in sizes)
    found = self.loop(self._step, start, repeats=self.sizes.group)
    self.store(("dkey", "dvalue"), found)

  def _step(self, j: Any, carry: Any, *, partial: bool, head: Any = 0) -> Any:
    dkey, dvalue = carry
    queries, douts, lses, deltas = self.streams()
    at = j + head * self._steps_of_head
    slot = lax.rem(at, jnp.int32(self.sizes.slots))
    pairs, slopes = self.pairs(slot), None
    queries.wait(slot)
    if self.problem.config.paired:
      douts.wait(slot)
      scores, slopes = mosaic.products(*pairs)
    else:
      (scores,) = mosaic.products(pairs[0])
    scores = self.masked(scores, j, partial=partial)
    lse = self._vector(lses, 0, slot) * mosaic.LOG2E
    weights = self.weights(scores, lse, 1).astype(self.sizes.dtype)
    if slopes is None:
      douts.wait(slot)
    dvalue = self.add(dvalue, weights, 1, slot)
    if slopes is None:
      (slopes,) = mosaic.products(pairs[1])
    douts.release(slot)
    delta = self._vector(deltas, 1, slot)
    slopes -= mosaic.spread(delta, slopes.shape, 1)
    slopes *= weights.astype(jnp.float32)
    dkey = self.add(dkey, slopes.astype(self.sizes.dtype), 0, slot)
    queries.release(slot)
    return dkey, dvalue

  def _vector(
    self, stream: mosaic.Stream, at: int, slot: jax.Array
  ) -> jax.Array:
    """A vector of the columns of a step."""
    stream.wait(slot)
    found = mosaic.load(self.memory.vectors[at].at[slot], mosaic.BY_COLUMN)
    stream.release(slot)
    return found


def _body(
  make: Any,
  problem: block_sparse_gpu.Problem,
  sizes: _Sizes,
  names: tuple[str, ...],
  *refs: Any,
) -> None:
  """A kernel: two warpgroups work, and a third copies ahead of them."""
  named = dict(zip(names, refs, strict=False))
  run = block_sparse_gpu.run_at(named)
  named["batch"] = run["batch"]
  this = make(problem, sizes, named, run, _Memory(*refs[len(names) :]))
  group = lax.axis_index("group")

  @pl.when(group < mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(240, action="increase")
    this.work()

  @pl.when(group == mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(24, action="decrease")
    mosaic.produce(this.steps, sizes.slots, this.streams())
