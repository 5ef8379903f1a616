"""Softmax attention inside chunks of an order that depends on the data."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import dispatch
from jaxattn._src import masks
from jaxattn._src import merge
from jaxattn._src.engines import bucketed_edges
from jaxattn._src.engines import bucketed_order
from jaxattn._src.engines import bucketed_rounds
from jaxattn._src.engines import head_loop
from jaxattn._src.engines import pair_tiles

Reach = bucketed_order.Reach
HONOURS = masks.ALL_FIELDS
_ALIGNED = 16  # Tokens that a chunk of a kernel is a multiple of, any dtype.


def bucketed_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  groups: jax.Array,
  *,
  reach: Reach,
  mask: masks.Mask = masks.FULL,
  exclude_self: bool = False,
  scale: float | None = None,
  implementation: base.Implementation = None,
) -> merge.Partial:
  """Attends to what stands near in orders sorted by group.

  Every round sorts the tokens by segment, group and position, and a token sees
  what `reach` says of the sorted order. The result is softmax attention over
  the union of what it sees in all rounds: a key met in several rounds counts
  once, in the first of them. Chunks do not wrap around: the first one has
  nothing before it.

  A token is there if `mask` has it valid as a key and as a query; others are
  sorted to the end, where they neither see nor are seen. Time and memory are
  linear in the length for every round; the backward pass computes the weights
  again, and keeps of the rounds nothing but their orders.

  Args:
    query: `[*B, T, N, H]` floats.
    key: `[*B, T, K, H]` floats; K divides N (grouped-query attention).
    value: `[*B, T, K, V]` floats.
    groups: `[R, *B, T, N]` ints below 2^31 - 1, the group of every token in
      each round, for every query head.
    reach: what a token sees of the sorted order.
    mask: every field is honoured; tokens are sorted by key positions.
    exclude_self: whether a token does not see itself.
    scale: factor of the scores, default `1 / sqrt(H)`.
    implementation: None picks the best that serves the call; "xla" or "pallas"
      asks for one. The kernels, for TPU, take chunks that are multiples of 8
      tokens in float32 and of 16 in bfloat16.

  Returns:
    A `Partial`: `out [*B, T, N, V]` and `lse [*B, T, N]`, float32; `(0, -inf)`
    for rows that see nothing, with zero gradient. Reverse-mode differentiation
    only; `groups` have no gradient.

  Raises:
    ValueError: if shapes disagree, or key and query have different lengths.
    NotImplementedError: if the named implementation cannot serve the call.

  Example:
    >>> x = jnp.ones((1, 6, 2, 8))
    >>> groups = jnp.array([[0, 1, 0, 1, 0, 1]])[..., None].repeat(2, axis=-1)
    >>> bucketed_attention(
    ...     x, x, x, groups[None], reach=Reach(chunk=3, before=0)).out.shape
    (1, 6, 2, 8)

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 2 and
  appendix A.
  """
  base.check_qkv(query, key, value)
  batch, (length, heads, depth) = query.shape[:-3], query.shape[-3:]
  if key.shape[-3] != length:
    raise ValueError(
      "attention in a sorted order is among the tokens of one sequence: query "
      f"has length {length}, key {key.shape[-3]}."
    )
  _check_groups(groups, query.shape)
  mask.check(batch, length, length)
  kernels = dispatch.kernel_device() == "tpu" and implementation != "xla"
  # A kernel fills up a sequence that is shorter than a chunk.
  longest = -(-length // _ALIGNED) * _ALIGNED if kernels else length
  reach = dataclasses.replace(reach, chunk=max(1, min(reach.chunk, longest)))
  choice = dispatch.choose(
    "bucketed",
    implementation,
    _obstacles(query, key, value, reach, mask.causal),
  )
  rows, value_dim = math.prod(batch), value.shape[-1]
  if rows == 0 or length == 0:
    shape = (*query.shape[:-1], value_dim)
    return merge.Partial(
      jnp.zeros(shape, jnp.float32),
      jnp.full(shape[:-1], -jnp.inf, jnp.float32),
    )
  call = bucketed_edges.Call(
    reach=reach,
    causal=mask.causal,
    exclude_self=exclude_self,
    tiles=pair_tiles.Tiles(
      depth**-0.5 if scale is None else float(scale),
      dispatch.precision(query.dtype),
    ),
    budget=dispatch.gathered_budget(),
    choice=choice,
  )
  ids = bucketed_order.ids_of(mask, batch, length)
  groups = groups.astype(jnp.int32).reshape(-1, rows, length, heads)
  groups = jax.lax.stop_gradient(jnp.swapaxes(groups, 2, 3))
  index, rank = bucketed_order.sort(groups, ids)
  out, lse = _attend(
    call,
    *(x.reshape(rows, *x.shape[-3:]) for x in (query, key, value)),
    bucketed_rounds.Order(index, rank, groups if call.reach.in_group else None),
    ids,
  )
  return merge.Partial(
    out.reshape(*query.shape[:-1], value_dim), lse.reshape(query.shape[:-1])
  )


def _obstacles(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  reach: Reach,
  causal: bool,
) -> dict[str, str | None]:
  """Why the kernels cannot serve a call, by their device."""
  if dispatch.kernel_device() != "tpu":
    return {"tpu": ""}
  # Imported where they are used: a version of JAX or a platform without them
  # still has the others.
  from jaxattn._src.pallas import bucketed_tpu

  chunks = 1 + sum(reach.span(causal))
  return {
    "tpu": bucketed_tpu.obstacle(
      query, key, value, chunk=reach.chunk, chunks=chunks
    )
  }


def _check_groups(groups: jax.Array, shape: tuple[int, ...]) -> None:
  fits = groups.ndim == len(shape) and groups.shape[1:] == shape[:-1]
  if not fits or groups.shape[0] < 1:
    raise ValueError(
      f"groups must be [R, *B, T, N] with R at least 1, for query {shape}; got "
      f"{groups.shape}."
    )
  if not jnp.issubdtype(groups.dtype, jnp.integer):
    raise ValueError(f"groups must be integers, got {groups.dtype}.")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  call: bucketed_edges.Call,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  order: bucketed_rounds.Order,
  ids: bucketed_order.Ids,
) -> tuple[jax.Array, jax.Array]:
  """`[B, T, N, V]` and `[B, T, N]` float32."""
  return _forward(call, query, key, value, order, ids)[0]


def _forward(call, query, key, value, order, ids) -> Any:

  def run(*x: Any) -> Any:
    query, key, value, order = x
    return bucketed_rounds.forward(call, query, key, value, order, ids)

  out, lse = _over_heads(run, key, [query, key, value, order])
  if ids.there is not None:
    there = ids.there[..., None]
    out = jnp.where(there[..., None], out, 0.0)
    lse = jnp.where(there, lse, -jnp.inf)
  return (out, lse), (query, key, value, order, ids, out, lse)


def _backward(call, kept: Any, cotangent: Any) -> Any:
  query, key, value, order, ids, out, lse = kept
  of_out, of_lse = cotangent
  rows = pair_tiles.softmax_rows(out, lse, of_out, of_lse)

  def run(*x: Any) -> list[jax.Array]:
    query, key, value, order, *lines = x
    grads = bucketed_rounds.backward(
      call, query, key, value, order, ids, (lines[0], lines[1], lines[2])
    )
    return [g.astype(y.dtype) for g, y in zip(grads, x[:3], strict=True)]

  lines = (of_out.astype(value.dtype), *rows)
  grads = _over_heads(run, key, [query, key, value, order, *lines])
  return (*grads, None, None)


def _over_heads(function: Any, key: jax.Array, arrays: list[Any]) -> Any:
  """Runs a function of arrays with heads on axis 2, by heads if that pays."""
  batch, length, heads, _ = key.shape
  if not head_loop.pays(batch * length, heads):
    return function(*arrays)
  return head_loop.run(function, heads, arrays)


_attend.defvjp(_forward, _backward)
