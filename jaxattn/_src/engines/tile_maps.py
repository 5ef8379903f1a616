"""Arrays cut in tiles along an index map, and put back."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import layout as layout_lib

Map = layout_lib.Fold | layout_lib.Columns


def cut(x: jax.Array, index_map: Map) -> jax.Array:
  """Cuts `[B, T, ...]` in tiles, `[B, num, tile, ...]`, zero at padding."""
  batch, length, *rest = x.shape
  num, tile = index_map.num, index_map.tile
  if isinstance(index_map, layout_lib.Columns):
    x = x[:, index_map.index.reshape(-1)]
    return x.reshape(batch, num, tile, *rest)
  padding = num * tile - length
  if padding:
    x = jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * len(rest)])
  if index_map.stride > 1:
    x = x.reshape(batch, -1, index_map.stride, *rest)
    x = jnp.moveaxis(x, 2, 1)
  return x.reshape(batch, num, tile, *rest)


def put(x: jax.Array, index_map: Map, length: int) -> jax.Array:
  """Puts tiles `[B, num, tile, ...]` back to `[B, length, ...]`."""
  batch, num, tile, *rest = x.shape
  x = x.reshape(batch, num * tile, *rest)
  if isinstance(index_map, layout_lib.Columns):
    columns = np.asarray(index_map.columns)
    out = jnp.zeros((batch, length, *rest), x.dtype)
    return out.at[:, columns].set(x[:, : len(columns)])
  if index_map.stride > 1:
    x = x.reshape(batch, index_map.stride, -1, *rest)
    x = jnp.moveaxis(x, 1, 2).reshape(batch, num * tile, *rest)
  return x[:, :length]


def cut_heads(
  x: jax.Array, index_map: Map, kv_heads: int, *, stacked: bool
) -> jax.Array:
  """Cuts `[B, T, N, D]` to `[B, K, num, G, tile, D]`, G query heads per K.

  With `stacked`, heads stand behind one another on the tile axis instead:
  `[B, 1, N * num, 1, tile, D]`.
  """
  batch, _, heads, depth = x.shape
  x = cut(x, index_map)
  x = x.reshape(*x.shape[:3], kv_heads, heads // kv_heads, depth)
  x = x.transpose(0, 3, 1, 4, 2, 5)
  if stacked:
    x = x.reshape(batch, 1, -1, 1, index_map.tile, depth)
  return x


def put_heads(
  x: jax.Array, index_map: Map, length: int, heads: int, *, stacked: bool
) -> jax.Array:
  """Undoes `cut_heads`, to `[B, length, N, D]`."""
  batch, depth = x.shape[0], x.shape[-1]
  if stacked:
    x = x.reshape(batch, heads, index_map.num, 1, index_map.tile, depth)
  x = x.transpose(0, 2, 4, 1, 3, 5)
  x = x.reshape(batch, index_map.num, index_map.tile, heads, depth)
  return put(x, index_map, length)
