"""Causal linear attention on Hopper: the two kernels.

With `P(a, b, c)_i = sum_(j<=i) (a_i . b_j + bias) c_j` and `R` the same over
`j >= i`, the output before its division is `P(q, k, v)` and the gradients for
a cotangent `d` are `P(d, v, k)`, `R(v, d, q)` and `R(k, q, d)`: one kernel
makes them all. One sequence would occupy one warpgroup, so that it is cut into
segments; a second kernel makes the sum of each, from which XLA makes what is
before each. Inside a segment the sum stays in registers from chunk to chunk.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxattn._src import feature_maps
from jaxattn._src.pallas import mosaic

CHUNK = mosaic.LANE
_BLOCK = 64  # Columns of `c` that a program has.
_MEMORY = 220 << 10  # Bytes of shared memory for tiles.
_SLOTS = 3  # Chunks in flight, as far as memory allows.
_WARPGROUPS = 256  # Wanted, in all: about two on every processor.
_FEWEST = 4  # Chunks of a segment, as far as there are two segments.
_OPERANDS = ("first", "second", "third")


@dataclasses.dataclass(frozen=True)
class Product:
  """Static facts of a product.

  Attributes:
    steps: chunks of a segment.
    reverse: whether a row sees what comes after it.
    normalize: whether rows are divided by the sum of their weights.
    bias: the axis of the scores that the bias is along, or None for no bias.
    interpret: parameters of the interpreter, or None.
  """

  steps: int
  reverse: bool = False
  normalize: bool = False
  bias: int | None = None
  interpret: Any = None

  def of(self, **changes: Any) -> "Product":
    """Another of the same sequence."""
    return dataclasses.replace(self, **changes)


def steps(length: int, rows: int) -> int:
  """Chunks of a segment, so that all processors have something to do.

  Args:
    length: tokens.
    rows: products of sequences, of which there is one for every head, row of
      the batch and block of columns.
  """
  chunks = -(-length // CHUNK)
  segments = max(mosaic.WORKERS, -(-_WARPGROUPS // rows))
  least = min(_FEWEST, -(-chunks // mosaic.WORKERS))
  # A power of two, which lengths are often multiples of: others are padded.
  return max(least, 1 << (max(1, chunks // segments).bit_length() - 1))


def sums(product: Product, second: jax.Array, third: jax.Array) -> jax.Array:
  """`sum_j b_j c_j^T` of every segment.

  Args:
    product: how many chunks a segment has.
    second: `[B, T, K, A]`, T a multiple of two segments, A and C of 64.
    third: `[B, T, K, C]`.

  Returns:
    `[B, K, segments, A, C]` float32.
  """
  batch, length, heads, depth = second.shape
  shape = _Shape.of(product, depth, {"second": heads, "third": heads})
  width = third.shape[-1]
  segments = length // (product.steps * CHUNK)
  return mosaic.kernel(
    functools.partial(_sums_kernel, shape),
    product.interpret,
    out_type=jax.ShapeDtypeStruct(
      (batch, heads, segments, depth, width), jnp.float32
    ),
    scratch_types=shape.scratch(second.dtype, _OPERANDS[1:]),
    **shape.grid(batch, heads, segments, width),
  )(second, third)


def apply(
  product: Product,
  first: jax.Array,
  second: jax.Array,
  third: jax.Array,
  start: jax.Array,
  extra: dict[str, jax.Array],
) -> list[jax.Array]:
  """The product of every chunk, from what is before its segment.

  Args:
    product: which.
    first: `[B, T, Na, A]`; N is the most heads of any operand.
    second: `[B, T, Nb, A]`.
    third: `[B, T, Nb, C]`.
    start: `[B, Nb or less, segments, A, C]` float32.
    extra: with `normalize` the sums of weights of earlier chunks, `total
      [B, N, T]`; with a bias this, `bias [B, N, T]`, and what it multiplies of
      earlier chunks, `counts [B, Nb or N, chunks, C]`.

  Returns:
    `[B, T, N, C]` in the dtype of `first`, and `[B, N, T]` float32 sums of
    weights with `normalize`.
  """
  batch, length, _, depth = first.shape
  width = third.shape[-1]
  given = {"first": first, "second": second, "third": third}
  heads = {name: x.shape[2] for name, x in given.items()}
  given |= {"start": start, **extra}
  heads |= {n: x.shape[1] for n, x in given.items() if n not in heads}
  shape = _Shape.of(product, depth, heads)
  segments = length // (product.steps * CHUNK)
  out = [jax.ShapeDtypeStruct((batch, length, shape.most, width), first.dtype)]
  names = [*given, "out"]
  if product.normalize:
    total = (batch, shape.most, length)
    out.append(jax.ShapeDtypeStruct(total, jnp.float32))
    names.append("sums")
  return mosaic.kernel(
    functools.partial(_apply_kernel, shape, tuple(names)),
    product.interpret,
    out_type=out,
    scratch_types=shape.scratch(first.dtype, _OPERANDS),
    **shape.grid(batch, shape.most, segments, width),
  )(*given.values())


@dataclasses.dataclass(frozen=True)
class _Shape:
  """What both kernels know before they run."""

  product: Product
  depth: int
  heads: tuple[tuple[str, int], ...]

  @classmethod
  def of(cls, product: Product, depth: int, heads: dict[str, int]) -> "_Shape":
    return cls(product, depth, tuple(heads.items()))

  @property
  def most(self) -> int:
    """Heads of the outputs."""
    return max(count for _, count in self.heads)

  def grid(
    self, batch: int, heads: int, segments: int, width: int
  ) -> dict[str, Any]:
    """Every two segments of every head and block of columns."""
    return {
      "grid": (segments // mosaic.WORKERS, width // _BLOCK, heads, batch),
      "grid_names": ("pairs", "blocks", "heads", "batch"),
    }

  def scratch(self, dtype: Any, names: tuple[str, ...]) -> list[Any]:
    """Tiles in flight and their barriers; what is before, outputs, totals."""
    both = mosaic.WORKERS

    def tiles(count: int, rows: int, columns: int) -> Any:
      shape = (count, rows, columns)
      return plgpu.SMEM(shape, dtype, transforms=mosaic.TILED)

    widths = {n: _BLOCK if n == "third" else self.depth for n in names}
    kept = both * _BLOCK * (self.depth + CHUNK) * 2
    step = both * CHUNK * 2 * sum(widths.values())
    slots = max(1, min((_MEMORY - kept) // step, _SLOTS, self.product.steps))
    barrier = plgpu.Barrier(num_barriers=both * slots)
    streams = {
      n: (tiles(both * slots, CHUNK, w), barrier, barrier)
      for n, w in widths.items()
    }
    if names != _OPERANDS:
      return [streams]
    return [
      streams,
      tiles(both, self.depth, _BLOCK),
      tiles(both, CHUNK, _BLOCK),
      plgpu.SMEM((both, CHUNK), jnp.float32),
    ]


class _Program:
  """What a block of threads has to do."""

  def __init__(self, shape: _Shape, refs: dict[str, Any], memory: Any) -> None:
    self.shape, self.product = shape, shape.product
    self.refs, self.memory = refs, memory
    self.slots = memory["third"][0].shape[0] // mosaic.WORKERS
    self.batch = lax.axis_index("batch")
    self.columns = pl.ds(lax.axis_index("blocks") * _BLOCK, _BLOCK)

  def head(self, name: str) -> jax.Array:
    """The head of an operand that belongs to the program's."""
    group = self.shape.most // dict(self.shape.heads)[name]
    return lax.div(lax.axis_index("heads"), jnp.int32(group))

  def segment(self, worker: Any) -> jax.Array:
    """The segment of a computing warpgroup."""
    return lax.axis_index("pairs") * mosaic.WORKERS + worker

  def chunk(self, worker: Any, j: jax.Array) -> jax.Array:
    """The chunk of its step `j`."""
    steps = self.product.steps
    at = steps - 1 - j if self.product.reverse else j
    return self.segment(worker) * steps + at

  def rows(self, worker: Any, j: jax.Array) -> Any:
    """The tokens of that chunk."""
    return pl.ds(self.chunk(worker, j) * CHUNK, CHUNK)

  def tile(self, worker: Any, name: str, slot: jax.Array) -> Any:
    """What was copied of an operand."""
    return self.memory[name][0].at[worker * self.slots + slot]

  def produce(self, names: tuple[str, ...]) -> None:
    """Copies the tiles of both computing warpgroups."""
    streams = [
      self.stream(worker, name)
      for worker in range(mosaic.WORKERS)
      for name in names
    ]
    mosaic.produce(jnp.int32(self.product.steps), self.slots, streams)

  def stream(self, worker: Any, name: str) -> mosaic.Stream:
    """The tiles of an operand that a computing warpgroup sees."""
    tiles, ready, used = self.memory[name]
    first = worker * self.slots

    def copy(j: jax.Array, slot: jax.Array) -> None:
      source = self.refs[name].at[self.batch, self.rows(worker, j)]
      source = source.at[:, self.head(name)]
      if name == "third":
        source = source.at[:, self.columns]
      target = tiles.at[first + slot]
      plgpu.copy_gmem_to_smem(source, target, ready.at[first + slot])

    return mosaic.Stream(copy, ready, used, first)


