"""The copy task: symbols, a separator, and the same symbols again."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.common import files
from experiments.common import methods
from experiments.synthetic import task as task_lib
from jaxattn.models import decoder


@dataclasses.dataclass(frozen=True)
class CopyTask:
  """Rows of `n` random symbols, a separator, and the same `n` symbols.

  n is drawn for every row, from 1 to what fits. A causal model predicts the
  next token; loss and metric count the second half alone, which the first one
  determines.

  Attributes:
    symbols: how many there are to draw from.
    length: tokens in a row; what the row leaves free is padding at its end.
    layers: of the model.
    width: of the model.
    heads: of the model.
    positions: of the model, as of `DecoderConfig`.

  Raises:
    UserError: if the numbers do not fit together.

  Example:
    >>> row = CopyTask(length=8).draw(np.random.default_rng(1), 1)
    >>> row["inputs"].tolist(), row["copied"].tolist()
    ([[5, 7, 10, 5, 7, 10, 10, 10]], [[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])

  Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, section
  4.1.
  """

  symbols: int = 10
  length: int = 128
  layers: int = 4
  width: int = 128
  heads: int = 8
  positions: str = "learned"
  metric = "accuracy"
  lower_is_better = False

  def __post_init__(self) -> None:
    for name, low in (("symbols", 2), ("length", 3)):
      if getattr(self, name) < low:
        raise files.UserError(
          f"--config.task_options.{name} must be at least {low}, got "
          f"{getattr(self, name)}."
        )

  def draw(self, rng: np.random.Generator, rows: int) -> task_lib.Batch:
    """Draws `inputs`, `targets` and `copied`, all `[rows, length]`."""
    most = (self.length - 1) // 2
    count = rng.integers(1, most + 1, (rows, 1))
    text = rng.integers(0, self.symbols, (rows, most))
    place = np.arange(self.length + 1)[None]
    source = np.where(place > count, place - count - 1, place)
    tokens = np.take_along_axis(text, np.minimum(source, most - 1), axis=1)
    real = (place != count) & (place <= 2 * count)
    tokens = np.where(real, tokens, self.symbols).astype(np.int32)
    copied = (place >= count) & (place < 2 * count)
    return {
      "inputs": tokens[:, :-1],
      "targets": tokens[:, 1:],
      "copied": copied[:, :-1].astype(np.float32),
    }

  def make_model(
    self, method: str, options: dict[str, Any], *, dtype: Any
  ) -> nn.Module:
    """A decoder with the method of that name."""
    sizes = methods.Sizes(self.length, self.layers, self.heads)
    try:
      return Copier(
        decoder.DecoderConfig(
          vocab_size=self.symbols + 1,
          width=self.width,
          num_layers=self.layers,
          num_heads=self.heads,
          methods=methods.make(method, sizes, options),
          positions=self.positions,  # pyrefly: ignore
          max_length=self.length,
          dtype=dtype,
        )
      )
    except (ValueError, NotImplementedError) as error:
      raise files.UserError(f"the model cannot be built: {error}") from error

  def measure(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Nats a copied symbol, and the share of those that are right."""
    targets, copied = batch["targets"], batch["copied"]
    logits = jax.nn.log_softmax(outputs)
    nats = -jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    right = jnp.argmax(logits, axis=-1) == targets
    counts = copied > 0
    total = jnp.sum(copied, axis=1)
    return (
      jnp.sum(jnp.where(counts, nats, 0.0), axis=1) / total,
      jnp.sum(counts & right, axis=1) / total,
    )

  def floors(self) -> dict[str, float]:
    """Expected accuracy of an answer that copies nothing."""
    return {"any symbol": 1 / self.symbols}


class Copier(nn.Module):
  """A decoder over the tokens of a batch."""

  cfg: decoder.DecoderConfig

  @nn.compact
  def __call__(self, batch: Any, *, train: bool = False) -> jax.Array:
    """`[rows, length, symbols + 1]` logits of the next token."""
    return decoder.Decoder(self.cfg, name="decoder")(
      batch["inputs"], train=train
    )
