"""Linear attention without causality: sums over all keys, then a product."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import dispatch
from jaxattn._src.engines import linear_chunks as chunks
from jaxattn._src.engines import linear_layout as layout_lib

# A token counts for so many numbers at least, so that few heads with few
# features are taken in parts too.
_LEAST_NUMBERS = 2048


def attend(
  feature_map: Any,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array | None,
  *,
  precision: Any,
) -> jax.Array:
  """Every query sees every valid key.

  Features are made a part of the tokens at a time, and again in the backward
  pass.

  Args:
    feature_map: a `Partial`.
    query: `[B, T, N, H]`.
    key: `[B, S, K, H]`.
    value: `[B, S, K, V]`.
    valid: `[B or 1, S]` bool, or None for all.
    precision: of the matrix products.

  Returns:
    `[B, T, N, V]` float32.
  """
  size = jax.eval_shape(chunks.features, feature_map, key).values.shape[-1]
  numbers = query.shape[0] * query.shape[2] * size  # Features of a token.
  tokens = dispatch.score_budget() // max(_LEAST_NUMBERS, numbers)
  layouts = [
    layout_lib.Layout(n, min(n, max(64, tokens)))
    for n in (query.shape[1], key.shape[1])
  ]
  query = layout_lib.grouped(query, key.shape[2])
  if key.shape[1] % layouts[1].size and valid is None:
    valid = jnp.ones((1, key.shape[1]), bool)
  add = functools.partial(_add, feature_map, precision)
  keys = (
    layouts[1].split(key),
    layouts[1].split(value),
    layouts[1].of_ids(valid),
  )
  batch, heads, depth = value.shape[0], *value.shape[2:]
  start = (
    jnp.zeros((batch, heads, size, depth), jnp.float32),
    jnp.zeros((batch, heads, size), jnp.float32),
    jnp.full((batch, heads), chunks.LOWEST, jnp.float32),
  )
  (sums, normalizer, _), _ = jax.lax.scan(add, start, keys)
  read = functools.partial(_read, feature_map, precision, sums, normalizer)
  return layouts[0].joined(jax.lax.map(read, layouts[0].split(query)))


def _add(feature_map: Any, precision: Any, state: Any, chunk: Any) -> Any:
  """Adds some keys to sums, normalisers and the top of the logarithms."""
  sums, normalizer, old = state

  @jax.checkpoint
  def of_keys(feature_map: Any, key: jax.Array, value: jax.Array) -> Any:
    keys = chunks.features(feature_map, key)
    weight, top = _weights(keys.log_scale, chunk[2], old)
    values = keys.values if weight is None else keys.values * weight[..., None]
    return (
      jnp.einsum(
        "bksf,bksv->bkfv",
        values,
        value.astype(jnp.float32),
        precision=precision,
      ),
      jnp.sum(values, axis=-2),
      top,
    )

  more, count, top = of_keys(feature_map, *chunk[:2])
  if top is None:  # The map keeps no logarithm.
    return (sums + more, normalizer + count, old), None
  top = jax.lax.stop_gradient(top)
  keep = jnp.exp(old - top)[..., None]
  return (keep[..., None] * sums + more, keep * normalizer + count, top), None


def _weights(
  scale: jax.Array | None, valid: jax.Array | None, old: jax.Array
) -> tuple[jax.Array | None, jax.Array | None]:
  """The factor of every key, and the new top; None for one, and for none."""
  if valid is not None:
    valid = valid[:, None]
  if scale is None:
    return None if valid is None else valid.astype(jnp.float32), None
  if valid is not None:
    scale = jnp.where(valid, scale, chunks.LOWEST)
  top = jax.lax.stop_gradient(jnp.maximum(old, jnp.max(scale, axis=-1)))
  weight = jnp.exp(scale - top[..., None])
  return weight if valid is None else jnp.where(valid, weight, 0.0), top


def _read(
  feature_map: Any,
  precision: Any,
  sums: jax.Array,
  normalizer: jax.Array,
  query: jax.Array,
) -> jax.Array:
  """The outputs of some queries."""

  @jax.checkpoint
  def of_queries(
    feature_map: Any, query: jax.Array, sums: jax.Array, normalizer: jax.Array
  ) -> jax.Array:
    queries = chunks.features(feature_map, query).values
    out = jnp.einsum("bkgtf,bkfv->bkgtv", queries, sums, precision=precision)
    total = jnp.einsum(
      "bkgtf,bkf->bkgt", queries, normalizer, precision=precision
    )
    return chunks.normalize(out, total)

  return of_queries(feature_map, query, sums, normalizer)
