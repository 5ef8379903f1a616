"""Attention to blocks of a row and to blocks sorted by given shares."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import masks
from jaxattn._src import merge
from jaxattn._src import patterns
from jaxattn._src import sinkhorn_sorting as sorting
from jaxattn._src.engines import block_sparse as engine
from jaxattn._src.engines import dense as oracle


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Tokens filled up to whole blocks.

  Attributes:
    query: `[*B, T, N, H]`.
    key: `[*B, T, K, H]`, zero where it is not valid.
    value: `[*B, T, K, V]`, zero where it is not valid.
    query_valid: `[*B, T]` bool, or None.
    key_valid: `[*B, T]` bool, or None.
    block: tokens in a block.
    implementation: as of `block_sparse`.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  query_valid: jax.Array | None
  key_valid: jax.Array | None
  block: int
  implementation: base.Implementation

  def cut(self, x: jax.Array, tail: int = 0) -> jax.Array:
    """`[*B, T, ...]` as `[*B, n, block, ...]`, with `tail` axes behind T."""
    at = x.ndim - tail - 1
    return x.reshape(*x.shape[:at], -1, self.block, *x.shape[at + 1 :])

  def present(self) -> jax.Array | None:
    """`[*B, n]` bool, whether a block has any valid key; None if all have."""
    if self.key_valid is None:
      return None
    return jnp.any(self.cut(self.key_valid), axis=-1)

  def local(self, causal: bool) -> merge.Partial:
    """Attention to the own block."""
    mask = masks.Mask(
      causal=causal, key_valid=self.key_valid, query_valid=self.query_valid
    )
    pattern = patterns.Chunked(self.block)
    return self._attend(self.key, self.value, pattern, mask)

  def sorted(self, shares: jax.Array, causal: bool) -> merge.Partial:
    """Attention to the block that is sorted to the own one."""
    return self._to_sorted(shares, causal, patterns.Chunked(self.block))

  def first(self, shares: jax.Array, count: int) -> merge.Partial:
    """Attention of all queries to the first `count` sorted blocks."""
    return self._to_sorted(shares[..., :count, :], False, patterns.Full())

  def one(
    self, query: jax.Array, shares: jax.Array, position: jax.Array
  ) -> jax.Array:
    """Causal output of one query `[*B, 1, N, H]` at `position [*B, 1]`."""
    at = position // self.block
    row = at[..., None]
    own = jnp.take_along_axis(shares, row[..., None], axis=-2)
    assert self.key_valid is not None
    there = self.cut(self.key_valid)
    flags = [there, sorting.sorted_valid(there, causal=True)]
    flags = [jnp.take_along_axis(x, row, axis=-2)[..., 0, :] for x in flags]
    both = []
    for x in (self.key, self.value):
      blocks = self.cut(x, 2)
      local = jnp.take_along_axis(blocks, row[..., None, None], axis=-4)
      moved = sorting.sort_blocks(own, blocks).astype(x.dtype)
      both.append(jnp.concatenate([local, moved], axis=-3)[..., 0, :, :, :])
    return oracle.dense_attention(
      query,
      *both,
      mask=masks.Mask(key_valid=jnp.concatenate(flags, axis=-1)),
      return_lse=True,
    ).out

  def _to_sorted(
    self, shares: jax.Array, causal: bool, pattern: patterns.Pattern
  ) -> merge.Partial:
    key, value = (
      sorting.sort_blocks(shares, self.cut(x, 2)).astype(x.dtype)
      for x in (self.key, self.value)
    )
    valid = self.key_valid
    if valid is None:
      valid = jnp.ones(self.key.shape[:-2], bool)
    valid = sorting.sorted_valid(self.cut(valid), causal=causal)
    valid = valid[..., : key.shape[-4], :]
    key, value = (
      x.reshape(*x.shape[:-4], -1, *x.shape[-2:]) for x in (key, value)
    )
    mask = masks.Mask(
      key_valid=valid.reshape(*valid.shape[:-2], -1),
      query_valid=self.query_valid,
    )
    return self._attend(key, value, pattern, mask)

  def _attend(
    self,
    key: jax.Array,
    value: jax.Array,
    pattern: patterns.Pattern,
    mask: masks.Mask,
  ) -> merge.Partial:
    return engine.block_sparse(
      self.query,
      key,
      value,
      pattern=pattern,
      mask=mask,
      return_lse=True,
      implementation=self.implementation,
    )


def fill(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: masks.Mask,
  *,
  block: int,
  implementation: base.Implementation,
) -> Blocks:
  """Fills rows up to whole blocks; what is added is not valid.

  Args:
    query: `[*B, T, N, H]`.
    key: `[*B, T, K, H]`.
    value: `[*B, T, K, V]`.
    mask: says which tokens are padding.
    block: tokens in a block.
    implementation: as of `block_sparse`.
  """
  lead, length = query.shape[:-3], query.shape[-3]
  missing = -length % block

  def flags(x: jax.Array | None) -> jax.Array | None:
    if x is None and not missing:
      return None
    x = jnp.broadcast_to(True if x is None else x, (*lead, length))
    return jnp.pad(x, [(0, 0)] * len(lead) + [(0, missing)])

  def tokens(x: jax.Array) -> jax.Array:
    widths = [(0, 0)] * len(lead) + [(0, missing), (0, 0), (0, 0)]
    return jnp.pad(x, widths) if missing else x

  if mask.key_valid is not None:
    # Else what padding holds would reach the sorted blocks.
    key, value = (zero_where(x, mask.key_valid) for x in (key, value))
  return Blocks(
    query=tokens(query),
    key=tokens(key),
    value=tokens(value),
    query_valid=flags(mask.query_valid),
    key_valid=flags(mask.key_valid),
    block=block,
    implementation=implementation,
  )


def zero_where(x: jax.Array, valid: jax.Array | None) -> Any:
  """Tokens `[*B, T, heads, size]` that are not valid set to zero."""
  if valid is None:
    return x
  return jnp.where(valid[..., None, None], x, jnp.zeros((), x.dtype))
