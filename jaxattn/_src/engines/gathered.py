"""Softmax attention inside clusters, each a list of tokens."""

import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import dispatch
from jaxattn._src import masks
from jaxattn._src import merge
from jaxattn._src.engines import head_loop
from jaxattn._src.engines import pair_tiles

HONOURS = masks.ALL_FIELDS


def gathered_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_index: jax.Array,
  key_index: jax.Array,
  *,
  mask: masks.Mask = masks.FULL,
  exclude_self: bool = False,
  scale: float | None = None,
  implementation: base.Implementation = None,
) -> merge.Partial:
  """Attends inside clusters of listed tokens.

  In cluster c of a head the w listed queries attend to the u listed keys, as
  far as `mask` allows; it compares the tokens' own positions. A token may be
  listed in several clusters or in none: what to make of its slots is left to
  the caller. Time is `C w u`; temporary memory holds some clusters' scores.

  Args:
    query: `[*B, T, N, H]` floats.
    key: `[*B, S, K, H]` floats; K divides N (grouped-query attention).
    value: `[*B, S, K, V]` floats.
    query_index: `[*B, N, C, w]` ints in `[0, T)`, or -1 for an empty slot.
    key_index: `[*B, N, C, u]` ints in `[0, S)`, or -1.
    mask: every field is honoured.
    exclude_self: whether the query and key of one index have no edge.
    scale: factor of the scores, default `1 / sqrt(H)`.
    implementation: None picks the best that serves the call.

  Returns:
    A `Partial` of slots: `out [*B, N, C, w, V]` and `lse [*B, N, C, w]`,
    float32; `(0, -inf)` for slots that are empty or see nothing, with zero
    gradient. Reverse-mode differentiation only.

  Raises:
    ValueError: if shapes disagree.
    NotImplementedError: if the named implementation cannot serve the call.

  Example:
    >>> x = jnp.ones((1, 6, 1, 8))
    >>> index = jnp.array([[0, 2, 4], [1, 3, -1]])[None, None]
    >>> gathered_attention(x, x, x, index, index).lse.shape
    (1, 1, 2, 3)

  Source: Roy et al., 2021, https://arxiv.org/abs/2003.05997, section 4.
  """
  base.check_qkv(query, key, value)
  batch, (q_len, heads, depth) = query.shape[:-3], query.shape[-3:]
  k_len = key.shape[-3]
  mask.check(batch, q_len, k_len)
  for name, index in (("query_index", query_index), ("key_index", key_index)):
    _check_index(name, index, (*batch, heads))
  if query_index.shape[:-1] != key_index.shape[:-1]:
    raise ValueError(
      "query_index and key_index must list the same clusters, got "
      f"{query_index.shape} and {key_index.shape}."
    )
  dispatch.choose("gathered", implementation)
  shape = (*query_index.shape, value.shape[-1])
  if 0 in shape or 0 in (q_len, k_len):
    return merge.Partial(
      jnp.zeros(shape, jnp.float32),
      jnp.full(shape[:-1], -jnp.inf, jnp.float32),
    )
  call = _Call(
    causal=mask.causal,
    exclude_self=exclude_self,
    tiles=pair_tiles.Tiles(
      depth**-0.5 if scale is None else float(scale),
      dispatch.precision(query.dtype),
    ),
    budget=dispatch.gathered_budget(),
  )
  names = (("query", query_index, q_len), ("key", key_index, k_len))
  sides = (_side(mask, name, index, n, batch) for name, index, n in names)
  rows = math.prod(batch)
  out, lse = _attend(
    call,
    *(x.reshape(rows, *x.shape[-3:]) for x in (query, key, value)),
    *sides,
  )
  return merge.Partial(out.reshape(shape), lse.reshape(shape[:-1]))


