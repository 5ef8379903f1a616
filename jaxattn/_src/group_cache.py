"""Decoding among the last members of a token's groups."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import dispatch
from jaxattn._src import kv_cache
from jaxattn._src import masks
from jaxattn._src import merge
from jaxattn._src.engines import bucketed


def init(
  batch_shape: tuple[int, ...],
  size: int,
  shapes: base.AttentionShapes,
  *,
  rounds: int,
  key_heads: int,
) -> dict[str, jax.Array]:
  """An empty cache of `size` tokens a row, with their groups.

  Args:
    batch_shape: `*B`.
    size: tokens that a row keeps.
    shapes: heads, head sizes and dtype.
    rounds: R, groups of a token and query head.
    key_heads: heads of the keys that are kept.

  Returns:
    `key [*B, size, key_heads, H]`, `value [*B, size, K, V]`,
    `group [*B, size, N, R]` and `length [*B]`.
  """
  cache = kv_cache.init(batch_shape, size, shapes)
  keys = (*batch_shape, size, key_heads, shapes.head_dim)
  groups = (*batch_shape, size, shapes.num_heads, rounds)
  return cache | {
    "key": jnp.zeros(keys, shapes.dtype),
    "group": jnp.zeros(groups, jnp.int32),
  }


@dataclasses.dataclass(frozen=True)
class Among:
  """Attention to the last members of the own groups, oneself among them.

  Attributes:
    window: members of a group.
    exclude_self: whether a token does not see itself.
    scale: factor of the scores.
    implementation: as of `bucketed_attention`.
  """

  window: int
  exclude_self: bool
  scale: float | None
  implementation: base.Implementation

  def extend(
    self,
    cache: dict[str, jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    groups: jax.Array,
    key_valid: jax.Array | None,
  ) -> tuple[merge.Partial, dict[str, jax.Array]]:
    """Appends new tokens and attends from them.

    Args:
      cache: from `init`.
      query: `[*B, n, N, H]`.
      key: `[*B, n, key_heads, H]`.
      value: `[*B, n, K, V]`.
      groups: `[R, *B, n, N]`.
      key_valid: `[*B, n]` bool, a prefix of each row, or None.

    Returns:
      The `Partial` of the new tokens, and the cache. One token reads the cache
      once; several are computed together with all that the cache has room for.
    """
    groups = jnp.moveaxis(groups, 0, -1)
    tokens = {"key": key, "value": value, "group": groups}
    grown = kv_cache.append(cache, tokens, key_valid)
    attend = self._one if query.shape[-3] == 1 else self._many
    found = attend(cache["length"], grown, query, groups)
    if key_valid is None:
      return found, grown
    valid = key_valid[..., None]
    return merge.Partial(
      jnp.where(valid[..., None], found.out, 0.0),
      jnp.where(valid, found.lse, -jnp.inf),
    ), grown

  def _one(
    self, position: jax.Array, cache: Any, query: jax.Array, groups: jax.Array
  ) -> merge.Partial:
    """Attention of the token at `position [*B]`, `query [*B, 1, N, H]`."""
    place = jnp.arange(cache["key"].shape[-3], dtype=jnp.int32)
    place = jax.lax.broadcast_to_rank(place, position.ndim + 1)
    before = (place <= position[..., None])[..., None, None]
    member = (cache["group"] == groups) & before  # [*B, size, N, R]
    # Members from a place on, up to the token itself.
    left = jnp.cumsum(member[..., ::-1, :, :], axis=-3, dtype=jnp.int32)[
      ..., ::-1, :, :
    ]
    seen = jnp.any(member & (left <= self.window), axis=-1)
    if self.exclude_self:
      seen = seen & (place != position[..., None])[..., None]
    heads = query.shape[-2]
    key, value = (
      jnp.repeat(cache[n], heads // cache[n].shape[-2], axis=-2)
      for n in ("key", "value")
    )
    precision = dispatch.precision(query.dtype)
    scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
    scores = jnp.einsum(
      "...nh,...snh->...sn",
      query[..., 0, :, :],
      key.astype(query.dtype),
      preferred_element_type=jnp.float32,
      precision=precision,
    )
    scores = jnp.where(seen, scores * jnp.float32(scale), -jnp.inf)
    top = jnp.max(scores, axis=-2, keepdims=True)
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-2, keepdims=True)
    any_seen = total > 0
    total = jnp.where(any_seen, total, 1.0)
    out = jnp.einsum(
      "...sn,...snv->...nv",
      weights / total,
      value.astype(jnp.float32),
      precision=precision,
    )
    lse = jnp.where(any_seen, top + jnp.log(total), -jnp.inf)
    return merge.Partial(out[..., None, :, :], lse)

  def _many(
    self, position: jax.Array, cache: Any, query: jax.Array, groups: jax.Array
  ) -> merge.Partial:
    """Attention of the tokens from `position [*B]` on."""
    del groups
    size, new = cache["key"].shape[-3], query.shape[-3]
    place = jnp.arange(size, dtype=jnp.int32)
    place = jax.lax.broadcast_to_rank(place, position.ndim + 1)
    offset = place - position[..., None]
    at = jnp.clip(offset, 0, new - 1)[..., None, None]
    key, value = cache["key"], cache["value"]
    value = jnp.repeat(value, key.shape[-2] // value.shape[-2], axis=-2)
    whole = bucketed.bucketed_attention(
      jnp.take_along_axis(query, at, axis=-3),
      key.astype(query.dtype),
      value.astype(query.dtype),
      jnp.moveaxis(cache["group"], -1, 0),
      reach=bucketed.Reach(chunk=self.window, window=self.window),
      mask=masks.Mask(
        causal=True, key_valid=place < cache["length"][..., None]
      ),
      exclude_self=self.exclude_self,
      scale=self.scale,
      implementation=self.implementation,
    )
    offset = jnp.arange(new, dtype=jnp.int32)
    offset = jax.lax.broadcast_to_rank(offset, position.ndim + 1)
    at = jnp.minimum(position[..., None] + offset, size - 1)[..., None]
    return merge.Partial(
      jnp.take_along_axis(whole.out, at[..., None], axis=-3),
      jnp.take_along_axis(whole.lse, at, axis=-2),
    )
