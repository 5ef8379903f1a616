"""Merging partial attentions over disjoint edge sets."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Partial(NamedTuple):
  """Attention over one edge set, ready to be merged with others.

  Attributes:
    out: `[*B, T, N, V]` float32, the output normalised over its own edges;
      zero for a row without edges.
    lse: `[*B, T, N]` float32, the log of its softmax denominator; `-inf` for a
      row without edges.

  Example:
    >>> Partial(jnp.zeros((4, 2, 8)), jnp.full((4, 2), -jnp.inf)).lse.shape
    (4, 2)

  Source: the log-sum-exp identity of FlashAttention,
  https://arxiv.org/abs/2205.14135.
  """

  out: jax.Array
  lse: jax.Array


def merge(*partials: Partial) -> Partial:
  """Merges partial attentions whose edge sets are disjoint.

  With `l` the largest lse of a row and `w_i = exp(lse_i - l)`, the merged
  output is `sum_i w_i out_i / sum_i w_i` and its lse is `l + log(sum_i w_i)`.
  The merge is associative, commutative and exact up to rounding, in value and
  gradient. An edge that stands in two partials counts twice.

  Args:
    *partials: one or more `Partial` of equal shapes.

  Returns:
    The `Partial` over the union. A row without any edge stays `(0, -inf)`,
    with zero gradient.

  Raises:
    ValueError: if no partial is given or their shapes differ.

  Example:
    >>> one = Partial(jnp.ones((1, 1, 2)), jnp.zeros((1, 1)))
    >>> none = Partial(jnp.zeros((1, 1, 2)), jnp.full((1, 1), -jnp.inf))
    >>> merge(one, none).out[0, 0].tolist()
    [1.0, 1.0]

  Source: Dao et al., 2022, https://arxiv.org/abs/2205.14135.
  """
  if not partials:
    raise ValueError("merge needs at least one Partial, got none.")
  shapes = {(p.out.shape, p.lse.shape) for p in partials}
  if len(shapes) > 1:
    raise ValueError(f"partials must have equal shapes, got {sorted(shapes)}.")
  if len(partials) == 1:
    return partials[0]
  top = functools.reduce(jnp.maximum, [p.lse for p in partials])
  top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0.0, top))
  weights = [jnp.exp(p.lse - top) for p in partials]
  total = functools.reduce(jnp.add, weights)
  seen = total > 0
  total = jnp.where(seen, total, 1.0)
  out = functools.reduce(
    jnp.add,
    [
      p.out * (w / total)[..., None]
      for p, w in zip(partials, weights, strict=True)
    ],
  )
  return Partial(out, jnp.where(seen, top + jnp.log(total), -jnp.inf))