def _check_index(name: str, index: jax.Array, lead: tuple[int, ...]) -> None:
  if index.ndim != len(lead) + 2 or index.shape[:-2] != lead:
    raise ValueError(
      f"{name} must be [*B, N, C, slots] with [*B, N] = {lead}, got "
      f"{index.shape}."
    )
  if not jnp.issubdtype(index.dtype, jnp.integer):
    raise ValueError(f"{name} must be integers, got {index.dtype}.")


@dataclasses.dataclass(frozen=True)
class _Call:
  """Static facts of one call."""

  causal: bool
  exclude_self: bool
  tiles: pair_tiles.Tiles
  budget: int


class _Side(NamedTuple):
  """The slots of queries or keys, `[B * N * C, slots]` each, or None."""

  index: jax.Array
  there: jax.Array
  segment: jax.Array | None
  position: jax.Array | None


def _side(
  mask: masks.Mask,
  name: str,
  index: jax.Array,
  length: int,
  batch: tuple[int, ...],
) -> _Side:
  """What masks compare of every slot."""
  index = jax.lax.stop_gradient(index.astype(jnp.int32))
  clusters, slots = index.shape[-2:]
  rows = math.prod(batch)
  index = index.reshape(rows, -1, clusters, slots)
  row = jnp.arange(rows, dtype=jnp.int32)[:, None, None, None]
  safe = jnp.maximum(index, 0)

  def of_slots(field: str) -> jax.Array | None:
    x = getattr(mask, f"{name}_{field}")
    if x is None:
      return None
    x = jnp.broadcast_to(jnp.asarray(x), (*batch, length)).reshape(-1)
    x = pair_tiles.take_rows(x, row * length + safe).reshape(-1, slots)
    return x if x.dtype == jnp.bool_ else x.astype(jnp.int32)

  there = (index >= 0).reshape(-1, slots)
  valid = of_slots("valid")
  position = None
  if mask.causal:
    position = of_slots("positions")
    position = safe.reshape(-1, slots) if position is None else position
  return _Side(
    safe.reshape(-1, slots),
    there if valid is None else there & valid,
    of_slots("segment_ids"),
    position,
  )


def _rows(index: jax.Array, x: jax.Array, heads: int) -> jax.Array:
  """The numbers of the slots' rows in `x [B, T, heads, size]` flattened."""
  batch, length, own, _ = x.shape
  index = index.reshape(batch, heads, -1)
  row = jnp.arange(batch, dtype=jnp.int32)[:, None, None] * length
  head = jnp.arange(heads, dtype=jnp.int32)[None, :, None] // (heads // own)
  return ((row + index) * own + head).reshape(-1)


def _keep(call: _Call, query: _Side, key: _Side) -> jax.Array:
  """Which edges there are, `[tiles, queries, keys]`."""
  own = jax.tree.map(lambda x: x[:, :, None], query)
  seen = jax.tree.map(lambda x: x[:, None], key)
  keep = own.there & seen.there
  if call.causal:
    keep = keep & (own.position >= seen.position)
  if call.exclude_self:
    keep = keep & (own.index != seen.index)
  if own.segment is not None:
    keep = keep & (own.segment == seen.segment)
  return keep


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  call: _Call,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_side: _Side,
  key_side: _Side,
) -> tuple[jax.Array, jax.Array]:
  """`[B * N * C, w, V]` and `[B * N * C, w]`, float32."""
  return _forward(call, query, key, value, query_side, key_side)[0]


def _forward(call, query, key, value, query_side, key_side) -> Any:
  def run(query: Any, key: Any, value: Any, sides: Any) -> Any:
    operands = _tiles(query, key, value, sides)

    def visit(tile: Any) -> tuple[jax.Array, jax.Array]:
      own, rows = tile
      return call.tiles.forward(
        *_taken(query, key, value, rows), _keep(call, *own)
      )

    return _map(call, visit, (sides, operands))

  sides = (query_side, key_side)
  out, lse = _over_heads(run, query, [query, key, value], sides, tiled=True)
  return (out, lse), (query, key, value, *sides, out, lse)


