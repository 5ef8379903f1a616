"""The relative-position term on tiles; axes as in `tile_passes`."""

import jax
import jax.numpy as jnp


def query_term(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The term for tiles of queries and the keys they visit.

  Args:
    logits: `[B or 1, K, c, G, p, L]` of each query, or with `c = p = 1` a table
      that all share.
    labels: `[B or 1, c, p, d, s]` int32.

  Returns:
    `[B or 1, K, c, G, p, d, 1, s]` float32.
  """
  logits = logits.astype(jnp.float32)
  if labels.shape[0] == 1 and logits.shape[2] == logits.shape[4] == 1:
    # The table of all queries needs no copy of the labels per head.
    table = logits[:, :, 0, :, 0]  # [B, K, G, L]
    return jnp.moveaxis(table[..., labels[0]], 2, 3)[..., None, :]
  index = labels[:, None, :, None]
  index = index.reshape(*index.shape[:5], -1)
  found = _along_last(logits, index)
  return found.reshape(*found.shape[:-1], labels.shape[-2], 1, labels.shape[-1])


def key_term(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The term for tiles of keys and the queries that visit them.

  Args:
    logits: `[B or 1, K, c, d, G, s, L]` of each query, or with `c = d = s = 1`
      a table that all share.
    labels: `[B or 1, c, p, d, s]` int32.

  Returns:
    `[B or 1, K, c, 1, p, d, G, s]` float32.
  """
  logits = logits.astype(jnp.float32)
  if labels.shape[0] == 1 and logits.shape[2] == logits.shape[5] == 1:
    table = logits[:, :, 0, 0, :, 0]  # [B, K, G, L]
    return jnp.moveaxis(table[..., labels[0]], 2, 5)[:, :, :, None]
  index = labels.transpose(0, 1, 3, 4, 2)[:, None, :, :, None]
  return jnp.moveaxis(_along_last(logits, index), -1, 3)[:, :, :, None]


def query_gradient(
  logits: jax.Array, labels: jax.Array, grad: jax.Array
) -> jax.Array:
  """Gradient of `query_term` by its logits.

  Args:
    logits: as of `query_term`.
    labels: as of `query_term`.
    grad: `[B, K, c, G, p, d, 1, s]`, of the scores.

  Returns:
    float32, in the shape of `logits`.
  """
  logits = logits.astype(jnp.float32)
  term, back = jax.vjp(lambda x: query_term(x, labels), logits)
  if term.shape[0] != grad.shape[0]:
    grad = grad.sum(0, keepdims=True)
  return back(grad)[0]


def _along_last(x: jax.Array, index: jax.Array) -> jax.Array:
  """`take_along_axis` on the last axis, broadcasting the others."""
  lead = jnp.broadcast_shapes(x.shape[:-1], index.shape[:-1])
  return jnp.take_along_axis(
    jnp.broadcast_to(x, (*lead, x.shape[-1])),
    jnp.broadcast_to(index, (*lead, index.shape[-1])),
    axis=-1,
  )
