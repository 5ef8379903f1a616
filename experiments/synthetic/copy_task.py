"""The copy task: symbols, a separator, and the same symbols again."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from experiments.common import methods
from experiments.synthetic import sequences
from experiments.synthetic import task as task_lib


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
    sequences.at_least(self, symbols=2, length=3)

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
    return sequences.make_model(
      methods.Sizes(self.length, self.layers, self.heads),
      method,
      options,
      vocab_size=self.symbols + 1,
      width=self.width,
      positions=self.positions,
      dtype=dtype,
    )

  def measure(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Nats a copied symbol, and the share of those that are right."""
    return sequences.measure(outputs, batch["targets"], batch["copied"])

  def floors(self) -> dict[str, float]:
    """Expected accuracy of an answer that copies nothing."""
    return {"any symbol": 1 / self.symbols}
