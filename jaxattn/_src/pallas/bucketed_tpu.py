"""Bucketed attention on TPU: a chunk of sorted tokens to those around it.

A step of the grid takes a chunk of queries, and by index maps the chunks of
keys around it. All scores of a chunk are in vector memory at once, so that
nothing is carried from step to step. The backward pass writes the gradients of
the keys for every chunk of queries apart; XLA adds them up.
"""

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxattn._src.engines import bucketed_edges

_WIDEST = 256  # Features of a head.
_MOST = 1 << 18  # Scores of a chunk, of which the backward pass holds several.
_ALIGNED = {"float32": 8, "bfloat16": 16}  # Rows of a tile of memory.


def obstacle(
  query: Any, key: Any, value: Any, *, chunk: int, chunks: int
) -> str | None:
  """Why the kernels cannot serve a call, or None.

  Args:
    query: an array, or what has its shape and dtype.
    key: likewise.
    value: likewise.
    chunk: tokens in a chunk.
    chunks: how many of them a token sees.
  """
  aligned = _ALIGNED.get(str(query.dtype))
  if aligned is None:
    return f"it takes bfloat16 and float32, not {query.dtype}"
  if not query.dtype == key.dtype == value.dtype:
    return "query, key and value differ in dtype"
  widest = max(query.shape[-1], value.shape[-1])
  if widest > _WIDEST:
    return f"heads may have up to {_WIDEST} features, not {widest}"
  if chunk % aligned:
    return (
      f"chunks of {query.dtype} must be multiples of {aligned} tokens, not "
      f"{chunk}: choose {-(-chunk // aligned) * aligned}"
    )
  if chunk * chunk * chunks > _MOST:
    return (
      f"a chunk of {chunk} tokens that sees {chunks * chunk} does not fit its "
      f"memory: choose smaller chunks, with up to {_MOST} scores"
    )
  return None


Sides = tuple[bucketed_edges.Side, bucketed_edges.Side]


def forward(
  call: bucketed_edges.Call,
  length: int,
  arrays: tuple[jax.Array, jax.Array, jax.Array],
  sides: Sides,
) -> tuple[jax.Array, jax.Array]:
  """Output `[F, C, V]` and lse `[F, C]`, float32; no edge: `(0, -inf)`.

  Args:
    call: static facts.
    length: T.
    arrays: queries `[F, C, H]`; keys and values `[before + F + after, C, ...]`.
    sides: what is compared of queries `[F, C]` and of keys `[F, S]`.
  """
  query, _, value = arrays
  count, chunk, _ = query.shape
  shapes = [(count, chunk, value.shape[-1]), (count, chunk, 1)]
  out, lse = _run(_forward_kernel, call, length, arrays, sides, (), shapes)
  return out, lse[..., 0]


