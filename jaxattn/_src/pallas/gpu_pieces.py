"""Pieces of block-sparse attention by the Hopper kernels, on whole arrays."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import merge
from jaxattn._src.engines import piece_passes
from jaxattn._src.engines import tile_maps
from jaxattn._src.pallas import block_sparse_gpu
from jaxattn._src.pallas import block_sparse_gpu_backward
from jaxattn._src.pallas import mosaic

TILE = block_sparse_gpu.TILE
_SIZES = (64, 128)  # Of heads; others are padded.
_ABSENT = np.iinfo(np.int32).min  # Segment of queries that are not there.


def obstacle(
  query: Any, key: Any, value: Any, *, relative: bool, scale: float, tile: Any
) -> str | None:
  """Why the kernels cannot serve a call, or None.

  Args:
    query: an array, or what has its shape and dtype.
    key: likewise.
    value: likewise.
    relative: whether there is a relative-position term.
    scale: factor of the scores.
    tile: tokens in a tile that were asked for, or None.
  """
  if not mosaic.SUPPORTED:
    return f"it needs jax 0.11 or newer, and this is {jax.__version__}"
  if query.dtype not in (jnp.bfloat16, jnp.float16):
    return f"it takes bfloat16 and float16, not {query.dtype}"
  if not query.dtype == key.dtype == value.dtype:
    return "query, key and value differ in dtype"
  widest = max(query.shape[-1], value.shape[-1])
  if widest > _SIZES[-1]:
    return f"heads may have up to {_SIZES[-1]} features, not {widest}"
  if relative:
    return "it has no relative-position term"
  if scale <= 0:
    return f"the scale must be positive, not {scale}"
  if tile not in (None, TILE):
    return f"its tiles have {TILE} tokens, not {tile}"
  return None


def forward(task: piece_passes.Task, inputs: piece_passes.Inputs) -> Any:
  """The piece's partial attention of all queries; see `piece_passes`."""
  problem, arrays, ids = _prepare(task, inputs)
  query, key, value = arrays
  out, lse = block_sparse_gpu.forward(problem, query, key, value, ids)
  lse = jnp.swapaxes(lse, 1, 2)
  rows = problem.rows()
  out, lse = _tiles(out), _tiles(lse)
  if rows.parts.size:
    places = _places(rows.parts, inputs.query.shape[2])
    parts = merge.merge(
      *(
        merge.Partial(
          _part(out, places, p).astype(jnp.float32), _part(lse, places, p)
        )
        for p in range(rows.parts.shape[-1])
      ),
    )
    out = _replace(out, places, parts.out.astype(out.dtype))
    lse = _replace(lse, places, parts.lse)
  out, lse = out[:, : rows.num_rows], lse[:, : rows.num_rows]
  put = functools.partial(
    tile_maps.put, index_map=task.piece.query, length=task.q_len
  )
  width = inputs.value.shape[-1]
  return merge.Partial(put(out)[..., :width].astype(jnp.float32), put(lse))


def backward(
  task: piece_passes.Task,
  inputs: piece_passes.Inputs,
  rows: piece_passes.Rows,
) -> list[jax.Array]:
  """Gradients of query, key and value; see `piece_passes`."""
  problem, arrays, ids = _prepare(task, inputs)
  piece = task.piece
  dout = _pad(_flat(rows.dout, piece.query))
  lse, delta = (
    jnp.swapaxes(_flat(x, piece.query), 1, 2) for x in (rows.lse, rows.delta)
  )
  query, key, value = arrays
  given = block_sparse_gpu_backward.Inputs(
    query, key, value, ids, dout, lse, delta
  )
  dq = block_sparse_gpu_backward.query_gradient(problem, given)
  dk, dv = block_sparse_gpu_backward.key_gradients(problem, given)
  found = []
  for grad, like, by_key, factor in (
    (dq, inputs.query, False, task.plan.scale),
    (dk, inputs.key, True, task.plan.scale),
    (dv, inputs.value, True, 1.0),
  ):
    runs = problem.rows(by_key=by_key)
    tiles = _tiles(grad)
    if runs.parts.size:
      places = _places(runs.parts, like.shape[2])
      total = functools.reduce(
        jnp.add,
        (
          _part(tiles, places, p).astype(jnp.float32)
          for p in range(runs.parts.shape[-1])
        ),
      )
      tiles = _replace(tiles, places, total.astype(tiles.dtype))
    index_map = piece.key if by_key else piece.query
    length = task.k_len if by_key else task.q_len
    whole = tile_maps.put(tiles[:, : runs.num_rows], index_map, length)
    whole = whole[..., : like.shape[-1]].astype(jnp.float32)
    found.append(whole * factor if factor != 1.0 else whole)
  return found


