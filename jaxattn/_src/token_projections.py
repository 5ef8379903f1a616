"""Making few tokens of many: learned projections, convolutions, pooling."""

import math
from collections.abc import Sequence
from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp

from jaxattn._src import dispatch

Init = Literal["scaled", "xavier", "uniform", "normal"]
Pooling = Literal["mean", "max"]


def draw_token_projection(
  rng: jax.Array,
  shape: Sequence[int],
  *,
  init: Init = "scaled",
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Draws matrices that make `k` tokens of `n`.

  With keys of unit variance the projected keys, and so the scores of queries of
  unit variance, have the variance given.

  - `scaled`: normal, variance `1 / n`; gives 1, as without a projection.
  - `xavier`: uniform, of Glorot with gain `1 / sqrt(2)`; gives `n / (n + k)`.
  - `uniform`: in `+-1 / sqrt(k)`; gives `n / (3 k)`.
  - `normal`: variance `1 / k`, as the theorems have it; gives `n / k`.

  Args:
    rng: PRNG key, consumed.
    shape: `(..., k, n)`; `(..., 1, w)` for the kernels of a convolution.
    init: how to draw.
    dtype: of the result.

  Returns:
    An array of the shape.

  Raises:
    ValueError: if `init` is unknown or the shape has fewer than two axes.

  Example:
    >>> draw_token_projection(jax.random.key(0), (16, 512)).shape
    (16, 512)

  Source: Wang et al., 2020, https://arxiv.org/abs/2006.04768, for `normal`;
  `xavier` and `uniform` are those of its implementations.
  """
  if len(shape) < 2:
    raise ValueError(f"shape must be (..., k, n), got {tuple(shape)}.")
  outputs, inputs = shape[-2:]
  if init in ("scaled", "normal"):
    size = (inputs if init == "scaled" else outputs) ** -0.5
    return jax.random.normal(rng, shape, dtype) * size
  if init in ("xavier", "uniform"):
    bound = outputs**-0.5
    if init == "xavier":
      bound = math.sqrt(3.0 / (inputs + outputs))
    return jax.random.uniform(rng, shape, dtype, -bound, bound)
  raise ValueError(f"init must be one of {get_args(Init)}, got {init!r}.")


def project_tokens(
  x: jax.Array, projection: jax.Array, *, valid: jax.Array | None = None
) -> jax.Array:
  """Makes `k` tokens, each a weighted sum of all.

  `out[c] = sum_s projection[c, s] x[s]` over the valid tokens `s`.

  Args:
    x: `[*B, S, K, H]` floats.
    projection: `[k, n]`, for all heads, or `[G, k, n]`, each for `K / G` heads
      that follow each other; G divides K and n is at least S. Columns from S on
      are not used.
    valid: `[*B, S]` bool, False at tokens to leave out; None for none.

  Returns:
    `[*B, k, K, H]` in the dtype of `x`, summed in float32.

  Raises:
    ValueError: if the shapes do not fit.

  Example:
    >>> x = jnp.ones((1, 5, 2, 8))
    >>> project_tokens(x, jnp.ones((3, 6)))[0, :, 0, 0].tolist()
    [5.0, 5.0, 5.0]

  Source: Wang et al., 2020, https://arxiv.org/abs/2006.04768.
  """
  length, heads = x.shape[-3:-1]
  check_projection("projection", projection, length, heads)
  projection = projection[..., :length].astype(x.dtype)
  groups = projection.shape[0] if projection.ndim == 3 else 1
  grouped = _where(valid, x).reshape(
    *x.shape[:-2], groups, heads // groups, x.shape[-1]
  )
  axes = "gks"
  if groups == 1:  # Without an axis of its own it is one product.
    projection, axes = projection.reshape(projection.shape[-2:]), "ks"
  out = jnp.einsum(
    f"{axes},...sgrh->...kgrh",
    projection,
    grouped,
    preferred_element_type=jnp.float32,
    precision=dispatch.precision(x.dtype),
  )
  return out.reshape(*out.shape[:-3], heads, x.shape[-1]).astype(x.dtype)


def check_projection(
  name: str, projection: jax.Array, length: int, heads: int
) -> None:
  """Raises ValueError unless the matrices fit the tokens and heads."""
  groups = projection.shape[0] if projection.ndim == 3 else 1
  if projection.ndim not in (2, 3) or groups == 0 or heads % groups:
    raise ValueError(
      f"{name} must be [k, n], or [G, k, n] where G divides the {heads} key "
      f"heads; got {projection.shape}."
    )
  if length > projection.shape[-1]:
    raise ValueError(
      f"{length} keys exceed the max_length {projection.shape[-1]} of {name} "
      f"{projection.shape}; make it with a larger one."
    )


def convolve_tokens(
  x: jax.Array, kernel: jax.Array, *, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Makes one token of every `w`, by a kernel of that width and stride.

  `out[c] = sum_i kernel[i] x[c w + i]` over the valid tokens. All channels of a
  head share the weights.

  Args:
    x: `[*B, S, K, H]` floats.
    kernel: `[w]`, for all heads, or `[G, w]`, each for `K / G` heads that
      follow each other; G divides K.
    valid: `[*B, S]` bool, False at tokens to leave out; None for none.

  Returns:
    `[*B, ceil(S / w), K, H]` in the dtype of `x`, summed in float32, and which
    of these have a valid token, `[*B, ceil(S / w)]` bool, or None where `valid`
    is.

  Raises:
    ValueError: if the shapes do not fit.

  Example:
    >>> x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    >>> convolve_tokens(x, jnp.array([0.0, 1.0]))[0].ravel().tolist()
    [1.0, 3.0, 0.0]

  Source: Wang et al., 2020, https://arxiv.org/abs/2006.04768, section 4.
  """
  heads = x.shape[-2]
  groups = kernel.shape[0] if kernel.ndim == 2 else 1
  if kernel.ndim not in (1, 2) or not groups or heads % groups:
    raise ValueError(
      f"kernel must be [w], or [G, w] where G divides the {heads} key heads; "
      f"got {kernel.shape}."
    )
  weights = kernel.astype(jnp.float32).reshape(groups, -1)
  weights = jnp.repeat(weights, heads // groups, axis=0).T[..., None]
  windows, kept = _windows(x, kernel.shape[-1], valid)
  windows = _where(kept, windows).astype(jnp.float32)
  # A product and a sum, which XLA fuses, and not a matrix product of width w.
  out = jnp.sum(
    windows * jax.lax.broadcast_to_rank(weights, windows.ndim), axis=-3
  )
  return out.astype(x.dtype), None if valid is None else jnp.any(kept, -1)


def pool_tokens(
  x: jax.Array,
  window: int,
  *,
  kind: Pooling = "mean",
  valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Makes one token of every `window`, their mean or maximum.

  Args:
    x: `[*B, S, K, H]` floats.
    window: tokens that become one; the last may be of fewer.
    kind: `mean` or `max`, of each channel.
    valid: `[*B, S]` bool, False at tokens that do not count; None for none.

  Returns:
    `[*B, ceil(S / window), K, H]` in the dtype of `x`, zero where no token is
    valid, and which have one, `[*B, ceil(S / window)]` bool, or None where
    `valid` is.

  Raises:
    ValueError: if `window` is not positive or `kind` is unknown.

  Example:
    >>> x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    >>> pool_tokens(x, 2)[0].ravel().tolist()
    [0.5, 2.5, 4.0]

  Source: Wang et al., 2020, https://arxiv.org/abs/2006.04768, section 4.
  """
  if window < 1:
    raise ValueError(f"window must be positive, got {window}.")
  if kind not in get_args(Pooling):
    raise ValueError(f"kind must be one of {get_args(Pooling)}, got {kind!r}.")
  windows, kept = _windows(x, window, valid)
  found = jnp.any(kept, axis=-1)
  if kind == "mean":
    total = jnp.sum(_where(kept, windows), axis=-3, dtype=jnp.float32)
    count = jnp.maximum(jnp.sum(kept, axis=-1, dtype=jnp.float32), 1.0)
    out = (total / count[..., None, None]).astype(x.dtype)
  else:
    out = jnp.max(_where(kept, windows, -jnp.inf), axis=-3)
    out = _where(found, out)
  return out, None if valid is None else found


def _windows(
  x: jax.Array, window: int, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """`[*B, J, w, K, H]`, and `[*B or 1s, J, w]`, False at padding."""
  length = x.shape[-3]
  count = -(-length // window)
  extra = count * window - length
  x = jnp.pad(x, ((0, 0),) * (x.ndim - 3) + ((0, extra), (0, 0), (0, 0)))
  if valid is None:
    valid = jnp.ones(length, bool)
  valid = jax.lax.broadcast_to_rank(valid, x.ndim - 2)
  valid = jnp.pad(valid, ((0, 0),) * (valid.ndim - 1) + ((0, extra),))
  return (
    x.reshape(*x.shape[:-3], count, window, *x.shape[-2:]),
    valid.reshape(*valid.shape[:-1], count, window),
  )


def _where(
  valid: jax.Array | None, x: jax.Array, other: float = 0.0
) -> jax.Array:
  """`x [..., K, H]`, or `other` where it is not valid."""
  if valid is None:
    return x
  valid = jax.lax.broadcast_to_rank(valid, x.ndim - 2)
  return jnp.where(valid[..., None, None], x, jnp.asarray(other, x.dtype))