def backward(
  call: bucketed_edges.Call,
  length: int,
  arrays: tuple[jax.Array, jax.Array, jax.Array],
  sides: Sides,
  rows: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients of queries, keys and values, float32.

  Args:
    call: static facts.
    length: T.
    arrays: as of `forward`.
    sides: as of `forward`.
    rows: of every query the cotangent `[F, C, V]` of its output; its lse and
      delta `[F, C, 2]`, as of `Tiles.backward`.

  Returns:
    `[F, C, H]`; those of the others with chunks before and after, as `arrays`.
  """
  query, key, value = arrays
  count, chunk, width = *query.shape[:2], call.width
  shapes = [
    query.shape,
    *((count, width * chunk, x.shape[-1]) for x in (key, value)),
  ]
  dq, *others = _run(
    _backward_kernel, call, length, arrays, sides, rows, shapes
  )

  def added(x: jax.Array) -> jax.Array:
    x = x.reshape(count, width, chunk, x.shape[-1])
    parts = (
      jnp.pad(x[:, i], ((i, width - 1 - i), (0, 0), (0, 0)))
      for i in range(width)
    )
    return functools.reduce(jnp.add, parts)

  dk, dv = map(added, others)
  return dq, dk, dv


def _run(
  kernel: Callable[..., None],
  call: bucketed_edges.Call,
  length: int,
  arrays: tuple[jax.Array, jax.Array, jax.Array],
  sides: Sides,
  rows: tuple[jax.Array, ...],
  shapes: Sequence[tuple[int, ...]],
) -> list[jax.Array]:
  """Runs a kernel over all chunks of queries."""
  query, key, value = arrays
  count, width = query.shape[0], call.width

  def spec(shape: tuple[int, ...], step: int = 0) -> pl.BlockSpec:
    return pl.BlockSpec((None, *shape[1:]), lambda f: (f + step, 0, 0))

  # Tokens on the axis on which they are compared: nothing is transposed.
  tree = jax.tree.structure(sides[0])
  ids = [
    jnp.stack(jax.tree.leaves(side), axis=axis)
    for side, axis in zip(sides, (2, 1), strict=True)
  ]
  given = [(x, spec(x.shape)) for x in (query, *rows, *ids)]
  for x in (key, value):
    given += [(x, spec(x.shape, step)) for step in range(width)]
  chunk = query.shape[1]
  scores = count * width * chunk**2
  return pl.pallas_call(
    functools.partial(_chunk, kernel, call, length, tree, len(rows)),
    grid=(count,),
    in_specs=[s for _, s in given],
    out_specs=[spec(s) for s in shapes],
    out_shape=[jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    interpret=False if call.choice.interpret is None else call.choice.interpret,
    cost_estimate=pl.CostEstimate(
      flops=2 * (5 if rows else 2) * scores * query.shape[-1],
      transcendentals=scores,
      bytes_accessed=sum(
        count * x.shape[1] * x.shape[2] * x.dtype.itemsize for x, _ in given
      ),
    ),
  )(*(x for x, _ in given))


def _chunk(
  kernel: Callable[..., None],
  call: bucketed_edges.Call,
  length: int,
  tree: Any,
  num_rows: int,
  *refs: Any,
) -> None:
  """One step of the grid: sorts out the references, and runs the kernel."""
  query, refs = refs[0], refs[1:]
  rows, refs = refs[:num_rows], refs[num_rows:]
  (own_ids, seen_ids), refs = refs[:2], refs[2:]
  width = call.width
  key, value = (
    jnp.concatenate([ref[...] for ref in refs[at : at + width]], axis=0)
    for at in (0, width)
  )
  own = [own_ids[:, i : i + 1] for i in range(own_ids.shape[1])]
  seen = [seen_ids[i : i + 1, :] for i in range(seen_ids.shape[0])]
  scores = _dot(call, query[...], key, (1, 1)) * jnp.float32(call.tiles.scale)
  row, column = (
    lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1)
  )
  keep = bucketed_edges.keep(
    call,
    length,
    jax.tree.unflatten(tree, own),
    jax.tree.unflatten(tree, seen),
    row,
    column,
  )
  scores = jnp.where(keep, scores, -jnp.inf)
  kernel(call, scores, query[...], key, value, rows, refs[2 * width :])


def _dot(
  call: bucketed_edges.Call, a: jax.Array, b: jax.Array, axes: tuple[int, int]
) -> jax.Array:
  return lax.dot_general(
    a,
    b,
    (((axes[0],), (axes[1],)), ((), ())),
    preferred_element_type=jnp.float32,
    precision=call.tiles.precision,
  )


def _forward_kernel(
  call: bucketed_edges.Call,
  scores: jax.Array,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  rows: Any,
  outputs: Any,
) -> None:
  del query, key, rows
  out, lse = outputs
  top = jnp.max(scores, axis=1, keepdims=True)
  top = jnp.where(top == -jnp.inf, 0.0, top)
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=1, keepdims=True)
  seen = total > 0
  total = jnp.where(seen, total, 1.0)
  out[...] = _dot(call, weights.astype(value.dtype), value, (1, 0)) / total
  lse[...] = jnp.where(seen, top + jnp.log(total), -jnp.inf)


def _backward_kernel(
  call: bucketed_edges.Call,
  scores: jax.Array,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  rows: Any,
  outputs: Any,
) -> None:
  of_out, numbers = rows[0][...], rows[1]
  dquery, dkey, dvalue = outputs
  weights = jnp.exp(scores - numbers[:, :1])
  slopes = _dot(call, of_out, value, (1, 1)) - numbers[:, 1:]
  slopes = (weights * slopes * jnp.float32(call.tiles.scale)).astype(key.dtype)
  dquery[...] = _dot(call, slopes, key, (1, 0))
  dkey[...] = _dot(call, slopes, query, (0, 0))
  dvalue[...] = _dot(call, weights.astype(of_out.dtype), of_out, (0, 0))
