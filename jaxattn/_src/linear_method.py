"""What methods that are a feature map over the linear engine have in common."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import feature_maps
from jaxattn._src import masks
from jaxattn._src.engines import linear
from jaxattn._src.engines import linear_chunks


@dataclasses.dataclass(frozen=True)
class LinearMethod:
  """Linear attention with the feature map of a subclass.

  A subclass says which (`features`), and which state comes next (`next_state`)
  if it has any. Decoding keeps the sums over all tokens so far: its memory does
  not grow.

  Attributes:
    implementation: as of `linear_attention`.
  """

  implementation: base.Implementation = dataclasses.field(
    default=None, kw_only=True
  )

  honours = linear.HONOURS
  causality = base.STRICT
  time_exponent = 1.0
  memory_exponent = 1.0

  def features(
    self, params: base.Params, state: base.State
  ) -> feature_maps.FeatureMap:
    """The feature map."""
    raise NotImplementedError

  def next_state(self, state: base.State) -> base.State:
    """The state that a training step works with."""
    return state

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Makes parameters and state; there are none."""
    del rng, shapes
    return (), ()

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
    """Attends to every key that `mask` allows; see `AttentionMethod`."""
    del rng
    if train:
      state = self.next_state(state)
    out = linear.linear_attention(
      query,
      key,
      value,
      feature_map=self.features(params, state),
      mask=mask,
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
    """Makes an empty cache; its size does not depend on `max_length`."""
    del max_length
    empty = linear.linear_state(
      batch_shape, shapes, feature_map=self.features(params, state)
    )
    return _as_cache(empty, jnp.zeros(batch_shape, jnp.int32))

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
    old = linear_chunks.State(
      cache["sums"], cache["normalizer"], cache.get("scale"), None
    )
    out, new = linear.linear_extend(
      old,
      query,
      key,
      value,
      feature_map=self.features(params, state),
      key_valid=key_valid,
    )
    count: Any = query.shape[-3]
    if key_valid is not None:
      count = jnp.sum(key_valid, axis=-1, dtype=jnp.int32)
    return out, _as_cache(new, cache["length"] + count)


def _as_cache(state: linear_chunks.State, length: jax.Array) -> base.Cache:
  kept = {"sums": state.sums, "normalizer": state.normalizer, "length": length}
  return kept if state.scale is None else kept | {"scale": state.scale}
