"""Dense attention in float32: the oracles of softmax and linear methods."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import base
from jaxattn._src import feature_maps
from jaxattn._src import masks
from jaxattn._src import merge
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import linear_chunks


def dense_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  mask: masks.Mask = masks.FULL,
  pattern: Any = None,
  relative: relative_lib.Relative | None = None,
  scale: float | None = None,
  return_lse: bool = False,
) -> Any:
  """Exact softmax attention, materialising every score.

  `softmax(scale * q k^T + relative) v` over the edges that `mask` and `pattern`
  allow, computed in float32: O(T*S) time and memory. This is the oracle that
  the sub-quadratic engines are tested against; use `block_sparse` for speed.

  Args:
    query: `[*B, T, N, H]` floats.
    key: `[*B, S, K, H]` floats; K divides N (grouped-query attention).
    value: `[*B, S, K, V]` floats.
    mask: every field is honoured.
    pattern: a static pattern, or one per head, as of `block_sparse`.
    relative: a relative-position score term.
    scale: factor of the scores, default `1 / sqrt(H)`.
    return_lse: whether to return a `Partial` (float32 output and lse) instead.

  Returns:
    `[*B, T, N, V]` in query's dtype, or a `Partial`. A row that sees no key is
    exactly zero, with zero gradient and lse `-inf`.

  Raises:
    ValueError: if shapes disagree.

  Example:
    >>> x = jnp.ones((1, 4, 2, 8))
    >>> dense_attention(x, x, x, mask=masks.CAUSAL).shape
    (1, 4, 2, 8)

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762.
  """
  base.check_qkv(query, key, value)
  batch, (q_len, heads, depth) = query.shape[:-3], query.shape[-3:]
  k_len, kv_heads = key.shape[-3:-1]
  mask.check(batch, q_len, k_len)
  scale = depth**-0.5 if scale is None else scale
  allowed = mask.dense(q_len, k_len)
  bias = None
  if relative is not None:
    relative.check(batch, q_len, k_len, heads)
    bias = relative.scores(q_len, k_len)
  if pattern is not None:
    count = _pattern_count(pattern, q_len, k_len, heads)
    allowed = allowed & jax.lax.broadcast_to_rank(
      jnp.asarray(count > 0), allowed.ndim
    )
    if count.max(initial=0) > 1:
      weight = jnp.log(jnp.maximum(count, 1).astype(jnp.float32))
      bias = weight if bias is None else bias + weight
  q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
  attend = _one_query if q_len == 1 else _all_queries
  out, lse = attend(q, k, v, scale, bias, allowed)
  if return_lse:
    return merge.Partial(out, lse)
  return out.astype(query.dtype)


def _all_queries(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  scale: float,
  bias: jax.Array | None,
  allowed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Output `[*B, T, N, V]`, lse `[*B, T, N]`; scores are `[*B, N, T, S]`."""
  group = query.shape[-2] // key.shape[-2]
  k, v = (jnp.repeat(x, group, axis=-2) for x in (key, value))
  scores = jnp.einsum(
    "...tnh,...snh->...nts", query, k, precision=jax.lax.Precision.HIGHEST
  )
  scores = _masked(scores * jnp.float32(scale), bias, allowed)
  weights, lse = _softmax(scores, axis=-1)
  out = jnp.einsum(
    "...nts,...snv->...tnv", weights, v, precision=jax.lax.Precision.HIGHEST
  )
  return out, jnp.swapaxes(lse[..., 0], -1, -2)


