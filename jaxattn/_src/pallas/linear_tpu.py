"""Causal linear attention on TPU: the sums over keys stay in vector memory.

One kernel serves forward and backward: with `P(a, b, c)_i = sum_(j<=i) (a_i .
b_j) c_j` and `R` the same over `j >= i`, the gradients of `P(q, k, v)` for a
cotangent `d` are `P(d, v, k)`, `R(v, d, q)` and `R(k, q, d)`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxattn._src import dispatch
from jaxattn._src.engines import linear_chunks as chunks
from jaxattn._src.pallas import linear_operands

_CHUNK = 256
_LANES = 128
_WIDEST = 1024  # Features: what the sums of a head may take of the memory.


def obstacle(
  feature_map: Any, query: Any, value: Any, *, causal: bool, segments: bool
) -> str | None:
  """Why the kernel cannot serve a call, or None; see `linear_operands`."""
  return linear_operands.obstacle(
    feature_map,
    query,
    value,
    causal=causal,
    segments=segments,
    dtypes=("bfloat16", "float32"),
    widest=_WIDEST,
  )


def attend(
  feature_map: Any,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array | None,
  *,
  interpret: Any = None,
) -> jax.Array:
  """Every query sees the valid keys up to its own place.

  Args:
    feature_map: a `Partial`.
    query: `[B, T, N, H]`.
    key: `[B, T, K, H]`.
    value: `[B, T, K, V]`.
    valid: `[B or 1, T]` bool, or None for all.
    interpret: parameters of the interpreter, or None.

  Returns:
    `[B, T, N, V]` float32.
  """
  queries, keys = linear_operands.features(feature_map, query, key, valid)
  dtype, width = query.dtype, value.shape[-1]
  # A column of ones makes the normaliser; lanes are filled up anyway.
  ones = jnp.ones((*value.shape[:-1], 1), dtype)
  both = jnp.concatenate([value.astype(dtype), ones], axis=-1)
  sums = _product(
    False,
    dispatch.precision(dtype),
    interpret,
    *(_heads_first(x) for x in (queries, keys, both)),
  )
  out = chunks.normalize(sums[..., :width], sums[..., width])
  return jnp.moveaxis(out, 1, 2)


def _heads_first(x: jax.Array) -> jax.Array:
  return jnp.moveaxis(x, 2, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(
  reverse: bool,
  precision: Any,
  interpret: Any,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
) -> jax.Array:
  """`sum_j (q_i . k_j) v_j` over `j <= i`, or `j >= i` in reverse.

  Args:
    reverse: which.
    precision: of the matrix products.
    interpret: parameters of the interpreter, or None.
    query: `[B, N, T, F]`.
    key: `[B, K, T, F]`, K divides N.
    value: `[B, K, T, V]`.

  Returns:
    `[B, N, T, V]` float32.
  """
  batch, heads, length, _ = query.shape
  width, kv_heads = value.shape[-1], key.shape[1]
  size = min(_CHUNK, -(-length // _LANES) * _LANES)
  query, key, value = (_filled(x, size) for x in (query, key, value))
  count = query.shape[2] // size

  def place(shared: bool) -> Any:
    def at(b: Any, h: Any, t: Any) -> Any:
      head = lax.div(h, jnp.int32(heads // kv_heads)) if shared else h
      return b, head, (count - 1 - t) if reverse else t, 0

    return at

  def spec(x: Any) -> pl.BlockSpec:
    shared = x.shape[1] != heads
    return pl.BlockSpec((None, None, size, x.shape[-1]), place(shared))

  shape = (batch, heads, count * size, value.shape[-1])
  out = jax.ShapeDtypeStruct(shape, jnp.float32)
  found = pl.pallas_call(
    functools.partial(_kernel, reverse, precision),
    grid=(batch, heads, count),
    in_specs=[spec(x) for x in (query, key, value)],
    out_specs=spec(out),
    out_shape=out,
    scratch_shapes=[pltpu.VMEM((key.shape[-1], value.shape[-1]), jnp.float32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary")
    ),
    interpret=False if interpret is None else interpret,
  )(query, key, value)
  return found[:, :, :length, :width]


def _filled(x: jax.Array, size: int) -> jax.Array:
  """Whole chunks of whole lanes, zeros added."""
  missing = (-x.shape[2] % size, -x.shape[3] % _LANES)
  if not any(missing):
    return x
  return jnp.pad(x, [(0, 0), (0, 0), (0, missing[0]), (0, missing[1])])


def _kernel(
  reverse: bool,
  precision: Any,
  query: Any,
  key: Any,
  value: Any,
  out: Any,
  state: Any,
) -> None:
  """One chunk: what it sees of itself, and of the sums so far."""

  def dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    return lax.dot_general(
      a,
      b,
      (((axes[0],), (axes[1],)), ((), ())),
      preferred_element_type=jnp.float32,
      precision=precision,
    )

  @pl.when(pl.program_id(2) == 0)
  def _() -> None:
    state[...] = jnp.zeros(state.shape, jnp.float32)

  scores = dot(query[...], key[...], (1, 1))
  row, column = (
    lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1)
  )
  seen = row <= column if reverse else row >= column
  scores = jnp.where(seen, scores, 0.0).astype(value.dtype)
  before = dot(query[...], state[...].astype(query.dtype), (1, 0))
  out[...] = dot(scores, value[...], (1, 0)) + before
  state[...] += dot(key[...], value[...], (0, 0))


def _forward(
  reverse: bool, precision: Any, interpret: Any, *arrays: jax.Array
) -> Any:
  return _product(reverse, precision, interpret, *arrays), arrays


def _backward(
  reverse: bool, precision: Any, interpret: Any, kept: Any, cotangent: jax.Array
) -> tuple[jax.Array, ...]:
  query, key, value = kept
  slope = cotangent.astype(query.dtype)
  group = query.shape[1] // key.shape[1]

  def run(reverse: bool, *arrays: jax.Array) -> jax.Array:
    return _product(reverse, precision, interpret, *arrays)

  def of_keys(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2)

  wide_key, wide_value = (jnp.repeat(x, group, axis=1) for x in (key, value))
  dquery = run(reverse, slope, value, key)
  dkey = of_keys(run(not reverse, wide_value, slope, query))
  dvalue = of_keys(run(not reverse, wide_key, query, slope))
  grads = (dquery, dkey, dvalue)
  return tuple(g.astype(x.dtype) for g, x in zip(grads, kept, strict=True))


_product.defvjp(_forward, _backward)
