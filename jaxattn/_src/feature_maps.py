"""Feature maps: what stands for the exponential of softmax attention.

A feature map is a function of the last axis of an array: `x [..., H]` gives
`Features` of `[..., F]`. Leading axes are tokens and heads in any order. One
that holds arrays (a drawn projection) is a `jax.tree_util.Partial`, so that
transformations see them; one without is any hashable function.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Features(NamedTuple):
  """Features with a factor kept as a logarithm: `values * exp(log_scale)`.

  Exponentials overflow; what they have in common for one token is kept apart,
  so that attention compares it between tokens before it is exponentiated.

  Attributes:
    values: `[..., F]` float32.
    log_scale: `[...]` float32, or None for no factor.

  Example:
    >>> Features(jnp.ones((3, 8)), jnp.zeros(3)).whole().shape
    (3, 8)

  Source: Choromanski et al., 2021, https://arxiv.org/abs/2009.14794, whose
  features need such a factor.
  """

  values: jax.Array
  log_scale: jax.Array | None = None

  def whole(self) -> jax.Array:
    """The features with their factor, `[..., F]`; may overflow."""
    if self.log_scale is None:
      return self.values
    return self.values * jnp.exp(self.log_scale)[..., None]


# A normaliser below it is rounding or nothing, and its row is zero: the inverse
# of a smaller one, times a gradient, could overflow.
LEAST = 1e-30

FeatureMap = Callable[[jax.Array], Any]  # To `Features`, or an array.


def identity_features(x: jax.Array) -> Features:
  """Takes `x` itself, for features that were computed before.

  Args:
    x: `[..., F]`, not negative where a normaliser must not vanish.

  Returns:
    Features of size F.

  Raises:
    Nothing.

  Example:
    >>> identity_features(jnp.array([1.0, 2.0])).values.tolist()
    [1.0, 2.0]

  Source: none needed.
  """
  return Features(x.astype(jnp.float32))


def elu_features(x: jax.Array) -> Features:
  """`elu(x) + 1`, the Linear Transformer's map.

  Args:
    x: `[..., H]`; it is not scaled by `1 / sqrt(H)`.

  Returns:
    Positive features of size H.

  Raises:
    Nothing.

  Example:
    >>> elu_features(jnp.array([0.0, 2.0])).values.tolist()
    [1.0, 3.0]

  Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, eq. 7.
  """
  x = x.astype(jnp.float32)
  # Not by `expm1`, whose digits the 1 would cost, and which kernels lack.
  low = jnp.exp(jnp.where(x > 0.0, 0.0, x))
  return Features(jnp.where(x > 0.0, x + 1.0, low))


def relu_features(x: jax.Array) -> Features:
  """`relu(x)`: sparse features; a query may then see nothing and give zero.

  Args:
    x: `[..., H]`.

  Returns:
    Features of size H, zero where `x` is not positive.

  Raises:
    Nothing.

  Example:
    >>> relu_features(jnp.array([-1.0, 2.0])).values.tolist()
    [0.0, 2.0]

  Source: Kasai et al., 2021, https://arxiv.org/abs/2103.13076 (without its
  learned projection).
  """
  return Features(jax.nn.relu(x.astype(jnp.float32)))


def exp_features(x: jax.Array) -> Features:
  """`exp(x)`, coordinate by coordinate.

  Args:
    x: `[..., H]`.

  Returns:
    Positive features of size H; the largest of every token is kept as its
    logarithm, so that nothing overflows.

  Raises:
    Nothing.

  Example:
    >>> exp_features(jnp.array([1000.0, 1000.0])).values.tolist()
    [1.0, 1.0]

  Source: Zhang et al., 2024, https://arxiv.org/abs/2402.04347 (without its
  learned projection); Shen et al., 2018, https://arxiv.org/abs/1812.01243.
  """
  x = x.astype(jnp.float32)
  top = jax.lax.stop_gradient(jnp.max(x, axis=-1))
  return Features(jnp.exp(x - top[..., None]), top)
