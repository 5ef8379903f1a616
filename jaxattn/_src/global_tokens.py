"""Global tokens whose places are data: different in every row of a batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import masks
from jaxattn._src import merge
from jaxattn._src import patterns
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import block_sparse as engine


def global_positions(is_global: jax.Array, max_global: int) -> jax.Array:
  """The places of the global tokens of every row.

  Args:
    is_global: `[*B, T]` bool.
    max_global: G, how many a row may have; of more, the first G are taken.

  Returns:
    `[*B, G]` int32, ascending, then -1 where a row has fewer.

  Raises:
    ValueError: if `is_global` is not bool or G is not in `[1, T]`.

  Example:
    >>> marks = jnp.array([[True, False, True], [False, True, False]])
    >>> global_positions(marks, 2).tolist()
    [[0, 2], [1, -1]]

  Source: the padded gather of Longformer's global attention,
  https://arxiv.org/abs/2004.05150, section 3.1.
  """
  if is_global.ndim == 0 or is_global.dtype != jnp.bool_:
    raise ValueError(
      f"is_global must be bool [*B, T], got {is_global.dtype}{is_global.shape}."
    )
  length = is_global.shape[-1]
  if not 1 <= max_global <= length:
    raise ValueError(
      f"max_global must be in [1, T={length}], got {max_global}."
    )
  index = jnp.arange(length, dtype=jnp.int32)
  index = jax.lax.broadcast_to_rank(index, is_global.ndim)
  first = jnp.sort(jnp.where(is_global, index, length), axis=-1)
  first = first[..., :max_global]
  return jnp.where(first < length, first, -1)


def global_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  global_positions: jax.Array,
  *,
  pattern: Any,
  mask: masks.Mask = masks.FULL,
  relative: relative_lib.Relative | None = None,
  scale: float | None = None,
  global_query: jax.Array | None = None,
  global_key: jax.Array | None = None,
  global_value: jax.Array | None = None,
  implementation: base.Implementation = None,
) -> jax.Array:
  """Self-attention over a pattern and over global tokens chosen by the data.

  A token sees, in one softmax, the keys of `pattern` and every global token; a
  global token sees every key. With projections of their own (`global_query`,
  `global_key`, `global_value`) global tokens look by those; the other tokens
  look at global tokens by `key` and `value`. Costs the pattern's tiles and
  `2 G T` scores; no array of T x T elements is made.

  Args:
    query: `[*B, T, N, H]` floats.
    key: `[*B, T, K, H]` floats; K divides N.
    value: `[*B, T, K, V]` floats.
    global_positions: `[*B, G]` ints, the places of each row's global tokens in
      any order; negative and repeated ones, and those from T on, count as
      padding.
    pattern: a static pattern, or a tuple of one for each head.
    mask: every field is honoured, by global tokens too: a causal mask cuts
      what they see and who sees them.
    relative: a relative-position score term, for all edges.
    scale: factor of the scores, default `1 / sqrt(H)`.
    global_query: `[*B, G, N, H]`, queries of the global tokens; None takes
      those of `query`.
    global_key: `[*B, T, K, H]`, keys that global tokens see; None takes `key`.
    global_value: `[*B, T, K, V]`; None takes `value`.
    implementation: as of `block_sparse`.

  Returns:
    `[*B, T, N, V]` in query's dtype; a row that sees no key is zero.

  Raises:
    ValueError: if shapes disagree.

  Example:
    >>> from jaxattn import patterns
    >>> x = jnp.ones((2, 16, 2, 4))
    >>> places = jnp.array([[0, -1], [0, 9]])
    >>> global_attention(x, x, x, places, pattern=patterns.Window(2, 2)).shape
    (2, 16, 2, 4)

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 3.1.
  """
  base.check_qkv(query, key, value)
  batch, length = query.shape[:-3], query.shape[-3]
  mask.check(batch, length, key.shape[-3])
  _check(query, key, value, global_positions)
  for name, given, like, size in (
    ("global_query", global_query, query, global_positions.shape[-1]),
    ("global_key", global_key, key, length),
    ("global_value", global_value, value, length),
  ):
    want = (*batch, size, *like.shape[-2:])
    if given is not None and given.shape != want:
      raise ValueError(f"{name} must have shape {want}, got {given.shape}.")
  places, real = _distinct(global_positions, length)
  chosen = _Chosen(places, real, mask, relative)
  options = {"scale": scale, "implementation": implementation}
  local = engine.block_sparse(
    query,
    key,
    value,
    pattern=pattern,
    mask=_without(mask, places, real, length),
    relative=relative,
    return_lse=True,
    **options,
  )
  columns = engine.block_sparse(
    query,
    take_tokens(key, places),
    take_tokens(value, places),
    pattern=patterns.Full(),
    mask=chosen.as_keys(length),
    relative=chosen.relative_as_keys(length),
    return_lse=True,
    **options,
  )
  out = merge.merge(local, columns).out.astype(query.dtype)
  rows = engine.block_sparse(
    take_tokens(query, places) if global_query is None else global_query,
    key if global_key is None else global_key,
    value if global_value is None else global_value,
    pattern=patterns.Full(),
    mask=chosen.as_queries(length),
    relative=chosen.relative_as_queries(length),
    **options,
  )
  return put_tokens(out, rows.astype(out.dtype), places, real)


def take_tokens(x: jax.Array, places: jax.Array) -> jax.Array:
  """Gathers tokens: `[*B, T, ...]` at `places [*B, G]` -> `[*B, G, ...]`."""
  at = places.reshape(*places.shape, *(1,) * (x.ndim - places.ndim))
  return jnp.take_along_axis(x, at, axis=places.ndim - 1)


def put_tokens(
  x: jax.Array, rows: jax.Array, places: jax.Array, real: jax.Array
) -> jax.Array:
  """Overwrites tokens of `x [*B, T, N, V]` by `rows [*B, G, N, V]`."""
  shape, length = x.shape, x.shape[-3]
  places = jnp.where(real, places, length)  # Out of range, hence dropped.
  put = jax.vmap(lambda x, rows, at: x.at[at].set(rows, mode="drop"))
  return put(
    x.reshape(-1, *shape[-3:]),
    rows.reshape(-1, *rows.shape[-3:]),
    places.reshape(-1, places.shape[-1]),
  ).reshape(shape)


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """The global tokens of every row, and what masks and labels know of them."""

  places: jax.Array
  real: jax.Array
  mask: masks.Mask
  relative: relative_lib.Relative | None

  def of_ids(self, ids: Any) -> Any:
    """Per-token ids `[*B or 1s, T]`, at the global tokens."""
    if ids is None:
      return None
    lead = self.places.shape[:-1]
    return take_tokens(
      jnp.broadcast_to(ids, (*lead, ids.shape[-1])), self.places
    )

  def index(self, length: int) -> jax.Array:
    """`arange(T)` of the rank of ids."""
    index = jnp.arange(length, dtype=jnp.int32)
    return jax.lax.broadcast_to_rank(index, self.places.ndim)

  def as_keys(self, length: int) -> masks.Mask:
    """The mask between all queries and the global tokens."""
    found, valid = self.mask, self.real
    if found.key_valid is not None:
      valid = valid & self.of_ids(found.key_valid)
    changes: dict[str, Any] = {
      "key_valid": valid,
      "key_segment_ids": self.of_ids(found.key_segment_ids),
    }
    if found.causal:
      q_pos, k_pos = self._positions(length)
      changes |= {
        "query_positions": q_pos,
        "key_positions": self.of_ids(k_pos),
      }
    return dataclasses.replace(found, **changes)

  def as_queries(self, length: int) -> masks.Mask:
    """The mask between the global tokens and all keys."""
    found, valid = self.mask, self.real
    if found.query_valid is not None:
      valid = valid & self.of_ids(found.query_valid)
    changes: dict[str, Any] = {
      "query_valid": valid,
      "query_segment_ids": self.of_ids(found.query_segment_ids),
    }
    if found.causal:
      q_pos, k_pos = self._positions(length)
      changes |= {
        "query_positions": self.of_ids(q_pos),
        "key_positions": k_pos,
      }
    return dataclasses.replace(found, **changes)

  def relative_as_keys(self, length: int) -> relative_lib.Relative | None:
    """The relative term between all queries and the global tokens."""
    if self.relative is None:
      return None
    if self.relative.query_ids is not None:
      keys = self.of_ids(self.relative.key_ids)
      return dataclasses.replace(self.relative, key_ids=keys)
    queries = jnp.broadcast_to(
      self.index(length), (*self.places.shape[:-1], length)
    )
    return relative_lib.with_positions(self.relative, queries, self.places)

  def relative_as_queries(self, length: int) -> relative_lib.Relative | None:
    """The relative term between the global tokens and all keys."""
    if self.relative is None:
      return None
    logits = self.relative.logits
    if logits.shape[-3] != 1:
      lead = (*self.places.shape[:-1], *logits.shape[-3:])
      logits = take_tokens(jnp.broadcast_to(logits, lead), self.places)
    term = dataclasses.replace(self.relative, logits=logits)
    if term.query_ids is not None:
      ids = self.of_ids(term.query_ids)
      return dataclasses.replace(term, query_ids=ids)
    keys = jnp.broadcast_to(
      self.index(length), (*self.places.shape[:-1], length)
    )
    return relative_lib.with_positions(term, self.places, keys)

  def _positions(self, length: int) -> tuple[jax.Array, jax.Array]:
    rank = self.places.ndim
    q_pos, k_pos = (
      jax.lax.broadcast_to_rank(x, rank)
      for x in self.mask.positions(length, length)
    )
    return q_pos, k_pos


def _check(query, key, value, global_positions) -> None:
  if query.shape[-3] != key.shape[-3]:
    raise ValueError(
      "global attention is self-attention: query and key must have one length, "
      f"got query {query.shape}, key {key.shape}."
    )
  found = global_positions
  if (
    found.ndim != query.ndim - 2
    or found.shape[:-1] != query.shape[:-3]
    or found.shape[-1] == 0
    or not jnp.issubdtype(found.dtype, jnp.integer)
  ):
    raise ValueError(
      "global_positions must be integers [*B, G] with G at least 1 and *B "
      f"{query.shape[:-3]}, got {found.dtype}{found.shape}."
    )


def _distinct(places: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
  """Places clipped to `[0, length)`, and which are neither padding nor seen."""
  num = places.shape[-1]
  same = places[..., :, None] == places[..., None, :]
  earlier = jax.lax.broadcast_to_rank(
    jnp.tril(jnp.ones((num, num), bool), -1), same.ndim
  )
  real = (places >= 0) & (places < length)
  real = real & ~jnp.any(same & earlier, axis=-1)
  return jnp.clip(places, 0, length - 1).astype(jnp.int32), real


def _without(
  mask: masks.Mask, places: jax.Array, real: jax.Array, length: int
) -> masks.Mask:
  """The mask with the global tokens invalid as keys."""
  flat = jnp.where(real, places, length).reshape(-1, places.shape[-1])
  valid = jax.vmap(
    lambda at: jnp.ones(length, bool).at[at].set(False, mode="drop")
  )(flat)
  valid = valid.reshape(*places.shape[:-1], length)
  if mask.key_valid is not None:
    valid = valid & mask.key_valid
  return dataclasses.replace(mask, key_valid=valid)
