"""The two attentions of a Star Transformer: the ring and the relay."""

import math
from typing import get_args
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import masks
from jaxattn._src.engines import dense

Ring = Literal["cyclic", "open", "ghost", "none"]


class _Slot(NamedTuple):
  """One key and value for every satellite, and who has it."""

  key: jax.Array  # [*B, T or 1, K, H]
  value: jax.Array  # [*B, T or 1, K, V]
  present: jax.Array  # [*B, T] bool


def star_ring_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  embedding_key: jax.Array | None = None,
  embedding_value: jax.Array | None = None,
  relay_key: jax.Array | None = None,
  relay_value: jax.Array | None = None,
  mask: masks.Mask = masks.FULL,
  ring: Ring = "cyclic",
  scale: float | None = None,
) -> jax.Array:
  """Attends from every satellite to at most five keys.

  Satellite `i` takes one softmax over the slots
  `[h_{i-1}, h_i, h_{i+1}, e_i, s]`: its neighbours and itself, its embedding,
  and the relay. A slot counts as often as it stands there: in a cycle of one
  token, `h_i` counts three times. Time and memory are O(T) and no T x T array
  is made. Neighbours are found by shifting, or, under a mask, by one
  permutation: the neighbour of a token is the nearest real one.

  Args:
    query: `[*B, T, N, H]` floats, of the satellites.
    key: `[*B, T, K, H]`, of the satellites; K divides N.
    value: `[*B, T, K, V]`, of the satellites.
    embedding_key: `[*B, T, K, H]`, of the embeddings `e`; None for no such
      slot. Given together with `embedding_value`.
    embedding_value: `[*B, T, K, V]`.
    relay_key: `[*B, 1, K, H]`, of the relay `s`; None for no such slot. Given
      together with `relay_value`.
    relay_value: `[*B, 1, K, V]`.
    mask: honours `key_valid` and `query_valid`; a token that is invalid in
      either is padding, wherever it stands.
    ring: `cyclic` joins the last real token to the first; `open` leaves the
      missing neighbours of both out; `ghost` puts a key and a value of zeros
      there, which take their share of the softmax; `none` has no neighbours at
      all.
    scale: factor of the scores, default `1 / sqrt(H)`.

  Returns:
    `[*B, T, N, V]` in query's dtype, computed in float32. Rows of padding are
    zero, with zero gradient.

  Raises:
    ValueError: if shapes disagree, an option is unknown, or a key comes without
      its value.
    NotImplementedError: if `mask` sets another field: the relay mixes the whole
      sequence, so that a causal mask cannot be honoured.

  Example:
    >>> x = jnp.ones((1, 6, 2, 8))
    >>> star_ring_attention(
    ...     x, x, x, relay_key=x[:, :1], relay_value=x[:, :1]).shape
    (1, 6, 2, 8)

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113. Differs: padding
  is masked, see `docs/star_transformer.md`.
  """
  base.check_qkv(query, key, value)
  if ring not in get_args(Ring):
    raise ValueError(f"ring must be one of {get_args(Ring)}, got {ring!r}.")
  batch, length = query.shape[:-3], query.shape[-3]
  if key.shape[-3] != length:
    raise ValueError(
      "query and key must have one length, they are of the same satellites; "
      f"got query {query.shape}, key {key.shape}."
    )
  real = _real(mask, batch, length, by="star_ring_attention")
  everyone = jnp.ones((*batch, length), bool) if real is None else real
  slots = [_Slot(key, value, everyone)]
  if ring != "none":
    slots += _neighbours(key, value, real, everyone, ring)
  for name, size, pair in (
    ("embedding", length, (embedding_key, embedding_value)),
    ("relay", 1, (relay_key, relay_value)),
  ):
    found = _check_pair(name, size, pair, key, value)
    if found is not None:
      slots.append(_Slot(*found, everyone))
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  return _attend(query, slots, scale).astype(query.dtype)


def star_relay_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  relay_key: jax.Array,
  relay_value: jax.Array,
  mask: masks.Mask = masks.FULL,
  scale: float | None = None,
) -> jax.Array:
  """Attends from the relay to itself and to every satellite.

  One softmax over the T + 1 keys `[s; h_1 ... h_T]`: O(T) time and memory. The
  relay's own key is never masked, so that an empty sequence is finite.

  Args:
    query: `[*B, 1, N, H]` floats, of the relay.
    key: `[*B, T, K, H]`, of the satellites; K divides N.
    value: `[*B, T, K, V]`, of the satellites.
    relay_key: `[*B, 1, K, H]`.
    relay_value: `[*B, 1, K, V]`.
    mask: honours `key_valid` and `query_valid`, both `[*B, T]` and of the
      satellites; one that is invalid in either is padding.
    scale: factor of the scores, default `1 / sqrt(H)`.

  Returns:
    `[*B, 1, N, V]` in query's dtype, computed in float32.

  Raises:
    ValueError: if shapes disagree.
    NotImplementedError: if `mask` sets another field.

  Example:
    >>> x = jnp.ones((1, 6, 2, 8))
    >>> s = jnp.zeros((1, 1, 2, 8))
    >>> star_relay_attention(s, x, x, relay_key=s, relay_value=s)[0, 0, 0, 0]
    Array(0.85714287, dtype=float32)

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113.
  """
  base.check_qkv(query, key, value)
  batch, length = query.shape[:-3], key.shape[-3]
  if query.shape[-3] != 1:
    raise ValueError(
      f"query must be of one relay, [*B, 1, N, H]; got {query.shape}."
    )
  _check_pair("relay", 1, (relay_key, relay_value), key, value)
  real = _real(mask, batch, length, by="star_relay_attention")
  if real is not None:
    relay = jnp.ones((*batch, 1), bool)
    real = jnp.concatenate([relay, real], axis=-1)
  return dense.dense_attention(
    query,
    jnp.concatenate([relay_key, key], axis=-3),
    jnp.concatenate([relay_value, value], axis=-3),
    mask=masks.Mask(key_valid=real),
    scale=scale,
  )


