"""How tokens are cut in chunks for linear attention."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxattn._src.engines import linear_chunks as chunks


@dataclasses.dataclass(frozen=True)
class Layout:
  """Cuts `length` tokens in chunks, the last of them filled up.

  Attributes:
    length: tokens in a row.
    size: tokens in a chunk.
  """

  length: int
  size: int

  def rows(
    self, query: jax.Array, key: jax.Array, value: jax.Array, ids: chunks.Ids
  ) -> chunks.Rows:
    """Chunks of `[B, T, heads, size]` each; added keys are not valid."""
    query = grouped(query, key.shape[2])
    if self._missing and ids.key_valid is None:
      ids = ids._replace(key_valid=jnp.ones((1, self.length), bool))
    return chunks.Rows(
      query=self.split(query),
      key=self.split(key),
      value=self.split(value),
      ids=chunks.Ids(
        self.of_ids(ids.key_valid),
        self.of_segments(ids.query_segment),
        self.of_segments(ids.key_segment),
      ),
    )

  def split(self, x: jax.Array) -> jax.Array:
    """`[B, T, *heads, size]` as `[n, B, *heads, C, size]`, zeros added."""
    x = fill(x, self._missing)
    x = x.reshape(x.shape[0], -1, self.size, *x.shape[2:])
    return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 2, -2)

  def joined(self, x: jax.Array) -> jax.Array:
    """`[n, B, *heads, C, size]` as `[B, T, heads, size]`."""
    x = jnp.moveaxis(jnp.moveaxis(x, -2, 2), 0, 1)
    x = x.reshape(x.shape[0], -1, *x.shape[3:])[:, : self.length]
    return x.reshape(*x.shape[:2], -1, x.shape[-1])

  def of_ids(self, x: jax.Array | None) -> jax.Array | None:
    """`[B or 1, T]` as `[n, B or 1, C]`, False added."""
    if x is None:
      return None
    x = fill(x, self._missing)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, self.size), 1, 0)

  def of_segments(self, x: jax.Array | None) -> jax.Array | None:
    """As `of_ids`, with the last segment going on."""
    if x is None:
      return None
    last = jnp.broadcast_to(x[:, -1:], (x.shape[0], self._missing))
    x = jnp.concatenate([x, last], axis=1)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, self.size), 1, 0)

  @property
  def _missing(self) -> int:
    return -self.length % self.size


def fill(x: jax.Array, after: int, before: int = 0) -> jax.Array:
  """Zeros added at the ends of axis 1."""
  if not after and not before:
    return x
  return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))


def grouped(x: jax.Array, key_heads: int) -> jax.Array:
  """`[B, T, N, size]` as `[B, T, K, N / K, size]`."""
  return x.reshape(*x.shape[:2], key_heads, -1, x.shape[-1])
