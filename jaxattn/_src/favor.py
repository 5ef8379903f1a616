"""FAVOR+: random projections, and the features that are made of them.

For `w` drawn from a standard normal distribution,

    exp(x.y) = E[exp(w.x - |x|^2 / 2) exp(w.y - |y|^2 / 2)],

so that a mean over m drawn rows estimates the weights of softmax attention by a
product of features. Rows that are orthogonal to each other estimate it better.
"""

from collections.abc import Callable
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src.feature_maps import Features

ProjectionKind = Literal["orthogonal", "iid", "hadamard"]
Norms = Literal["chi", "sqrt"]


def draw_projection(
  rng: jax.Array,
  num_features: int,
  head_dim: int,
  *,
  kind: ProjectionKind = "orthogonal",
  norms: Norms = "chi",
) -> jax.Array:
  """Draws the rows that features project on.

  A row is a direction times a norm. Directions come in blocks of `head_dim`
  that are orthogonal to each other; blocks are independent, and the last one is
  cut off. `hadamard` draws the directions of a dimension that is a power of
  two, the next one, and drops the last columns: this is the same as padding the
  vectors that are projected by zeros. Its rows are then not exactly orthogonal.

  Args:
    rng: a typed key; it is consumed.
    num_features: m, rows.
    head_dim: H, size of what is projected.
    kind: `orthogonal`: uniformly distributed orthogonal matrices; `iid`:
      independent directions; `hadamard`: products of three Hadamard matrices
      with random signs, cheaper to draw, whose estimates have a small bias.
    norms: `chi`: those of independent standard normal vectors, which makes each
      row of the first two kinds standard normal; `sqrt`: all `sqrt(H)`, a
      biased estimate of smaller variance.

  Returns:
    `[m, H]` float32.

  Raises:
    ValueError: for a size that is not positive, or an unknown name.

  Example:
    >>> w = draw_projection(jax.random.key(0), 16, 8, norms="sqrt")
    >>> gram = w[8:] @ w[8:].T / 8
    >>> bool(jnp.allclose(gram, jnp.eye(8), atol=1e-5))
    True

  Source: Choromanski et al., 2021, https://arxiv.org/abs/2009.14794, section
  2.4; Yu et al., 2016, https://arxiv.org/abs/1610.09072 (Hadamard products).
  Differs: the authors' code takes `Q` of a QR decomposition as it comes, whose
  signs are not random; the positive features are then biased.
  """
  for name, size in (("num_features", num_features), ("head_dim", head_dim)):
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}.")
  check_option("kind", kind, ProjectionKind)
  check_option("norms", norms, Norms)
  rows = num_features
  size = 1 << (head_dim - 1).bit_length() if kind == "hadamard" else head_dim
  direction_rng, norm_rng = jax.random.split(rng)
  directions = _DIRECTIONS[kind](direction_rng, rows, size)
  if norms == "sqrt":
    return directions[:, :head_dim] * size**0.5
  lengths = _length(jax.random.normal(norm_rng, (rows, size), jnp.float32))
  return (directions * lengths)[:, :head_dim]


def _iid(rng: jax.Array, rows: int, size: int) -> jax.Array:
  normal = jax.random.normal(rng, (rows, size), jnp.float32)
  return normal / _length(normal)


