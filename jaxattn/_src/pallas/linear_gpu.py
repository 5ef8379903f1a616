"""Causal linear attention by the Hopper kernels, on whole arrays."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import feature_maps
from jaxattn._src.engines import linear_chunks as chunks
from jaxattn._src.pallas import linear_gpu_kernels as kernels
from jaxattn._src.pallas import linear_operands
from jaxattn._src.pallas import mosaic

_SIZES = (64, 128)  # Of features and values; others are padded.
# float16 would not hold sums over many keys, nor gradients over them.
_DTYPES = ("bfloat16",)
# Maps of one number at a time, which the kernels apply themselves.
_INSIDE = (
  feature_maps.elu_features,
  feature_maps.relu_features,
  feature_maps.identity_features,
)


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
  batch, length, heads, depth = query.shape
  width = value.shape[-1]
  steps = kernels.steps(length, batch * heads * (_size(width) // 64))
  inside = valid is None and depth in _SIZES and _of_numbers(feature_map)
  product = kernels.Product(
    steps,
    feature_map=feature_map.func if inside else None,
    interpret=interpret,
  )
  if not inside:
    query, key = linear_operands.features(feature_map, query, key, valid)
  arrays = (
    _filled(x, 2 * steps * kernels.CHUNK)
    for x in (query, key, value.astype(query.dtype))
  )
  out = _attend(product, *arrays)
  return out[:, :length, :, :width].astype(jnp.float32)


def _of_numbers(feature_map: Any) -> bool:
  """Whether the kernels can apply a map to their tiles."""
  bound = feature_map.args or feature_map.keywords
  return feature_map.func in _INSIDE and not bound


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
  start, counts = map(_others, kernels.sums(product.of("second"), key, value))
  how = product.of("first", "second", normalize=True)
  out, total = kernels.apply(how, query, key, value, start, {"counts": counts})
  return out, (query, key, value, start, counts, out, total)


def _backward(
  product: kernels.Product, kept: Any, cotangent: jax.Array
) -> tuple[jax.Array, ...]:
  query, key, value, start, counts, out, total = kept
  slopes = chunks.cotangent_of(
    out.astype(jnp.float32),
    jnp.swapaxes(total, 1, 2),
    cotangent.astype(jnp.float32),
  )
  slope, bias = slopes.out.astype(query.dtype), jnp.swapaxes(slopes.total, 1, 2)
  later, rest = (
    _others(x, reverse=True)
    for x in kernels.sums(product.of("second"), query, slope, bias)
  )
  (dquery,) = kernels.apply(
    product.of("third", bias=0),
    slope,
    value,
    key,
    jnp.swapaxes(start, -1, -2),
    {"bias": bias, "counts": counts},
  )
  (dkey,) = kernels.apply(
    product.of("third", bias=1, reverse=True),
    value,
    slope,
    query,
    jnp.swapaxes(later, -1, -2),
    {"bias": bias, "counts": rest},
  )
  how = product.of("first", "second", reverse=True)
  (dvalue,) = kernels.apply(how, key, query, slope, later, {})
  dquery, dkey = (
    _pulled(product.feature_map, x, grad)
    for x, grad in ((query, dquery), (key, _of_keys(dkey, key)))
  )
  return dquery, dkey, _of_keys(dvalue, value)


_attend.defvjp(_forward, _backward)


def _pulled(feature_map: Any, x: jax.Array, grad: jax.Array) -> jax.Array:
  """The gradient of what features that the kernels made were made of."""
  if feature_map is None:
    return grad
  _, pull = jax.vjp(lambda x: chunks.features(feature_map, x).values, x)
  return pull(grad.astype(jnp.float32))[0]


def _others(x: jax.Array, *, reverse: bool = False) -> jax.Array:
  """Sums over what is before on axis 2, or after it in reverse."""
  return jax.lax.cumsum(x, axis=2, reverse=reverse) - x


def _of_keys(grad: jax.Array, like: jax.Array) -> jax.Array:
  """Summed over the queries' heads of every head of the keys."""
  if grad.shape == like.shape:
    return grad
  grad = grad.reshape(*like.shape[:3], -1, like.shape[3])
  return grad.astype(jnp.float32).sum(3).astype(like.dtype)
