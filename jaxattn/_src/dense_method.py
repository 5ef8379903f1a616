"""Dense softmax attention as a method: exact, quadratic in time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import kv_cache
from jaxattn._src import masks
from jaxattn._src import merge
from jaxattn._src import patterns
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import block_sparse as engine
from jaxattn._src.engines import dense as oracle


@dataclasses.dataclass(frozen=True)
class Dense:
  """Exact softmax attention over all keys.

  Computed tile by tile as FlashAttention does: time grows with the square of
  the length, memory with the length. Decoding keeps every key and value.

  Attributes:
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Example:
    >>> method = dense()
    >>> x = jnp.ones((1, 4, 2, 8))
    >>> params, state = method.init(
    ...     jax.random.key(0), jaxattn.AttentionShapes(num_heads=2, head_dim=8))
    >>> method.apply(params, state, x, x, x, mask=jaxattn.CAUSAL)[0].shape
    (1, 4, 2, 8)

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; Dao et al.,
  2022, https://arxiv.org/abs/2205.14135.
  """

  relative: Any = None
  implementation: base.Implementation = None

  honours = masks.ALL_FIELDS
  causality = base.STRICT
  time_exponent = 2.0
  memory_exponent = 1.0

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
    """Attends to every key that `mask` allows; see `AttentionMethod`."""
    del rng, train
    out = engine.block_sparse(
      query,
      key,
      value,
      pattern=patterns.Full(),
      mask=mask,
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
    """Makes an empty cache of `max_length` tokens a row."""
    del params, state
    return kv_cache.init(batch_shape, max_length, shapes)

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
    """Appends new tokens and attends causally; see `AttentionMethod`.

    Tokens beyond the cache's `max_length` wrap around: keep count outside.
    """
    del state
    grown = kv_cache.write(cache, key, value, key_valid)
    relative = relative_lib.of_scheme(self.relative, params, query)
    if query.shape[-3] == 1:
      seen = kv_cache.positions(grown)
      out = oracle.dense_attention(
        query,
        grown["key"],
        grown["value"],
        mask=masks.Mask(key_valid=seen >= 0, query_valid=key_valid),
        relative=relative_lib.with_positions(
          relative, cache["length"][..., None], seen
        ),
      )
      return out, grown
    old = self._attend_cache(cache, query, key_valid, relative)
    new = engine.block_sparse(
      query,
      key,
      value,
      pattern=patterns.Causal(),
      mask=masks.Mask(key_valid=key_valid, query_valid=key_valid),
      relative=relative,
      return_lse=True,
      implementation=self.implementation,
    )
    return merge.merge(old, new).out.astype(query.dtype), grown

  def _attend_cache(
    self,
    cache: base.Cache,
    query: jax.Array,
    key_valid: jax.Array | None,
    relative: relative_lib.Relative | None,
  ) -> merge.Partial:
    """Attention from new tokens to the cached ones, if there are any."""
    position = jnp.arange(query.shape[-3], dtype=jnp.int32)
    position = cache["length"][..., None] + jax.lax.broadcast_to_rank(
      position, cache["length"].ndim + 1
    )
    seen = kv_cache.positions(cache)
    relative = relative_lib.with_positions(relative, position, seen)

    def attend() -> merge.Partial:
      return engine.block_sparse(
        query,
        cache["key"].astype(query.dtype),
        cache["value"].astype(query.dtype),
        pattern=patterns.Full(),
        mask=masks.Mask(key_valid=seen >= 0, query_valid=key_valid),
        relative=relative,
        return_lse=True,
        implementation=self.implementation,
      )

    def nothing() -> merge.Partial:
      shape = (*query.shape[:-1], cache["value"].shape[-1])
      return merge.Partial(
        jnp.zeros(shape, jnp.float32),
        jnp.full(shape[:-1], -jnp.inf, jnp.float32),
      )

    return jax.lax.cond(jnp.any(cache["length"] > 0), attend, nothing)


def dense(
  *, relative: Any = None, implementation: base.Implementation = None
) -> Dense:
  """Returns the dense method: exact softmax attention over all keys.

  Args:
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Returns:
    A `Dense` method.

  Raises:
    Nothing.

  Example:
    >>> dense() == dense()
    True

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762.
  """
  return Dense(relative=relative, implementation=implementation)
