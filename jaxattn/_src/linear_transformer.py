"""The Linear Transformer's attention as a method."""

import dataclasses

from jaxattn._src import base
from jaxattn._src import feature_maps
from jaxattn._src import linear_method

_MAPS: dict[str, feature_maps.FeatureMap] = {
  "elu": feature_maps.elu_features,
  "exp": feature_maps.exp_features,
  "identity": feature_maps.identity_features,
  "relu": feature_maps.relu_features,
}


@dataclasses.dataclass(frozen=True)
class LinearTransformer(linear_method.LinearMethod):
  """Linear attention with a fixed feature map, and decoding as an RNN.

  Attributes:
    feature_map: `elu` for `elu(x) + 1`, `exp`, `relu`, `identity`, or a
      function from `[..., H]` to features `[..., F]`; see
      `jaxattn.feature_maps`. Functions are compared by identity.
    implementation: as of `linear_attention`.

  Example:
    >>> method = linear_transformer()
    >>> x = jnp.ones((1, 6, 2, 8))
    >>> method.apply((), (), x, x, x, mask=jaxattn.CAUSAL)[0].shape
    (1, 6, 2, 8)

  Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236.
  """

  feature_map: str | feature_maps.FeatureMap = "elu"

  def __post_init__(self) -> None:
    name = self.feature_map
    if name not in _MAPS if isinstance(name, str) else not callable(name):
      raise ValueError(
        f"feature_map must be one of {', '.join(_MAPS)}, or a function of "
        f"[..., H]; got {name!r}."
      )

  def features(
    self, params: base.Params, state: base.State
  ) -> feature_maps.FeatureMap:
    """The feature map."""
    del params, state
    if isinstance(self.feature_map, str):
      return _MAPS[self.feature_map]
    return self.feature_map


def linear_transformer(
  *,
  feature_map: str | feature_maps.FeatureMap = "elu",
  implementation: base.Implementation = None,
) -> LinearTransformer:
  """Returns the Linear Transformer's method: linear attention, `elu(x) + 1`.

  Args:
    feature_map: `elu`, `exp`, `relu`, `identity`, or a function from `[..., H]`
      to features `[..., F]`; see `jaxattn.feature_maps`.
    implementation: as of `linear_attention`.

  Returns:
    A `LinearTransformer` method.

  Raises:
    ValueError: if the feature map is not one.

  Example:
    >>> linear_transformer().feature_map
    'elu'

  Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236. Differs:
  no 1e-6 is added to the normaliser, so that rows are exactly convex sums;
  where it vanishes the row is zero.
  """
  return LinearTransformer(
    feature_map=feature_map, implementation=implementation
  )
