"""Heads one after the other: on CPUs, what does not fit a cache is slower.

Taking a head out of `[B, T, heads, size]` is part of whatever reads it first,
while all heads at once must be laid out anew before they can be multiplied.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import dispatch

_LEAST = 1024  # Tokens of a head, below which loops cost more than they save.


def pays(tokens: int, heads: int) -> bool:
  """Whether heads should be taken one after the other.

  Args:
    tokens: of all batch rows and query heads that a step would have.
    heads: how many steps there would be.
  """
  return dispatch.platform() == "cpu" and heads > 1 and tokens >= _LEAST


def run(
  function: Callable[..., Sequence[jax.Array]],
  heads: int,
  arrays: Sequence[Any],
) -> tuple[jax.Array, ...]:
  """Calls a function for every head, and joins what it returns.

  Args:
    function: maps arrays of one head to arrays of one head.
    heads: how many there are.
    arrays: what it is given, with heads on axis 2, `size // heads` of which are
      one head's; leaves may be None.

  Returns:
    What it returned, with all heads on axis 2.
  """

  def of(head: jax.Array) -> list[Any]:
    def cut(x: jax.Array) -> jax.Array:
      size = x.shape[2] // heads
      return jax.lax.dynamic_slice_in_dim(x, head * size, size, 2)

    return [jax.tree.map(cut, x) for x in arrays]

  def body(head: jax.Array, outs: tuple[jax.Array, ...]) -> Any:
    found = function(*of(head))
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(out, x, head * x.shape[2], 2)
      for out, x in zip(outs, found, strict=True)
    )

  shapes = jax.eval_shape(lambda: function(*of(jnp.int32(0))))
  outs = tuple(
    jnp.zeros((*s.shape[:2], s.shape[2] * heads, *s.shape[3:]), s.dtype)
    for s in shapes
  )
  return jax.lax.fori_loop(0, heads, body, outs)
