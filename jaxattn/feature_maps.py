"""Feature maps for linear attention: functions of the last axis."""

from jaxattn._src.feature_maps import elu_features as elu_features
from jaxattn._src.feature_maps import exp_features as exp_features
from jaxattn._src.feature_maps import Features as Features
from jaxattn._src.feature_maps import identity_features as identity_features
from jaxattn._src.feature_maps import relu_features as relu_features

__all__ = [
  "Features",
  "elu_features",
  "exp_features",
  "identity_features",
  "relu_features",
]