def _real(
  mask: masks.Mask, batch: tuple[int, ...], length: int, *, by: str
) -> jax.Array | None:
  """Which tokens are no padding, `[*B, T]`; None for all of them."""
  mask.only("key_valid", "query_valid", by=by).check(batch, length, length)
  found = [x for x in (mask.key_valid, mask.query_valid) if x is not None]
  if not found:
    return None
  real = found[0] if len(found) == 1 else found[0] & found[1]
  return jnp.broadcast_to(real, (*batch, length))


def _check_pair(
  name: str,
  length: int,
  pair: tuple[jax.Array | None, jax.Array | None],
  key: jax.Array,
  value: jax.Array,
) -> tuple[jax.Array, jax.Array] | None:
  """The key and value of a slot, if they are given and fit."""
  if pair[0] is None and pair[1] is None:
    return None
  if pair[0] is None or pair[1] is None:
    missing = "key" if pair[0] is None else "value"
    raise ValueError(
      f"{name}_key and {name}_value go together; {name}_{missing} is None."
    )
  for kind, x, like in (("key", pair[0], key), ("value", pair[1], value)):
    want = (*like.shape[:-3], length, *like.shape[-2:])
    if x.shape != want:
      raise ValueError(f"{name}_{kind} must have shape {want}, got {x.shape}.")
  return pair[0], pair[1]


def _neighbours(
  key: jax.Array,
  value: jax.Array,
  real: jax.Array | None,
  everyone: jax.Array,
  ring: Ring,
) -> list[_Slot]:
  """The slots of the neighbours before and after."""
  slots = []
  for step in (1, -1):
    if real is None:
      k, v = (jnp.roll(x, step, axis=-3) for x in (key, value))
      place = jnp.arange(key.shape[-3])
      inside = place > 0 if step == 1 else place < key.shape[-3] - 1
      inside = jnp.broadcast_to(inside, everyone.shape)
    else:
      source, inside = _nearest(real, step)
      k, v = (_permute(x, source) for x in (key, value))
    present = everyone if ring in ("cyclic", "ghost") else everyone & inside
    if ring == "ghost":
      k, v = (jnp.where(inside[..., None, None], x, 0) for x in (k, v))
    slots.append(_Slot(k, v, present))
  return slots


def _nearest(real: jax.Array, step: int) -> tuple[jax.Array, jax.Array]:
  """Where the nearest real token before (1) or after (-1) stands, in a cycle.

  Padding is its own neighbour, so that the result is a permutation.

  Args:
    real: `[*B, T]` bool.
    step: 1 or -1.

  Returns:
    `[*B, T]` ints, and bools that say where the cycle need not be closed.
  """
  if step == -1:
    source, inside = _nearest(jnp.flip(real, axis=-1), 1)
    last = real.shape[-1] - 1
    return last - jnp.flip(source, axis=-1), jnp.flip(inside, axis=-1)
  place = jax.lax.broadcasted_iota(jnp.int32, real.shape, real.ndim - 1)
  seen = jax.lax.cummax(jnp.where(real, place, -1), axis=real.ndim - 1)
  before = jnp.roll(seen, 1, axis=-1)  # The first gets the last real token.
  inside = (place > 0) & (before >= 0)
  before = jnp.where(inside, before, seen[..., -1:])
  return jnp.where(real, before, place), inside


def _permute(x: jax.Array, source: jax.Array) -> jax.Array:
  """`x[*B, source]` for a permutation, whose gradient is one too."""
  rows = math.prod(source.shape[:-1])
  length = source.shape[-1]

  def one(x: jax.Array, source: jax.Array) -> jax.Array:
    return x.at[source].get(mode="promise_in_bounds", unique_indices=True)

  out = jax.vmap(one)(
    x.reshape(rows, length, *x.shape[-2:]), source.reshape(rows, length)
  )
  return out.reshape(x.shape)


def _attend(query: jax.Array, slots: list[_Slot], scale: float) -> jax.Array:
  """Softmax over the slots of each token, `[*B, T, N, V]` float32."""
  heads, depth = query.shape[-2:]
  kv_heads = slots[0].key.shape[-2]
  query = query.astype(jnp.float32) * jnp.float32(scale)
  query = query.reshape(
    *query.shape[:-2], kv_heads, heads // kv_heads, depth
  )  # [*B, T, K, N / K, H]
  scores, present = [], []
  for slot in slots:
    key = slot.key.astype(jnp.float32)[..., None, :]
    scores.append(jnp.sum(query * key, axis=-1))
    present.append(slot.present[..., None, None])
  logits = jnp.stack(scores, axis=-1)  # [*B, T, K, N / K, slots]
  allowed = jnp.stack(present, axis=-1)
  logits = jnp.where(allowed, logits, -jnp.inf)
  top = jnp.max(logits, axis=-1, keepdims=True)
  top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0.0, top))
  weights = jnp.exp(logits - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights / jnp.where(total > 0, total, 1.0)
  out = jnp.zeros((), jnp.float32)
  for i, slot in enumerate(slots):
    value = slot.value.astype(jnp.float32)[..., None, :]
    out = out + weights[..., i, None] * value
  return out.reshape(*out.shape[:-3], heads, out.shape[-1])
