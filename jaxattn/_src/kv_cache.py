"""Key/value caches for decoding: whole, or the last tokens in a ring."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base


def init(
  batch_shape: tuple[int, ...], size: int, shapes: base.AttentionShapes
) -> dict[str, jax.Array]:
  """An empty cache of `size` tokens a row.

  Args:
    batch_shape: `*B`.
    size: tokens that a row keeps.
    shapes: heads, head sizes and dtype.

  Returns:
    `key [*B, size, K, H]`, `value [*B, size, K, V]` and `length [*B]`.
  """
  heads = (*batch_shape, size, shapes.kv_heads)
  return {
    "key": jnp.zeros((*heads, shapes.head_dim), shapes.dtype),
    "value": jnp.zeros((*heads, shapes.value_size), shapes.dtype),
    "length": jnp.zeros(batch_shape, jnp.int32),
  }


def write(
  cache: dict[str, jax.Array],
  key: jax.Array,
  value: jax.Array,
  key_valid: jax.Array | None,
  *,
  leading: int = 0,
) -> dict[str, jax.Array]:
  """Appends new tokens; token `p` of a row lies in slot `p mod size`.

  With `leading`, the first tokens stay in the first slots and the others turn
  in the rest; see `slots`.

  Args:
    cache: from `init`.
    key: `[*B, n, K, H]`.
    value: `[*B, n, K, V]`.
    key_valid: `[*B, n]` bool, a prefix of each row, or None for all.
    leading: how many tokens of a row are never overwritten.

  Returns:
    The cache with the valid tokens written and the lengths grown. Of more new
    tokens than there are slots the leading and the last ones are kept.
  """
  return append(cache, {"key": key, "value": value}, key_valid, leading=leading)


def append(
  cache: dict[str, jax.Array],
  tokens: dict[str, jax.Array],
  key_valid: jax.Array | None,
  *,
  leading: int = 0,
) -> dict[str, jax.Array]:
  """As `write`, for any arrays `[*B, size, heads, ...]` beside `length`.

  Args:
    cache: `length [*B]` and the arrays, all of one size.
    tokens: for every array of the cache the new tokens `[*B, n, heads, ...]`.
    key_valid: `[*B, n]` bool, a prefix of each row, or None for all.
    leading: how many tokens of a row are never overwritten.
  """
  length, first = cache["length"], next(iter(tokens))
  size = cache[first].shape[length.ndim]
  new = tokens[first].shape[length.ndim]
  count = jnp.full_like(length, new)
  if key_valid is not None:
    count = jnp.sum(key_valid, axis=-1, dtype=jnp.int32)
  offset = jnp.arange(new, dtype=jnp.int32)
  offset = jax.lax.broadcast_to_rank(offset, length.ndim + 1)
  position = length[..., None] + offset
  last = offset >= count[..., None] - (size - leading)
  kept = (offset < count[..., None]) & (last | (position < leading))
  slot = jnp.where(kept, slots(position, size, leading), size)
  slot = slot.reshape(-1, new)

  def put(kept_rows: jax.Array, rows: jax.Array) -> jax.Array:
    flat = kept_rows.reshape(-1, *kept_rows.shape[length.ndim :])
    rows = rows.reshape(-1, *rows.shape[length.ndim :]).astype(kept_rows.dtype)
    flat = jax.vmap(lambda c, s, x: c.at[s].set(x, mode="drop"))(
      flat, slot, rows
    )
    return flat.reshape(kept_rows.shape)

  grown = {name: put(cache[name], rows) for name, rows in tokens.items()}
  return grown | {"length": length + count}


def slots(position: jax.Array, size: int, leading: int = 0) -> jax.Array:
  """The slots of tokens by position, in a cache of `size` slots."""
  turning = leading + (position - leading) % (size - leading)
  return (
    jnp.where(position < leading, position, turning) if leading else turning
  )


def positions(cache: dict[str, jax.Array]) -> jax.Array:
  """`[*B, size]` position of the token in every slot; negative when empty."""
  size = cache["key"].shape[-3]
  last = cache["length"][..., None] - 1
  slot = jnp.arange(size, dtype=jnp.int32)
  slot = jax.lax.broadcast_to_rank(slot, last.ndim)
  return last - (last - slot) % size


def in_order(cache: dict[str, jax.Array]) -> tuple[Any, Any, jax.Array]:
  """The cached tokens by position: the last of them stands in the last slot.

  Args:
    cache: from `init`.

  Returns:
    key `[*B, size, K, H]`, value `[*B, size, K, V]`, and `[*B, size]` bool,
    False where a row has not yet that many tokens.
  """
  size = cache["key"].shape[-3]
  wanted = jnp.arange(size, dtype=jnp.int32) - size
  wanted = cache["length"][..., None] + jax.lax.broadcast_to_rank(
    wanted, cache["length"].ndim + 1
  )
  slot = (wanted % size)[..., None, None]
  key = jnp.take_along_axis(cache["key"], slot, axis=-3)
  value = jnp.take_along_axis(cache["value"], slot, axis=-3)
  return key, value, wanted >= 0
