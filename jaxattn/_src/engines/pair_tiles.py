"""Softmax attention of small tiles: queries of a tile to keys of the same."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Tiles:
  """How tiles are computed.

  A tile has p queries and s keys; arrays have a leading axis that counts the
  tiles `c`. `keep [c, p, s]` says which edges there are.

  Attributes:
    scale: factor of the scores.
    precision: of the matrix products.
  """

  scale: float
  precision: Any

  def _product(self, terms: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(
      terms,
      x,
      y,
      preferred_element_type=jnp.float32,
      precision=self.precision,
    )

  def _scores(self, q: jax.Array, k: jax.Array, keep: jax.Array) -> jax.Array:
    scores = self._product("cph,csh->cps", q, k) * jnp.float32(self.scale)
    return jnp.where(keep, scores, -jnp.inf)

  def forward(
    self, q: jax.Array, k: jax.Array, v: jax.Array, keep: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Output `[c, p, V]` and lse `[c, p]`, float32; no edge: `(0, -inf)`."""
    scores = self._scores(q, k, keep)
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = self._product("cps,csv->cpv", weights.astype(v.dtype), v)
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    lse = jnp.where(seen, top + jnp.log(total), -jnp.inf)
    return out / total, lse[..., 0]

  def backward(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    keep: jax.Array,
    rows: tuple[jax.Array, jax.Array, jax.Array],
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v, float32.

    Args:
      q: `[c, p, H]`.
      k: `[c, s, H]`.
      v: `[c, s, V]`.
      keep: `[c, p, s]`.
      rows: of every query the cotangent `[c, p, V]` of its output, its lse over
        all its edges, also those of other tiles (`inf` where it has none), and
        `delta = sum(out * cotangent) - cotangent of lse`, both `[c, p]`.
    """
    dout, lse, delta = rows
    weights = jnp.exp(self._scores(q, k, keep) - lse[..., None])
    slopes = self._product("cpv,csv->cps", dout, v) - delta[..., None]
    slopes = (weights * slopes * jnp.float32(self.scale)).astype(q.dtype)
    return (
      self._product("cps,csh->cph", slopes, k),
      self._product("cps,cph->csh", slopes, q),
      self._product("cps,cpv->csv", weights.astype(dout.dtype), dout),
    )


def softmax_rows(
  out: jax.Array, lse: jax.Array, of_out: jax.Array, of_lse: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The lse and delta that `Tiles.backward` takes."""
  delta = jnp.sum(out * of_out.astype(jnp.float32), axis=-1) - of_lse
  return jnp.where(jnp.isneginf(lse), jnp.inf, lse), delta


def take_rows(x: jax.Array, index: jax.Array) -> jax.Array:
  """Rows of `x [n, ...]` at `index`, all of which exist."""
  return x.at[index].get(mode="promise_in_bounds")


def group_size(count: int, *, unit: int, budget: int) -> int:
  """Tiles to compute at a time, spread evenly over the steps.

  Args:
    count: how many tiles there are.
    unit: scores of a tile.
    budget: scores in flight.
  """
  most = max(1, min(count, budget // unit))
  return -(-count // -(-count // most))
