"""Star Transformers small enough for tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxattn.models.layers import star

WIDTH = 6


def config(**options: Any) -> star.StarConfig:
  """Two layers, whose heads together are wider than the model."""
  options = {
    "width": WIDTH,
    "num_layers": 2,
    "num_heads": 3,
    "head_dim": 5,
    "max_length": 16,
    **options,
  }
  return star.StarConfig(**options)


def loud(variables: Any) -> Any:
  """Parameters of size 1/2, so that biases and norms show."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype),
    nn.unbox(variables),
  )
