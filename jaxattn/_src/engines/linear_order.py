"""Causal and segmented linear attention: what a query sees stands before it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import dispatch
from jaxattn._src.engines import linear_chunks as chunks
from jaxattn._src.engines import linear_layout as layout_lib


def plan(
  feature_map: Any, arrays: list[Any], chunk: int | None
) -> tuple[chunks.Engine, layout_lib.Layout]:
  """The passes for some arrays, and how their tokens are cut."""
  query, key = arrays[:2]
  one = jax.ShapeDtypeStruct((1, key.shape[-1]), key.dtype)
  found = jax.eval_shape(chunks.features, feature_map, one)
  engine = chunks.Engine(
    scaled=found.log_scale is not None,
    precision=dispatch.precision(query.dtype),
  )
  size, length = chunk or dispatch.linear_chunk(), query.shape[1]
  return engine, layout_lib.Layout(length, min(size, length))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
  causal: bool,
  chunk: int | None,
  feature_map: Any,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  ids: chunks.Ids,
) -> jax.Array:
  """`[B, T, N, V]` float32; what a query sees stands before it."""
  return _forward(causal, chunk, feature_map, query, key, value, ids)[0]


def _forward(
  causal: bool,
  chunk: int | None,
  feature_map: Any,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  ids: chunks.Ids,
) -> Any:
  def run(arrays: list[Any], ids: chunks.Ids) -> Any:
    engine, layout = plan(feature_map, arrays, chunk)
    query, key, value = arrays
    rows = layout.rows(query, key, value, ids)
    start = engine.empty(feature_map, rows)
    _, out, total = engine.forward(feature_map, rows, start)
    return layout.joined(out), layout.joined(total[..., None])

  def in_events(arrays: list[Any], ids: chunks.Ids) -> Any:
    events = _Events.of(causal, arrays, ids)
    return tuple(map(events.queries, run(*events.all(arrays, ids))))

  out, total = _choose(causal, run, in_events, [query, key, value], ids)
  return out, (feature_map, query, key, value, ids, out, total)


def _backward(
  causal: bool, chunk: int | None, kept: Any, cotangent: jax.Array
) -> Any:
  feature_map, query, key, value, ids, out, total = kept
  ct = chunks.cotangent_of(out, total[..., 0], cotangent)

  def run(arrays: list[Any], ids: chunks.Ids) -> Any:
    engine, layout = plan(feature_map, arrays, chunk)
    query, key, value, *others = arrays
    rows = layout.rows(query, key, value, ids)
    of_out, of_total = (
      layout.split(layout_lib.grouped(x, key.shape[2])) for x in others
    )
    start = engine.empty(feature_map, rows)
    of_map, *grads = engine.backward(
      feature_map, rows, start, chunks.Cotangent(of_out, of_total[..., 0])
    )
    return of_map, *map(layout.joined, grads)

  def in_events(arrays: list[Any], ids: chunks.Ids) -> Any:
    events = _Events.of(causal, arrays, ids)
    of_map, dq, dk, dv = run(*events.all(arrays, ids))
    return of_map, events.queries(dq), events.keys(dk), events.keys(dv)

  arrays = [query, key, value, ct.out, ct.total[..., None]]
  of_map, dq, dk, dv = _choose(causal, run, in_events, arrays, ids)
  grads = (dq.astype(query.dtype), dk.astype(key.dtype), dv.astype(value.dtype))
  return of_map, *grads, None


attend.defvjp(_forward, _backward)


def _choose(
  causal: bool, run: Any, in_events: Any, arrays: list[Any], ids: chunks.Ids
) -> Any:
  """Runs tokens in their order where that serves, else queries and keys apart.

  Both give the same; keys and queries in one row of events take twice the time.
  """
  if ids.key_segment is None:
    return run(arrays, ids)
  if not causal or arrays[0].shape[1] != arrays[1].shape[1]:
    return in_events(arrays, ids)
  alike = jnp.all(ids.query_segment == ids.key_segment)
  packed = alike & _contiguous(ids.key_segment)
  return jax.lax.cond(packed, run, in_events, arrays, ids)


def _contiguous(ids: jax.Array) -> jax.Array:
  """Whether equal ids stand side by side in every row."""

  def runs(x: jax.Array) -> jax.Array:
    return jnp.sum(x[:, 1:] != x[:, :-1], axis=-1)

  return jnp.all(runs(ids) == runs(jnp.sort(ids, axis=-1)))


class _Events:
  """Keys and queries in one row, each key before the queries that see it.

  Ordered by segment, within one by index if `causal`, keys first. A causal pass
  over the events gives what any segments ask for.
  """

  def __init__(self, order: jax.Array, place: jax.Array, num_keys: int):
    self.order, self.place, self.num_keys = order, place, num_keys

  @classmethod
  def of(cls, causal: bool, arrays: list[Any], ids: chunks.Ids) -> "_Events":
    """The order of `[*keys, *queries]`, and the place of each in it."""
    q_len, k_len = arrays[0].shape[1], arrays[1].shape[1]
    segment = _joined_ids(ids)
    index = jnp.arange(k_len + q_len, dtype=jnp.int32)
    rank = (index >= k_len).astype(jnp.int32)
    if causal:
      rank += 2 * jnp.where(index >= k_len, index - k_len, index)
    rank, index = (
      jnp.broadcast_to(x[None], segment.shape) for x in (rank, index)
    )
    _, _, order = jax.lax.sort((segment, rank, index), dimension=1, num_keys=2)
    return cls(order, jnp.argsort(order, axis=1), k_len)

  def all(
    self, arrays: list[Any], ids: chunks.Ids
  ) -> tuple[list[Any], chunks.Ids]:
    """Arrays and ids of the events: each is a key or a query."""
    query, key, value, *others = arrays
    q_len = query.shape[1]

    def of_queries(x: jax.Array) -> jax.Array:
      return _put(self.order, layout_lib.fill(x, 0, self.num_keys))

    def of_keys(x: jax.Array) -> jax.Array:
      return _put(self.order, layout_lib.fill(x, q_len))

    valid = ids.key_valid
    if valid is None:
      valid = jnp.ones((1, self.num_keys), bool)
    segment = _put(self.order, _joined_ids(ids))
    return (
      [
        of_queries(query),
        of_keys(key),
        of_keys(value),
        *map(of_queries, others),
      ],
      chunks.Ids(of_keys(valid), segment, segment),
    )

  def queries(self, x: jax.Array) -> jax.Array:
    """Of `[B, events, ...]` those of the queries, in their order."""
    return _put(self.place[:, self.num_keys :], x)

  def keys(self, x: jax.Array) -> jax.Array:
    """Of `[B, events, ...]` those of the keys, in their order."""
    return _put(self.place[:, : self.num_keys], x)


def _joined_ids(ids: chunks.Ids) -> jax.Array:
  """The segment of every key, then of every query, `[B or 1, S + T]`."""
  assert ids.key_segment is not None
  assert ids.query_segment is not None
  both = (ids.key_segment, ids.query_segment)
  batch = max(x.shape[0] for x in both)
  dtype = jnp.promote_types(both[0].dtype, both[1].dtype)
  return jnp.concatenate(
    [jnp.broadcast_to(x, (batch, x.shape[1])).astype(dtype) for x in both], 1
  )


def _put(order: jax.Array, x: jax.Array) -> jax.Array:
  """`x [B or 1, M, ...]` at the places `order [B or 1, n]`."""
  batch = max(order.shape[0], x.shape[0])
  order = jnp.broadcast_to(order, (batch, order.shape[1]))
  x = jnp.broadcast_to(x, (batch, *x.shape[1:]))
  return jax.vmap(lambda rows, places: rows[places])(x, order)
