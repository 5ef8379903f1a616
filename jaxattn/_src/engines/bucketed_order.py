"""The orders of bucketed attention: sorted by group, cut into chunks."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxattn._src import masks

_LAST = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reach:
  """Which tokens of the sorted order a token sees.

  Tokens are sorted by group, and inside a group by position, and cut into
  chunks. A token sees its own chunk and some around it; or, with `window`, the
  members of its group that stand nearest before it.

  Attributes:
    chunk: tokens in a chunk.
    before: chunks seen before the own one.
    after: chunks seen behind the own one.
    within: whether only tokens of the own group are seen.
    window: if given, a token sees itself and the `window - 1` members of its
      group before it (and behind it, if the mask is not causal) in place of
      whole chunks. What a token sees then does not depend on later ones.

  Raises:
    ValueError: if a number is out of range.

  Example:
    >>> Reach(chunk=64).before
    1

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 2.
  """

  chunk: int
  before: int = 1
  after: int = 0
  within: bool = False
  window: int | None = None

  def __post_init__(self) -> None:
    for name, least in (("chunk", 1), ("before", 0), ("after", 0)):
      if getattr(self, name) < least:
        raise ValueError(
          f"{name} must be at least {least}, got {getattr(self, name)}."
        )
    if self.window is not None and self.window < 1:
      raise ValueError(f"window must be positive, got {self.window}.")

  @property
  def in_group(self) -> bool:
    """Whether only tokens of the own group are seen."""
    return self.within or self.window is not None

  def span(self, causal: bool) -> tuple[int, int]:
    """Chunks before and after the own one that hold all that is seen."""
    if self.window is None:
      return self.before, self.after
    far = -(-(self.window - 1) // self.chunk)
    return far, 0 if causal else far

  def steps(self, causal: bool) -> tuple[int, int]:
    """How far back and ahead is seen, in chunks or in places."""
    if self.window is None:
      return self.before, self.after
    return self.window - 1, 0 if causal else self.window - 1

  def place(self, rank: jax.Array) -> jax.Array:
    """What `steps` counts: the chunk of a place, or the place."""
    return rank if self.window is not None else rank // self.chunk


class Ids(NamedTuple):
  """What masks compare, `[B, T]` each, or None where nothing is to compare.

  Attributes:
    there: bool, whether a token is one.
    query_segment: of the token as a query.
    key_segment: of the token as a key.
    query_position: None where positions are the indices.
    key_position: of the token as a key.
  """

  there: jax.Array | None
  query_segment: jax.Array | None
  key_segment: jax.Array | None
  query_position: jax.Array | None
  key_position: jax.Array | None


def ids_of(mask: masks.Mask, batch: tuple[int, ...], length: int) -> Ids:
  """The arrays of a mask for self-attention, `[*B]` flattened to one axis."""

  def flat(x: jax.Array | None) -> jax.Array | None:
    if x is None:
      return None
    x = jnp.asarray(x)
    x = x if x.dtype == jnp.bool_ else x.astype(jnp.int32)
    x = jax.lax.broadcast_to_rank(x, len(batch) + 1)
    return jnp.broadcast_to(x, (*batch, length)).reshape(-1, length)

  valid = [x for x in (mask.key_valid, mask.query_valid) if x is not None]
  there = None
  if valid:
    there = flat(valid[0] if len(valid) == 1 else valid[0] & valid[1])
  positions: tuple[jax.Array | None, ...] = (None, None)
  if mask.dynamic_causal:
    positions = mask.positions(length, length)
  return Ids(
    there,
    flat(mask.query_segment_ids),
    flat(mask.key_segment_ids),
    *map(flat, positions),
  )


def sort(groups: jax.Array, ids: Ids) -> tuple[jax.Array, jax.Array]:
  """Sorts the tokens of every round and head by segment, group and position.

  Args:
    groups: `[R, B, N, T]` int32.
    ids: tokens that are not there come last.

  Returns:
    The token at every place and the place of every token, `[R, B, N, T]` both.
  """

  def wide(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x[None, :, None], groups.shape)

  keys = [groups]
  if ids.key_segment is not None:
    keys.insert(0, wide(ids.key_segment))
  if ids.there is not None:
    there = wide(ids.there)
    keys = [jnp.where(there, x, _LAST) for x in keys]
  if ids.key_position is not None:
    keys.append(wide(ids.key_position))
  count = jax.lax.broadcasted_iota(jnp.int32, groups.shape, 3)
  index = jax.lax.sort(
    (*keys, count), dimension=3, is_stable=True, num_keys=len(keys)
  )[-1]
  length = groups.shape[-1]
  lead = jnp.arange(groups.size // length, dtype=jnp.int32)[:, None] * length
  flat = (index.reshape(-1, length) + lead).reshape(-1)
  rank = (
    jnp.zeros_like(flat)
    .at[flat]
    .set(count.reshape(-1), mode="promise_in_bounds", unique_indices=True)
  )
  return index, rank.reshape(groups.shape)
