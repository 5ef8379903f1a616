"""Small parts of Mosaic GPU kernels, over what differs between its versions."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

# The first version whose Mosaic GPU has the semantics used here.
_VERSION = tuple(int(x) for x in jax.__version__.split(".")[:2])
SUPPORTED = _VERSION >= (0, 11)

TILED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
BY_ROW = plgpu.Layout.WGMMA.reduce(1)
BY_COLUMN = plgpu.Layout.WGMMA.reduce(0)
LOG2E = 1.4426950408889634

WORKERS = 2  # Warpgroups that compute; one more copies.
LANE = 64  # Rows of a warpgroup.


def load(ref: Any, layout: Any) -> jax.Array:
  """Loads from shared or global memory in a layout of registers."""
  read: Any = plgpu.load  # Its signature differs between versions.
  return read(ref, layout=layout, optimized=False)


def zeros(shape: tuple[int, ...]) -> jax.Array:
  """Float32 zeros: `[rows, columns]`, or `[rows]`."""
  layout = plgpu.Layout.WGMMA if len(shape) == 2 else BY_ROW
  return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)


def full(rows: int, value: float) -> jax.Array:
  """`[rows]` float32 of one value."""
  return plgpu.layout_cast(jnp.full((rows,), value, jnp.float32), BY_ROW)


def products(*pairs: tuple[Any, Any]) -> list[jax.Array]:
  """`first @ second^T` of pairs of tiles in shared memory, float32.

  All are issued before the first is waited for.
  """
  return matmuls(*((a, b.transpose((1, 0))) for a, b in pairs))


def matmuls(*pairs: tuple[Any, Any]) -> list[jax.Array]:
  """The same of `first @ second`."""

  def run(*accs: Any) -> list[jax.Array]:
    for acc, (first, second) in zip(accs, pairs, strict=True):
      plgpu.wgmma(acc, first, second)
    return [acc[...] for acc in accs]

  shapes = [(first.shape[0], second.shape[1]) for first, second in pairs]
  return pl.run_scoped(run, *(plgpu.ACC(s, jnp.float32) for s in shapes))


def add_product(
  acc: jax.Array, first: jax.Array, second: Any, interpret: Any
) -> jax.Array:
  """`acc + first @ second`, the first from registers."""
  if interpret is not None:  # The interpreter lacks products of registers.
    out = jnp.dot(first, second[...], preferred_element_type=jnp.float32)
    plgpu.commit_smem()
    return acc + out
  run: Any = pl.run_state(lambda ref: plgpu.wgmma(ref, first, second))
  return run(plgpu.ACC.init(acc))


def spread(x: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
  """Repeats a vector along the other axis."""
  return lax.broadcast_in_dim(x, shape, [axis])


@dataclasses.dataclass(frozen=True)
class Stream:
  """Tiles that one warpgroup copies while others compute.

  Attributes:
    copy: copies what step `j` needs to a slot and signals its barrier.
    ready: barriers that say that a slot is filled.
    used: barriers that say that a slot may be filled again.
    first: which of the barriers are its own: those from here on.
  """

  copy: Callable[[jax.Array, jax.Array], None]
  ready: Any
  used: Any
  first: Any = 0

  def wait(self, slot: jax.Array) -> None:
    """Waits for a slot to be filled."""
    plgpu.barrier_wait(self.ready.at[self.first + slot])

  def release(self, slot: jax.Array) -> None:
    """Lets a slot be filled again."""
    plgpu.barrier_arrive(self.used.at[self.first + slot])

  def reclaim(self, slot: jax.Array) -> None:
    """Waits until a slot may be filled again."""
    plgpu.barrier_wait(self.used.at[self.first + slot])


def produce(steps: jax.Array, slots: int, streams: Sequence[Stream]) -> None:
  """Runs the copying warpgroup: keeps `slots` steps ahead."""

  def slot(j: jax.Array) -> jax.Array:
    return lax.rem(j, jnp.int32(slots))

  for i in range(slots):

    @pl.when(i < steps)
    def _(i: int = i) -> None:
      for stream in streams:
        stream.copy(jnp.int32(i), jnp.int32(i))

  @pl.loop(jnp.int32(0), steps - slots)
  def _(j: jax.Array) -> None:
    for stream in streams:
      stream.reclaim(slot(j))
      stream.copy(j + slots, slot(j))

  # Every phase of a barrier must be seen before its memory goes.
  for i in range(slots):

    @pl.when(i < steps)
    def _(i: int = i) -> None:
      for stream in streams:
        stream.reclaim(slot(steps - 1 - i))


def kernel(body: Callable, interpret: Any, **kwargs: Any) -> Callable:
  """A kernel of two computing warpgroups and a copying one."""
  if interpret is not None:
    kwargs["interpret"] = interpret
  return plgpu.kernel(
    body,
    num_threads=WORKERS + 1,
    thread_name="group",
    compiler_params=plgpu.CompilerParams(
      approx_math=True,
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
    ),
    **kwargs,
  )