def _one_query(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  scale: float,
  bias: jax.Array | None,
  allowed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The same of one query, as in decoding; scores are `[*B, S, N]`.

  In the order in which a cache lies, the whole of which XLA:CPU would otherwise
  turn around first.
  """
  heads, kv_heads = query.shape[-2], key.shape[-2]
  grouped = (kv_heads, heads // kv_heads)
  product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  one = query[..., 0, :, :].reshape(*query.shape[:-3], *grouped, -1)
  scores = product("...kgh,...skh->...skg", one, key) * jnp.float32(scale)
  scores = scores.reshape(*scores.shape[:-2], heads)
  allowed = jnp.swapaxes(allowed[..., 0, :], -1, -2)
  if bias is not None:
    bias = jnp.swapaxes(bias[..., 0, :], -1, -2)
  weights, lse = _softmax(_masked(scores, bias, allowed), axis=-2)
  weights = weights.reshape(*weights.shape[:-1], *grouped)
  out = product("...skg,...skv->...kgv", weights, value)
  return out.reshape(*query.shape[:-1], value.shape[-1]), lse


def _masked(
  scores: jax.Array, bias: jax.Array | None, allowed: jax.Array
) -> jax.Array:
  if bias is not None:
    scores = scores + jax.lax.broadcast_to_rank(bias, scores.ndim)
  allowed = jax.lax.broadcast_to_rank(allowed, scores.ndim)
  return jnp.where(allowed, scores, -jnp.inf)


def _softmax(scores: jax.Array, *, axis: int) -> tuple[jax.Array, jax.Array]:
  """Weights, and the log-sum-exp, with a row that sees nothing at zero."""
  top = jnp.max(scores, axis=axis, keepdims=True, initial=-jnp.inf)
  top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0.0, top))
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=axis, keepdims=True)
  seen = total > 0
  total = jnp.where(seen, total, 1.0)
  return weights / total, jnp.where(seen, top + jnp.log(total), -jnp.inf)


def dense_linear_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  feature_map: feature_maps.FeatureMap = feature_maps.elu_features,
  mask: masks.Mask = masks.FULL,
) -> jax.Array:
  """Linear attention by its quadratic form, materialising every weight.

  `out_i = sum_j w_ij v_j / sum_j w_ij` with `w_ij = phi(q_i).phi(k_j)` over the
  keys that `mask` allows, in float32: O(T*S) time and memory. This is the
  oracle that `linear_attention` is tested against.

  Args:
    query: `[*B, T, N, H]` floats.
    key: `[*B, S, K, H]` floats; K divides N (grouped-query attention).
    value: `[*B, S, K, V]` floats.
    feature_map: of the last axis; see `jaxattn.feature_maps`.
    mask: every field is honoured.

  Returns:
    `[*B, T, N, V]` in query's dtype; exactly zero where all weights are.

  Raises:
    ValueError: if shapes disagree.

  Example:
    >>> x = jnp.ones((1, 4, 2, 8))
    >>> dense_linear_attention(x, x, x, mask=masks.CAUSAL).shape
    (1, 4, 2, 8)

  Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, eq. 4.
  """
  base.check_qkv(query, key, value)
  batch, (q_len, k_len) = query.shape[:-3], (query.shape[-3], key.shape[-3])
  mask.check(batch, q_len, k_len)
  group = query.shape[-2] // key.shape[-2]
  queries, keys = (linear_chunks.features(feature_map, x) for x in (query, key))
  weights = jnp.einsum(
    "...tnf,...snf->...nts",
    queries.values,
    jnp.repeat(keys.values, group, axis=-2),
    precision=jax.lax.Precision.HIGHEST,
  )
  allowed = jax.lax.broadcast_to_rank(mask.dense(q_len, k_len), weights.ndim)
  if keys.log_scale is not None:
    scale = jnp.swapaxes(jnp.repeat(keys.log_scale, group, axis=-1), -1, -2)
    scale = jnp.where(allowed, scale[..., None, :], -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scale, axis=-1, keepdims=True))
    scale = scale - jnp.where(jnp.isneginf(top), 0.0, top)
    weights = weights * jnp.exp(scale)
  weights = jnp.where(allowed, weights, 0.0)
  out = jnp.einsum(
    "...nts,...snv->...tnv",
    weights,
    jnp.repeat(value.astype(jnp.float32), group, axis=-2),
    precision=jax.lax.Precision.HIGHEST,
  )
  total = jnp.swapaxes(jnp.sum(weights, axis=-1), -1, -2)
  out = linear_chunks.normalize(out, total)
  return out.astype(query.dtype)


def _pattern_count(
  pattern: Any, q_len: int, k_len: int, heads: int
) -> np.ndarray:
  """How often each edge counts, `[1 or N, T, S]` ints."""
  per_head = pattern if isinstance(pattern, tuple | list) else (pattern,)
  if len(per_head) not in (1, heads):
    raise ValueError(
      f"pattern must be one, or one for each of {heads} heads; "
      f"got {len(per_head)}."
    )
  i, j = np.arange(q_len)[:, None], np.arange(k_len)[None, :]
  return np.stack(
    [
      np.broadcast_to(p.resolve(q_len, k_len).count(i, j), (q_len, k_len))
      for p in per_head
    ]
  )