def _backward(call, kept: Any, cotangent: Any) -> Any:
  query, key, value, query_side, key_side, out, lse = kept
  of_out, of_lse = cotangent
  lines = pair_tiles.softmax_rows(out, lse, of_out, of_lse)

  def run(query: Any, key: Any, value: Any, tiles: Any) -> Any:
    sides, lines = tiles
    operands = _tiles(query, key, value, sides)

    def visit(tile: Any) -> tuple[jax.Array, ...]:
      own, rows, lines = tile
      return call.tiles.backward(
        *_taken(query, key, value, rows), _keep(call, *own), lines
      )

    grads = _map(call, visit, (sides, operands, lines))
    return [
      _scattered(x, g, at)
      for x, g, at in zip((query, key, value), grads, operands, strict=True)
    ]

  lines = (of_out.astype(value.dtype), *lines)
  tiles = ((query_side, key_side), lines)
  grads = _over_heads(run, query, [query, key, value], tiles, tiled=False)
  return (*grads, None, None)


_attend.defvjp(_forward, _backward)


def _over_heads(
  function: Any, query: jax.Array, arrays: list[Any], tiles: Any, *, tiled: bool
) -> Any:
  """Runs a function of arrays and tiles, by heads where that pays.

  Args:
    function: of arrays with heads on axis 2, and tiles `[B * N * C, ...]`.
    query: the first of the arrays.
    arrays: query, key and value.
    tiles: what it is given beside them.
    tiled: whether its results are tiles too, or else like the arrays.
  """
  batch, length, heads, _ = query.shape
  steps = arrays[1].shape[2]
  if not head_loop.pays(batch * length * (heads // steps), steps):
    return function(*arrays, tiles)

  def by_head(x: jax.Array) -> jax.Array:
    return x.reshape(batch, 1, heads, -1, *x.shape[1:])

  def flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[4:])

  def run(*given: Any) -> Any:
    *own, tiles = given
    found = function(*own, jax.tree.map(flat, tiles))
    size = own[0].shape[2]
    if not tiled:
      return found
    return [x.reshape(batch, 1, size, -1, *x.shape[1:]) for x in found]

  found = head_loop.run(run, steps, [*arrays, jax.tree.map(by_head, tiles)])
  return [flat(x) for x in found] if tiled else found


def _tiles(query, key, value, sides: Any) -> tuple[jax.Array, ...]:
  """The flat rows of the slots in query, key and value, as the slots lie."""
  heads = query.shape[2]
  return tuple(
    _rows(side.index, x, heads).reshape(side.index.shape)
    for x, side in ((query, sides[0]), (key, sides[1]), (value, sides[1]))
  )


def _taken(query, key, value, rows: tuple[jax.Array, ...]) -> list[jax.Array]:
  """The slots of some tiles."""
  return [
    pair_tiles.take_rows(x.reshape(-1, x.shape[-1]), at)
    for x, at in zip((query, key, value), rows, strict=True)
  ]


def _scattered(x: jax.Array, slots: jax.Array, at: jax.Array) -> jax.Array:
  """Sums slots into the rows that they come from, as `x`."""
  total = jnp.zeros((x.size // x.shape[-1], x.shape[-1]), jnp.float32)
  slots = slots.reshape(-1, x.shape[-1])
  total = total.at[at.reshape(-1)].add(slots, mode="promise_in_bounds")
  return total.reshape(x.shape).astype(x.dtype)


def _map(call: _Call, visit: Any, tiles: Any) -> Any:
  """Runs `visit` on some tiles at a time."""
  (query, key), *_ = tiles
  count = query.index.shape[0]
  size = pair_tiles.group_size(
    count,
    unit=query.index.shape[1] * key.index.shape[1],
    budget=call.budget,
  )
  missing = -count % size

  def cut(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, size, *x.shape[1:])

  found = jax.lax.map(visit, jax.tree.map(cut, tiles))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)
