"""Spherical k-means with moving averages, and balanced clusters of tokens."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def plain_layer_norm(x: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
  """Layer norm of the last axis without parameters, in float32.

  Vectors lie on a sphere of radius `sqrt(H)` afterwards, where the nearest by
  distance and the largest by product are the same.
  """
  wide = x.astype(jnp.float32)
  wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
  variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
  return wide * jax.lax.rsqrt(variance + epsilon)


def unit(x: jax.Array) -> jax.Array:
  """Vectors of `plain_layer_norm` on the unit sphere, float32, no gradient."""
  x = jax.lax.stop_gradient(x)
  return x * jnp.float32(x.shape[-1] ** -0.5)


def draw_centroids(
  rng: jax.Array, *, num_heads: int, num_clusters: int, head_dim: int
) -> jax.Array:
  """Random unit centroids `[N, C, H]` float32, of mean zero like layer norms.

  Args:
    rng: a PRNG key.
    num_heads: N.
    num_clusters: C.
    head_dim: H.
  """
  x = jax.random.normal(rng, (num_heads, num_clusters, head_dim))
  return _normalized(x - jnp.mean(x, axis=-1, keepdims=True))


def scores(vectors: jax.Array, centroids: jax.Array) -> jax.Array:
  """Products of tokens and centroids, `[*B, N, C, T]` float32.

  Args:
    vectors: `[*B, T, N, H]`, of `plain_layer_norm`.
    centroids: `[N, C, H]`.
  """
  return jnp.einsum(
    "...tnh,nch->...nct",
    unit(vectors),
    centroids,
    precision=jax.lax.Precision.HIGHEST,
  )


def nearest(vectors: jax.Array, centroids: jax.Array) -> jax.Array:
  """The nearest centroid of every token, `[*B, T, N]` int32.

  Args:
    vectors: `[*B, T, N, H]`, of `plain_layer_norm`.
    centroids: `[N, C, H]`.
  """
  found = jnp.argmax(scores(vectors, centroids), axis=-2)
  return jnp.swapaxes(found, -1, -2).astype(jnp.int32)


def top_members(
  scores: jax.Array, valid: jax.Array | None, *, size: int
) -> jax.Array:
  """The tokens of the largest scores in every cluster.

  Every cluster gets as many; a token may be in several of them or in none.

  Args:
    scores: `[*B, N, C, T]`.
    valid: `[*B, T]` bool, False at padding, or None.
    size: w, tokens of a cluster, at most T of them.

  Returns:
    `[*B, N, C, min(w, T)]` int32. Padding is never chosen: where fewer tokens
    are valid than wanted, -1 stands in its place.
  """
  if valid is not None:
    valid = jax.lax.broadcast_to_rank(valid, scores.ndim - 2)
    scores = jnp.where(valid[..., None, None, :], scores, -jnp.inf)
  found, index = jax.lax.top_k(scores, min(size, scores.shape[-1]))
  index = index.astype(jnp.int32)
  return index if valid is None else jnp.where(found > -jnp.inf, index, -1)


def update(
  centroids: jax.Array,
  vectors: Sequence[jax.Array],
  valid: Sequence[jax.Array | None],
  *,
  decay: float,
  axis_name: Any = None,
) -> jax.Array:
  """Moves centroids towards the mean of the tokens that are nearest to them.

  `mu <- normalize(decay mu + (1 - decay) mean)`; a centroid to which no token
  is nearest stays where it is.

  Args:
    centroids: `[N, C, H]` unit vectors.
    vectors: arrays `[*B, T, N, H]` of `plain_layer_norm`: queries and keys.
    valid: for each of them `[*B, T]` bool, False at padding, or None.
    decay: of the moving average; 1 keeps the centroids, 0 takes the means.
    axis_name: of the devices over which the batch is split inside `shard_map`
      or `pmap`, where sums are added up. Under plain `jit` sums are over the
      whole batch anyway.

  Returns:
    The new centroids, unit vectors.
  """
  heads, clusters, depth = centroids.shape
  sums = jnp.zeros((heads * clusters, depth + 1), jnp.float32)
  line = jnp.arange(heads, dtype=jnp.int32)[None] * clusters
  for x, there in zip(vectors, valid, strict=True):
    at = nearest(x, centroids).reshape(-1, heads) + line
    rows = unit(x).reshape(-1, heads, depth)
    rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
    if there is not None:
      there = jnp.broadcast_to(
        jax.lax.broadcast_to_rank(there, x.ndim - 2), x.shape[:-2]
      )
      there = there.reshape(-1, 1, 1)
      rows = jnp.where(there, rows, 0.0)
    sums = sums.at[at.reshape(-1)].add(
      rows.reshape(-1, depth + 1), mode="promise_in_bounds"
    )
  if axis_name is not None:
    sums = jax.lax.psum(sums, axis_name)
  sums = sums.reshape(heads, clusters, depth + 1)
  count = sums[..., -1:]
  mean = sums[..., :-1] / jnp.maximum(count, 1.0)
  moved = _normalized(decay * centroids + (1.0 - decay) * mean)
  return jnp.where(count > 0, moved, centroids)


def commitment_loss(
  vectors: jax.Array, centroids: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
  """Mean squared distance of tokens to their nearest centroid.

  The gradient reaches the tokens only: centroids move by `update`.

  Args:
    vectors: `[*B, T, N, H]`, of `plain_layer_norm`.
    centroids: `[N, C, H]` unit vectors.
    valid: `[*B, T]` bool, False at padding, or None.

  Returns:
    A float32 number.
  """
  wide = vectors * jnp.float32(vectors.shape[-1] ** -0.5)
  at = nearest(vectors, centroids)
  heads = jnp.arange(centroids.shape[0])
  heads = jax.lax.broadcast_to_rank(heads, at.ndim)
  mine = jax.lax.stop_gradient(centroids)[heads, at]
  distance = jnp.sum((wide - mine) ** 2, axis=-1)
  if valid is None:
    return jnp.mean(distance)
  weight = jax.lax.broadcast_to_rank(valid, at.ndim - 1)[..., None]
  weight = jnp.broadcast_to(weight, distance.shape).astype(jnp.float32)
  return jnp.sum(weight * distance) / jnp.maximum(jnp.sum(weight), 1.0)


def _normalized(x: jax.Array) -> jax.Array:
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
