"""Causal linear attention by the Hopper kernels, on whole arrays."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src.engines import linear_chunks as chunks
from jaxattn._src.pallas import linear_gpu_kernels as kernels
from jaxattn._src.pallas import linear_operands
from jaxattn._src.pallas import mosaic

_SIZES = (64, 128)  # Of features and values; others are padded.
# float16 would not hold sums over many keys, nor gradients over them.
_DTYPES = ("bfloat16",)


def obstacle(
  feature_map: Any, query: Any, value: Any, *, causal: bool, segments: bool
) -> str | None:
  """Why the kernels cannot serve a call, or None; see `linear_operands`."""
  if not mosaic.SUPPORTED:
    return f"it needs jax 0.11 or newer, and this is {jax.__version__}"
  return linear_operands.obstacle(
    feature_map,
    query,
    value,
    causal=causal,
    segments=segments,
    dtypes=_DTYPES,
    widest=_SIZES[-1],
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
  query, key = linear_operands.features(feature_map, query, key, valid)
  batch, length, heads, _ = query.shape
  width = value.shape[-1]
  steps = kernels.steps(length, batch * heads * (_size(width) // 64))
  arrays = (
    _filled(x, 2 * steps * kernels.CHUNK)
    for x in (query, key, value.astype(query.dtype))
  )
  out = _attend(kernels.Product(steps, interpret=interpret), *arrays)
  return out[:, :length, :, :width].astype(jnp.float32)


def _size(features: int) -> int:
  return next(s for s in _SIZES if s >= features)


def _filled(x: jax.Array, rows: int) -> jax.Array:
  """Whole segments of features of a size that the kernels have."""
  missing = (-x.shape[1] % rows, _size(x.shape[3]) - x.shape[3])
  if not any(missing):
    return x
  return jnp.pad(x, [(0, 0), (0, missing[0]), (0, 0), (0, missing[1])])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  product: kernels.Product, query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
  """`[B, T, N, V]` in the dtype of the features, from `[B, T, heads, F]`."""
  return _forward(product, query, key, value)[0]


def _forward(
  product: kernels.Product, query: jax.Array, key: jax.Array, value: jax.Array
) -> Any:
  start = _others(kernels.sums(product, key, value))
  # The kernels cannot make these: a sum over the rows of a tile goes through
  # one place in shared memory, where two warpgroups would meet.
  counts = _others(_by_chunk(key).sum(3))
  batch, length, heads, _ = query.shape
  queries = _by_chunk(query)
  queries = queries.reshape(batch, key.shape[2], -1, *queries.shape[2:])
  total = jnp.sum(queries * counts[:, :, None, :, None], axis=-1)
  total = total.reshape(batch, heads, length)
  how = product.of(normalize=True)
  out, total = kernels.apply(how, query, key, value, start, {"total": total})
  return out, (query, key, value, start, counts, out, total)


def _backward(
  product: kernels.Product, kept: Any, cotangent: jax.Array
) -> tuple[jax.Array, ...]:
  query, key, value, start, counts, out, total = kept
  # Or the compiler keeps features in float32 beside these.
  query, key = jax.lax.optimization_barrier((query, key))
  slopes = chunks.cotangent_of(
    out.astype(jnp.float32),
    jnp.swapaxes(total, 1, 2),
    cotangent.astype(jnp.float32),
  )
  slope, bias = slopes.out.astype(query.dtype), jnp.swapaxes(slopes.total, 1, 2)
  later = _others(kernels.sums(product, query, slope), reverse=True)
  weighted = _by_chunk(query) * _by_chunk(slopes.total)[..., None]
  rest = _others(weighted.sum(3), reverse=True)
  (dquery,) = kernels.apply(
    product.of(bias=0),
    slope,
    value,
    key,
    jnp.swapaxes(start, -1, -2),
    {"bias": bias, "counts": counts},
  )
  (dkey,) = kernels.apply(
    product.of(bias=1, reverse=True),
    value,
    slope,
    query,
    jnp.swapaxes(later, -1, -2),
    {"bias": bias, "counts": rest},
  )
  (dvalue,) = kernels.apply(
    product.of(reverse=True), key, query, slope, later, {}
  )
  return dquery, _of_keys(dkey, key), _of_keys(dvalue, value)


_attend.defvjp(_forward, _backward)


def _by_chunk(x: jax.Array) -> jax.Array:
  """Float32 `[B, N, chunks, tokens, ...]` of `[B, T, N, ...]`."""
  x = jnp.moveaxis(x.astype(jnp.float32), 2, 1)
  return x.reshape(*x.shape[:2], -1, kernels.CHUNK, *x.shape[3:])


def _others(x: jax.Array, *, reverse: bool = False) -> jax.Array:
  """Sums over what is before on axis 2, or after it in reverse."""
  return jax.lax.cumsum(x, axis=2, reverse=reverse) - x


def _of_keys(grad: jax.Array, like: jax.Array) -> jax.Array:
  """Summed over the queries' heads of every head of the keys."""
  if grad.shape == like.shape:
    return grad
  grad = grad.reshape(*like.shape[:3], -1, like.shape[3])
  return grad.astype(jnp.float32).sum(3).astype(like.dtype)
