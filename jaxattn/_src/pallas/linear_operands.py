"""What the kernels of causal linear attention take, on every device."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src.engines import linear_chunks as chunks


def obstacle(
  feature_map: Any,
  query: Any,
  value: Any,
  *,
  causal: bool,
  segments: bool,
  dtypes: tuple[str, ...],
  widest: int,
) -> str | None:
  """Why a kernel cannot serve a call, or None.

  Args:
    feature_map: a `Partial`.
    query: an array, or what has its shape and dtype.
    value: likewise.
    causal: whether the mask is.
    segments: whether it has segments.
    dtypes: of queries that the kernel takes.
    widest: the most features that it takes.
  """
  if not causal:
    return "without causality two matrix products are all there is to do"
  if segments:
    return "it has no segments"
  if str(query.dtype) not in dtypes:
    return f"it takes {' and '.join(dtypes)}, not {query.dtype}"
  one = jax.ShapeDtypeStruct((1, query.shape[-1]), query.dtype)
  found = jax.eval_shape(chunks.features, feature_map, one)
  if found.log_scale is not None:
    return "its features keep a logarithm"
  most = max(found.values.shape[-1], value.shape[-1])
  if most > widest:
    return f"it takes up to {widest} features, not {most}"
  return None


def features(
  feature_map: Any, query: jax.Array, key: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Features of queries and keys in their dtype, zero for keys not there.

  Args:
    feature_map: a `Partial`.
    query: `[B, T, N, H]`.
    key: `[B, T, K, H]`.
    valid: `[B or 1, T]` bool, or None for all.
  """
  queries = chunks.features(feature_map, query).values
  keys = chunks.features(feature_map, key).values
  if valid is not None:
    keys = jnp.where(valid[..., None, None], keys, 0.0)
  return queries.astype(query.dtype), keys.astype(query.dtype)