def _prepare(
  task: piece_passes.Task, inputs: piece_passes.Inputs
) -> tuple[block_sparse_gpu.Problem, list[jax.Array], dict[str, jax.Array]]:
  """The problem as kernels see it, its arrays, and its ids."""
  piece = task.piece
  maps = {"query": piece.query, "key": piece.key}
  ids: dict[str, jax.Array] = {}
  segments = _segments(inputs)
  for side, found in segments.items():
    ids[f"{side}_segment"] = _flat(found, maps[side])
  positions = (inputs.query_ids.position, inputs.key_ids.position)
  if positions[0] is not None and positions[1] is not None:
    for side, found in zip(maps, positions, strict=True):
      assert found is not None
      ids[f"{side}_position"] = _flat(found.astype(jnp.int32), maps[side])
  problem = block_sparse_gpu.Problem(
    piece=piece,
    heads=inputs.query.shape[2] if task.stacked else None,
    scale=task.plan.scale,
    segments="query_segment" in ids,
    positions="query_position" in ids,
    config=block_sparse_gpu.CONFIGS[
      _size(max(inputs.query.shape[-1], inputs.value.shape[-1]))
    ],
    interpret=task.interpret,
  )
  arrays = [
    _pad(_flat(x, m))
    for x, m in (
      (inputs.query, piece.query),
      (inputs.key, piece.key),
      (inputs.value, piece.key),
    )
  ]
  return problem, arrays, ids


def _segments(inputs: piece_passes.Inputs) -> dict[str, jax.Array]:
  """Segment ids of both sides; who is invalid belongs to none."""
  sides = (inputs.query_ids, inputs.key_ids)
  if all(s.valid is None and s.segment is None for s in sides):
    return {}
  found = {}
  lengths = (inputs.query.shape[1], inputs.key.shape[1])
  # Two ids that never meet: an invalid query sees not even invalid keys.
  for name, side, length, absent in zip(
    ("query", "key"), sides, lengths, (_ABSENT, _ABSENT + 1), strict=True
  ):
    segment = side.segment
    if segment is None:
      segment = jnp.zeros((1, length), jnp.int32)
    segment = segment.astype(jnp.int32)
    if side.valid is not None:
      segment = jnp.where(side.valid, segment, jnp.int32(absent))
    found[name] = segment
  return found


def _flat(x: jax.Array, index_map: tile_maps.Map) -> jax.Array:
  """Re-indexed and padded to whole tiles, `[B, tiles * 128, ...]`."""
  x = tile_maps.cut(x, index_map)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _tiles(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1, TILE, *x.shape[2:])


def _pad(x: jax.Array) -> jax.Array:
  """Pads the features of heads to a size that the kernels have."""
  size = _size(x.shape[-1])
  if size == x.shape[-1]:
    return x
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])


def _size(features: int) -> int:
  return next(s for s in _SIZES if s >= features)


def _places(parts: np.ndarray, heads: int) -> np.ndarray:
  """`[heads, S, P]`, the same for all heads if there is one list."""
  return np.broadcast_to(parts, (heads, *parts.shape[1:]))


def _part(x: jax.Array, places: np.ndarray, part: int) -> jax.Array:
  """Part `part` of rows in parts, `[N, S, B, 128, ...]`; nothing where none."""
  at = places[..., part]
  heads = np.arange(len(places))[:, None]
  found = x[:, at, :, heads]
  there = (at >= 0).reshape(*at.shape, *[1] * (found.ndim - 2))
  nothing = -jnp.inf if x.ndim == 4 else 0.0
  return jnp.where(there, found, jnp.asarray(nothing, x.dtype))


def _replace(x: jax.Array, places: np.ndarray, rows: jax.Array) -> jax.Array:
  """Puts `[N, S, B, 128, ...]` where the first parts are."""
  at = places[..., 0]
  at = np.where(at >= 0, at, x.shape[1])  # Out of bounds is dropped.
  heads = np.arange(len(places))[:, None]
  return x.at[:, at, :, heads].set(rows, mode="drop")
