"""Functions of single tokens, computed some tokens at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_tokens(
  function: Callable[..., Any],
  x: Any,
  *,
  chunk: int,
) -> Any:
  """Applies a function of single tokens to a part of them at a time.

  What it computes in between, such as the wide layer of a feed-forward, exists
  for one chunk only, in the backward pass too. The result is that of
  `function(x)`.

  Args:
    function: from `[*B, n, D]` to `[*B, n, E]`, a token from its own alone.
    x: `[*B, T, D]`, or a pytree of such arrays, which the function takes as
      one; `*B` and `T` are alike in all of them.
    chunk: tokens at a time.

  Returns:
    `[*B, T, E]`.

  Raises:
    ValueError: if `chunk` is not positive or `x` has fewer than two axes.

  Example:
    >>> x = jnp.arange(10.0).reshape(5, 2)
    >>> bool((map_tokens(jnp.sin, x, chunk=2) == jnp.sin(x)).all())
    True

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 3
  ("Chunking").
  """
  if chunk < 1:
    raise ValueError(f"chunk must be positive, got {chunk}.")
  leaves = jax.tree.leaves(x)
  if not leaves or any(leaf.ndim < 2 for leaf in leaves):
    raise ValueError(
      f"x must be [*B, T, D], got {[leaf.shape for leaf in leaves]}."
    )
  lengths = {leaf.shape[-2] for leaf in leaves}
  if len(lengths) > 1:
    raise ValueError(f"arrays of x must have one length, got {lengths}.")
  length = lengths.pop()
  if chunk >= length:
    return function(x)

  def cut(x: jax.Array) -> jax.Array:
    filled = [(0, 0)] * (x.ndim - 2) + [(0, -length % chunk), (0, 0)]
    parts = jnp.pad(x, filled)
    parts = parts.reshape(*x.shape[:-2], -1, chunk, x.shape[-1])
    return jnp.moveaxis(parts, -3, 0)

  def joined(out: jax.Array) -> jax.Array:
    out = jnp.moveaxis(out, 0, -3)
    out = out.reshape(*out.shape[:-3], -1, out.shape[-1])
    return out[..., :length, :]

  body = jax.checkpoint(function, prevent_cse=False)
  return jax.tree.map(joined, jax.lax.map(body, jax.tree.map(cut, x)))
