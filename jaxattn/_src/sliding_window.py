"""Sliding-window attention as a method: linear in time and memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import kv_cache
from jaxattn._src import masks
from jaxattn._src import patterns
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import block_sparse as engine
from jaxattn._src.engines import dense as oracle


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
  """Softmax attention over a window around every query.

  Query `i` sees `i + m * dilation` for `-left <= m <= right`, its own token
  included; a causal mask cuts the right side off. Decoding keeps the last
  `(left + 1) * dilation` keys and values in a ring.

  Attributes:
    left: keys before the query.
    right: keys after the query.
    dilation: tokens between two keys.
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Example:
    >>> method = sliding_window(left=2)
    >>> x = jnp.ones((1, 6, 2, 8))
    >>> method.apply((), (), x, x, x, mask=jaxattn.CAUSAL)[0].shape
    (1, 6, 2, 8)

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 3.1.
  """

  left: int
  right: int = 0
  dilation: int = 1
  relative: Any = None
  implementation: base.Implementation = None

  honours = masks.ALL_FIELDS
  causality = base.STRICT
  time_exponent = 1.0
  memory_exponent = 1.0

  def __post_init__(self) -> None:
    for name, low in (("left", 0), ("right", 0), ("dilation", 1)):
      if getattr(self, name) < low:
        raise ValueError(
          f"{name} must be at least {low}, got {getattr(self, name)}."
        )

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Makes the parameters of the relative scheme; there is no state."""
    return relative_lib.init_scheme(self.relative, rng, shapes), ()

  def apply(
    self,
    params: base.Params,
    state: base.State,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    rng: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, base.State]:
    """Attends within the window; see `AttentionMethod`."""
    del rng, train
    out = engine.block_sparse(
      query,
      key,
      value,
      mask=mask,
      pattern=patterns.dilated(self.left, self.right, dilation=self.dilation),
      relative=relative_lib.of_scheme(self.relative, params, query),
      implementation=self.implementation,
    )
    return out, state

  def init_cache(
    self,
    params: base.Params,
    state: base.State,
    *,
    batch_shape: tuple[int, ...],
    max_length: int,
    shapes: base.AttentionShapes,
  ) -> base.Cache:
    """Makes an empty ring of at most `(left + 1) * dilation` tokens a row."""
    del params, state
    # A multiple of the dilation, so that prefill keeps its residue classes.
    keys = min(self.left + 1, -(-max_length // self.dilation))
    return kv_cache.init(batch_shape, keys * self.dilation, shapes)

  def extend(
    self,
    params: base.Params,
    state: base.State,
    cache: base.Cache,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    key_valid: jax.Array | None = None,
  ) -> tuple[jax.Array, base.Cache]:
    """Appends new tokens and attends causally; see `AttentionMethod`."""
    del state
    grown = kv_cache.write(cache, key, value, key_valid)
    relative = relative_lib.of_scheme(self.relative, params, query)
    if query.shape[-3] == 1:
      seen, now = kv_cache.positions(grown), cache["length"][..., None]
      ago = now - seen
      valid = (seen >= 0) & (ago <= self.left * self.dilation)
      valid = valid & (ago % self.dilation == 0)
      out = oracle.dense_attention(
        query,
        grown["key"],
        grown["value"],
        mask=masks.Mask(key_valid=valid, query_valid=key_valid),
        relative=relative_lib.with_positions(relative, now, seen),
      )
      return out, grown
    old_key, old_value, old_valid = kv_cache.in_order(cache)
    # Key index j of old and new together is token `length + j - size`, so the
    # window is the same band, moved by the size of the ring.
    size = old_valid.shape[-1]
    pattern = patterns.Window(self.left * self.dilation - size, size)
    if self.dilation > 1:
      pattern = pattern & patterns.Strided(self.dilation)
    if key_valid is None:
      key_valid = jnp.ones(key.shape[:-2], bool)
    out = engine.block_sparse(
      query,
      jnp.concatenate([old_key.astype(key.dtype), key], axis=-3),
      jnp.concatenate([old_value.astype(value.dtype), value], axis=-3),
      pattern=pattern,
      mask=masks.Mask(
        key_valid=jnp.concatenate([old_valid, key_valid], axis=-1),
        query_valid=key_valid,
      ),
      relative=relative_lib.moved(relative, size),
      implementation=self.implementation,
    )
    return out, grown


def sliding_window(
  *,
  left: int,
  right: int = 0,
  dilation: int = 1,
  relative: Any = None,
  implementation: base.Implementation = None,
) -> SlidingWindow:
  """Returns the sliding-window method.

  Args:
    left: keys before the query; `left=w - 1` is a causal window of `w` tokens.
    right: keys after the query, unused under a causal mask.
    dilation: tokens between two keys.
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Returns:
    A `SlidingWindow` method.

  Raises:
    ValueError: if `left` or `right` is negative or `dilation` not positive.

  Example:
    >>> sliding_window(left=255).left
    255

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 3.1.
  """
  return SlidingWindow(
    left=left,
    right=right,
    dilation=dilation,
    relative=relative,
    implementation=implementation,
  )
