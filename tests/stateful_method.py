"""A method with parameters, state and noise, for tests of what carries them."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

import jaxattn


@dataclasses.dataclass(frozen=True)
class Stateful:
  """Dense attention with a gain per head, a step counter, and noise."""

  honours: ClassVar[frozenset[str]] = jaxattn.Dense.honours
  causality: ClassVar[str] = "strict"
  time_exponent: ClassVar[float] = 2.0
  memory_exponent: ClassVar[float] = 1.0

  def init(self, rng, shapes):
    gain = jax.random.normal(rng, (shapes.num_heads,), shapes.dtype)
    return {"gain": gain}, {"steps": jnp.zeros((), jnp.int32)}

  def apply(
    self,
    params,
    state,
    query,
    key,
    value,
    *,
    mask=jaxattn.FULL,
    rng=None,
    train=False,
  ):
    out = jaxattn.dense_attention(query, key, value, mask=mask)
    gain = jax.lax.broadcast_to_rank(params["gain"][:, None], out.ndim)
    out = out * gain
    if rng is not None:
      out = out + jax.random.normal(rng, out.shape)
    steps = state["steps"] + (1 if train else 0)
    return out, {"steps": steps}

  def init_cache(self, params, state, *, batch_shape, max_length, shapes):
    del params, state
    return jaxattn.dense().init_cache(
      (), (), batch_shape=batch_shape, max_length=max_length, shapes=shapes
    )

  def extend(self, params, state, cache, query, key, value, *, key_valid=None):
    del state
    out, cache = jaxattn.dense().extend(
      (), (), cache, query, key, value, key_valid=key_valid
    )
    return out * params["gain"][None, None, :, None], cache