def _sums_kernel(
  shape: _Shape, second: Any, third: Any, out: Any, memory: Any
) -> None:
  refs = {"second": second, "third": third}
  program = _Program(shape, refs, memory)
  worker, names = lax.axis_index("group"), _OPERANDS[1:]

  @pl.when(worker < mosaic.WORKERS)
  def _() -> None:
    streams = [program.stream(worker, name) for name in names]

    def step(j: jax.Array, state: jax.Array) -> jax.Array:
      slot = lax.rem(j, jnp.int32(program.slots))
      for stream in streams:
        stream.wait(slot)
      b, c = (program.tile(worker, name, slot) for name in names)
      (more,) = mosaic.matmuls((b.transpose((1, 0)), c))
      for stream in streams:
        stream.release(slot)
      return state + more

    state = mosaic.zeros((shape.depth, _BLOCK))
    state = lax.fori_loop(0, shape.product.steps, step, state)
    head, segment = lax.axis_index("heads"), program.segment(worker)
    target = out.at[program.batch, head, segment, :, program.columns]
    target[...] = state

  @pl.when(worker == mosaic.WORKERS)
  def _() -> None:
    program.produce(names)


def _apply_kernel(shape: _Shape, names: tuple[str, ...], *refs: Any) -> None:
  named = dict(zip(names, refs, strict=False))
  memory, *kept = refs[len(names) :]
  program = _Program(shape, named, memory)
  worker = lax.axis_index("group")

  @pl.when(worker < mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(240, action="increase")
    _Worker(program, worker, *(x.at[worker] for x in kept)).run()

  @pl.when(worker == mosaic.WORKERS)
  def _() -> None:
    plgpu.set_max_registers(24, action="decrease")
    program.produce(_OPERANDS)


@dataclasses.dataclass(frozen=True)
class _Worker:
  """A computing warpgroup: the chunks of a segment, one after the other."""

  program: _Program
  worker: Any
  before: Any
  out: Any
  total: Any

  def run(self) -> None:
    """All chunks."""
    program = self.program
    start = program.refs["start"].at[
      program.batch,
      program.head("start"),
      program.segment(self.worker),
      :,
      program.columns,
    ]
    state = mosaic.load(start, plgpu.Layout.WGMMA)
    lax.fori_loop(0, program.product.steps, self._step, state)
    plgpu.wait_smem_to_gmem(0)

  def _step(self, j: jax.Array, state: jax.Array) -> jax.Array:
    program = self.program
    dtype = self.before.dtype
    slot = lax.rem(j, jnp.int32(program.slots))
    vectors = self._vectors(j)
    self.before[...] = state.astype(dtype)
    plgpu.commit_smem()
    streams = [program.stream(self.worker, name) for name in _OPERANDS]
    for stream in streams:
      stream.wait(slot)
    a, b, c = (program.tile(self.worker, name, slot) for name in _OPERANDS)
    read = [(a, self.before), (a, b.transpose((1, 0)))]
    write = (b.transpose((1, 0)), c)
    if program.shape.depth == _BLOCK:
      acc, scores, more = mosaic.matmuls(*read, write)
      state += more
    else:  # Registers do not hold all three.
      state += mosaic.matmuls(write)[0]
      acc, scores = mosaic.matmuls(*read)
    streams[0].release(slot)
    streams[1].release(slot)
    scores, acc = self._biased(scores, acc, vectors)
    row, column = (
      plgpu.broadcasted_iota(
        jnp.int32, scores.shape, axis, layout=plgpu.Layout.WGMMA
      )
      for axis in (0, 1)
    )
    seen = row <= column if program.product.reverse else row >= column
    scores = jnp.where(seen, scores, 0.0)
    acc = mosaic.add_product(
      acc, scores.astype(dtype), c, program.product.interpret
    )
    streams[2].release(slot)
    self._store(j, acc, scores, vectors)
    return state

  def _vectors(self, j: jax.Array) -> dict[str, jax.Array]:
    """What goes with the rows, and what with the columns, of a chunk."""
    program, found = self.program, {}
    rows = program.rows(self.worker, j)
    for name in ("bias", "total"):
      if name in program.refs:
        by_column = name == "bias" and program.product.bias == 1
        layout = mosaic.BY_COLUMN if by_column else mosaic.BY_ROW
        source = program.refs[name].at[program.batch, program.head(name), rows]
        found[name] = mosaic.load(source, layout)
    if "counts" in program.refs:
      source = program.refs["counts"].at[
        program.batch,
        program.head("counts"),
        program.chunk(self.worker, j),
        program.columns,
      ]
      found["counts"] = mosaic.load(source, mosaic.BY_COLUMN)
    return found

  def _biased(
    self, scores: jax.Array, acc: jax.Array, vectors: dict[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Scores with their bias, and sums with that of earlier chunks."""
    axis = self.program.product.bias
    if axis is None:
      return scores, acc
    bias = mosaic.spread(vectors["bias"], scores.shape, axis)
    counts = mosaic.spread(vectors["counts"], acc.shape, 1)
    return scores + bias, acc + (bias * counts if axis == 0 else counts)

  def _store(
    self, j: jax.Array, acc: jax.Array, scores: jax.Array, vectors: Any
  ) -> None:
    """Writes a chunk out, through shared memory."""
    program = self.program
    batch, head = program.batch, lax.axis_index("heads")
    rows = program.rows(self.worker, j)
    plgpu.wait_smem_to_gmem(0)
    if program.product.normalize:
      total = vectors["total"] + scores.sum(axis=1)
      seen = jnp.abs(total) > feature_maps.LEAST
      over = jnp.where(seen, 1.0 / jnp.where(seen, total, 1.0), 0.0)
      acc *= mosaic.spread(over, acc.shape, 0)
      self.total[...] = total
    self.out[...] = acc.astype(self.out.dtype)
    plgpu.commit_smem()
    target = program.refs["out"].at[batch, rows, head, program.columns]
    plgpu.copy_smem_to_gmem(self.out, target)
    if program.product.normalize:
      plgpu.copy_smem_to_gmem(
        self.total, program.refs["sums"].at[batch, head, rows]
      )
