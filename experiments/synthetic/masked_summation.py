"""Masked summation: add up the few vectors of a long row that are flagged."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxattn
from experiments.common import files
from experiments.common import methods
from experiments.synthetic import task as task_lib
from jaxattn.models import encoder
from jaxattn.models import star as models
from jaxattn.models.layers import star
from jaxattn.nn import linen as layers

# Name -> what it changes of the encoder.
_STAR: dict[str, dict[str, Any]] = {
  "star": {},
  "star_ring_only": {"radical": False},
  "star_radical_only": {"ring": "none"},
}
_WIDTH, _LAYERS, _HEADS = 64, 2, 4


@dataclasses.dataclass(frozen=True)
class MaskedSummation:
  """Rows of `n` vectors: a flag and `width - 1` numbers, uniform in [0, 1].

  Exactly `k` vectors carry the flag 1. The target is the sum of their numbers;
  the error is the squared one, averaged over the coordinates.

  Attributes:
    n: vectors in a row.
    k: flagged vectors.
    width: of a vector, its flag included.

  Raises:
    UserError: if the numbers do not fit together.

  Example:
    >>> task = MaskedSummation(n=3, k=3, width=2)
    >>> row = task.draw(np.random.default_rng(0), 1)
    >>> bool(np.isclose(row["inputs"][0, :, 1].sum(), row["targets"][0, 0]))
    True

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113.
  """

  n: int = 200
  k: int = 10
  width: int = 10
  metric = "mse"
  lower_is_better = True

  def __post_init__(self) -> None:
    if not 1 <= self.k <= self.n:
      raise files.UserError(
        f"--config.task_options.k must lie in [1, n = {self.n}], got {self.k}."
      )
    if self.width < 2:
      raise files.UserError(
        "--config.task_options.width must be at least 2, a flag and a number; "
        f"got {self.width}."
      )

  @property
  def length(self) -> int:
    """Vectors in a row."""
    return self.n

  def draw(self, rng: np.random.Generator, rows: int) -> task_lib.Batch:
    """Draws `inputs [rows, n, width]` and `targets [rows, width - 1]`."""
    values = rng.random((rows, self.n, self.width - 1), np.float32)
    ranks = rng.random((rows, self.n)).argsort(axis=1).argsort(axis=1)
    flags = (ranks < self.k).astype(np.float32)[..., None]
    targets = (values * flags).sum(axis=1)
    return {
      "inputs": np.concatenate([flags, values], axis=-1),
      "targets": targets,
    }

  def make_model(
    self, method: str, options: dict[str, Any], *, dtype: Any
  ) -> nn.Module:
    """A Star Transformer, or an encoder with the method of that name."""
    if method in _STAR:
      shape = _star_config(method, options, self.n, dtype)
      return StarSummer(
        models.StarModelConfig(
          num_classes=self.width - 1,
          embed_size=self.width,
          mlp_width=shape.width,
          dropout=0.0,
          encoder=shape,
        )
      )
    if method not in methods.METHODS:
      raise files.UserError(
        f"unknown method {method!r} of masked_summation; known: "
        f"{', '.join([*_STAR, *sorted(methods.METHODS)])}."
      )
    sizes = methods.Sizes(length=self.n, num_layers=_LAYERS, num_heads=_HEADS)
    return EncoderSummer(
      encoder.EncoderConfig(
        vocab_size=1,  # Of tokens, which there are none of.
        width=_WIDTH,
        num_layers=_LAYERS,
        num_heads=_HEADS,
        methods=methods.make(method, sizes, options),
        norm="pre",
        positions="none",
        dropout=0.0,
        dtype=dtype,
      ),
      self.width - 1,
    )

  def measure(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The squared error, as loss and as metric."""
    error = jnp.mean((outputs - batch["targets"]) ** 2, axis=-1)
    return error, error

  def floors(self) -> dict[str, float]:
    """Expected errors of two answers that need no flags.

    A number uniform in [0, 1] has variance 1/12. The sum of all vectors tells
    the share `k / n` of the target's variance.
    """
    variance = self.k / 12
    return {
      "always the mean": variance,
      "least squares on the sum of all": variance * (1 - self.k / self.n),
    }


class StarSummer(nn.Module):
  """A Star Transformer from the vectors of a batch to their sum."""

  cfg: models.StarModelConfig

  def setup(self) -> None:
    """Makes the model."""
    self.model = models.StarClassifier(self.cfg)

  def __call__(self, batch: Any, *, train: bool = False) -> jax.Array:
    """`[rows, width - 1]`."""
    return self.model(batch["inputs"], train=train)


class EncoderSummer(nn.Module):
  """An encoder from the vectors of a batch to their sum.

  Tokens are pooled by their maximum, as without a relay: a mean would add up by
  itself, whatever the attention does.
  """

  cfg: encoder.EncoderConfig
  num_outputs: int

  @nn.compact
  def __call__(self, batch: Any, *, train: bool = False) -> jax.Array:
    """`[rows, width - 1]`."""
    cfg = self.cfg
    x = _linear("input", cfg.width, cfg.dtype)(batch["inputs"])
    for method in cfg.layer_methods():
      block = encoder.EncoderBlock(cfg=cfg, method=method)
      x = block(x, jaxattn.FULL, None, train, False)
    x = models.pool(nn.LayerNorm(dtype=cfg.dtype)(x), None)
    x = nn.leaky_relu(_linear("hidden", cfg.width, cfg.dtype)(x))
    return _linear("out", self.num_outputs, jnp.float32)(x)


def _linear(name: str, size: int, dtype: Any) -> layers.Projection:
  return layers.Projection(
    features=(size,),
    names=(None, "embed" if name == "input" else None),
    use_bias=True,
    dtype=dtype,
    name=name,
  )


def _star_config(
  method: str, options: dict[str, Any], length: int, dtype: Any
) -> star.StarConfig:
  known = {f.name for f in dataclasses.fields(star.StarConfig)} - {"dtype"}
  strange = sorted(options.keys() - known)
  if strange:
    raise files.UserError(
      f"method {method!r} has no option {strange[0]!r}; it has: "
      f"{', '.join(sorted(known))}."
    )
  fields: dict[str, Any] = {
    "width": _WIDTH,
    "num_layers": _LAYERS,
    "num_heads": _HEADS,
    "head_dim": _WIDTH // _HEADS,
    "positions": "none",
    "dropout": 0.0,
    "max_length": length,
    "dtype": dtype,
    **_STAR[method],
    **options,
  }
  try:
    return star.StarConfig(**fields)
  except ValueError as error:
    raise files.UserError(f"method {method!r}: {error}") from error