def _orthogonal(rng: jax.Array, rows: int, size: int) -> jax.Array:
  blocks = jax.random.orthogonal(rng, size, (-(-rows // size),), jnp.float32)
  return blocks.reshape(-1, size)[:rows]


def _hadamard(rng: jax.Array, rows: int, size: int) -> jax.Array:
  index = np.arange(size)
  odd = np.bitwise_count(index[:, None] & index) % 2
  matrix = jnp.asarray((1.0 - 2.0 * odd) / size**0.5, jnp.float32)
  shape = (3, -(-rows // size), 1, size)
  signs = jax.random.rademacher(rng, shape, jnp.float32)
  blocks = matrix[None] * signs[0]
  for sign in signs[1:]:
    blocks = sign * jnp.matmul(
      blocks, matrix, precision=jax.lax.Precision.HIGHEST
    )
  return blocks.reshape(-1, size)[:rows]


_DIRECTIONS: dict[str, Callable[[jax.Array, int, int], jax.Array]] = {
  "iid": _iid,
  "orthogonal": _orthogonal,
  "hadamard": _hadamard,
}


def _length(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def positive_features(projection: jax.Array, x: jax.Array) -> Features:
  """Features whose products estimate the weights of softmax attention.

  With `x' = x / H^(1/4)` for queries and keys,

      phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(m),
      E[phi(x).phi(y)] = exp(x.y / sqrt(H)).

  All are positive, so that attention averages values with positive weights. The
  largest exponent of each token is kept as a logarithm: no other token is
  looked at, and nothing is added for safety. A feature that is `exp(-87)` of
  its token's largest, or less, is zero in float32.

  Args:
    projection: `[m, H]`, of `draw_projection`.
    x: `[..., H]`, unscaled queries or keys.

  Returns:
    m features.

  Raises:
    ValueError: if the sizes disagree.

  Example:
    >>> w = draw_projection(jax.random.key(0), 64, 4)
    >>> positive_features(w, jnp.ones((2, 5, 4))).values.shape
    (2, 5, 64)

  Source: Choromanski et al., 2021, https://arxiv.org/abs/2009.14794, lemma 1.
  Differs: no additive epsilon, and no maximum over all keys, by which a large
  later key would reach earlier tokens of a causal model.
  """
  logits, half = _project(projection, x)
  return _exponential(logits, half)


def hyperbolic_features(projection: jax.Array, x: jax.Array) -> Features:
  """Positive features of every row and its negative: `cosh` in products.

      phi(x) = exp(-|x'|^2 / 2) [exp(W x'), exp(-W x')] / sqrt(2 m)

  For the same m less than half the variance of `positive_features`, for twice
  the features.

  Args:
    projection: `[m, H]`, of `draw_projection`.
    x: `[..., H]`, unscaled queries or keys.

  Returns:
    `2 m` features.

  Raises:
    ValueError: if the sizes disagree.

  Example:
    >>> w = draw_projection(jax.random.key(0), 64, 4)
    >>> hyperbolic_features(w, jnp.ones((2, 5, 4))).values.shape
    (2, 5, 128)

  Source: Choromanski et al., 2021, https://arxiv.org/abs/2009.14794, lemma 1
  and theorem 2.
  """
  logits, half = _project(projection, x)
  return _exponential(jnp.concatenate([logits, -logits], axis=-1), half)


def trigonometric_features(projection: jax.Array, x: jax.Array) -> Features:
  """Features of sines and cosines, unbiased but not positive.

      phi(x) = exp(|x'|^2 / 2) [sin(W x'), cos(W x')] / sqrt(m)

  For comparison: their error is largest where the weights are near zero, and
  the sum that attention divides by may be near zero or negative.

  Args:
    projection: `[m, H]`, of `draw_projection`.
    x: `[..., H]`, unscaled queries or keys.

  Returns:
    `2 m` features.

  Raises:
    ValueError: if the sizes disagree.

  Example:
    >>> w = draw_projection(jax.random.key(0), 64, 4)
    >>> trigonometric_features(w, jnp.zeros((2, 5, 4))).values.shape
    (2, 5, 128)

  Source: Rahimi and Recht, 2007; Choromanski et al., 2021,
  https://arxiv.org/abs/2009.14794, equation 5.
  """
  logits, half = _project(projection, x)
  waves = jnp.concatenate([jnp.sin(logits), jnp.cos(logits)], axis=-1)
  return Features(waves * projection.shape[0] ** -0.5, half)


def generalized_features(
  projection: jax.Array | None,
  x: jax.Array,
  *,
  function: Callable[[jax.Array], jax.Array] = jax.nn.relu,
  epsilon: float = 1e-3,
  scaled: bool = False,
) -> Features:
  """Features of any function of the projections: `f(W x) / sqrt(m) + epsilon`.

  They define a kernel of their own and estimate no softmax.

  Args:
    projection: `[m, H]`, or None for `f(x) + epsilon`.
    x: `[..., H]`, unscaled queries or keys.
    function: f, elementwise; not negative where attention shall average.
    epsilon: least weight of a feature. It is part of the kernel: with 0, a
      query may see nothing and give zero.
    scaled: whether x is divided by `H^(1/4)` first.

  Returns:
    m features, or H without a projection.

  Raises:
    ValueError: if the sizes disagree or `epsilon` is negative.

  Example:
    >>> x = jnp.array([-1.0, 2.0])
    >>> generalized_features(None, x, epsilon=0.5).values.tolist()
    [0.5, 2.5]

  Source: Choromanski et al., 2021, https://arxiv.org/abs/2009.14794, section
  2.2 and appendix; ReLU without a projection and `epsilon=1e-3` are the
  defaults of the authors' JAX code.
  """
  if epsilon < 0:
    raise ValueError(f"epsilon must not be negative, got {epsilon}.")
  x = x.astype(jnp.float32)
  if scaled:
    x = x * x.shape[-1] ** -0.25
  if projection is None:
    return Features(function(x) + epsilon)
  values = function(_times(projection, x))
  return Features(values * projection.shape[0] ** -0.5 + epsilon)


def _project(projection: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
  """`W x' [..., m]` and `|x'|^2 / 2 [...]` of scaled vectors."""
  x = x.astype(jnp.float32) * x.shape[-1] ** -0.25
  return _times(projection, x), jnp.sum(x * x, axis=-1) * 0.5


def _exponential(logits: jax.Array, half: jax.Array) -> Features:
  """`exp(logits - half) / sqrt(m)`, with the largest logit kept apart."""
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  values = jnp.exp(logits - top[..., None]) * logits.shape[-1] ** -0.5
  return Features(values, top - half)


def _times(projection: jax.Array, x: jax.Array) -> jax.Array:
  if projection.ndim != 2 or projection.shape[-1] != x.shape[-1]:
    raise ValueError(
      f"projection must be [num_features, {x.shape[-1]}], "
      f"got {projection.shape}."
    )
  # What is exponentiated may not be rounded as devices do by default.
  return jnp.einsum(
    "...h,mh->...m", x, projection, precision=jax.lax.Precision.HIGHEST
  )


def check_option(name: str, value: str | None, choices: object) -> None:
  """Raises ValueError unless `value` is one of a Literal's choices."""
  if value not in get_args(choices):
    listed = ", ".join(map(repr, get_args(choices)))
    raise ValueError(f"{name} must be one of {listed}; got {value!r}.")
