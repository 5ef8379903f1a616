"""The duplication task: 0 w 0 w, a random word and the same word again."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from experiments.common import methods
from experiments.synthetic import sequences
from experiments.synthetic import task as task_lib


@dataclasses.dataclass(frozen=True)
class Duplication:
  """Rows of the form 0 w 0 w, for a random word w of symbols above 0.

  A causal model predicts the next token; loss and metric count the second word
  alone. Every token of it stands `word + 1` places back, so that a method that
  misses a part of the earlier tokens misses a part of the answers.

  Attributes:
    word: symbols of the word; a row has `2 word + 2` tokens.
    symbols: how many there are to draw from, besides 0.
    layers: of the model.
    width: of the model.
    mlp_width: of the model.
    heads: of the model.
    residuals: of the model, as of `DecoderConfig`.

  Raises:
    UserError: if the numbers do not fit together.

  Example:
    >>> row = Duplication(word=2).draw(np.random.default_rng(0), 1)
    >>> row["inputs"].tolist(), row["targets"].tolist()
    ([[0, 27, 20, 0, 27, 20]], [[27, 20, 0, 27, 20, 0]])

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 5.
  """

  word: int = 31
  symbols: int = 31
  layers: int = 1
  width: int = 128
  mlp_width: int = 256
  heads: int = 4
  residuals: str = "reversible"
  metric = "accuracy"
  lower_is_better = False

  def __post_init__(self) -> None:
    sequences.at_least(self, word=1, symbols=2)

  @property
  def length(self) -> int:
    """Tokens in a row."""
    return 2 * self.word + 2

  def draw(self, rng: np.random.Generator, rows: int) -> task_lib.Batch:
    """Draws `inputs`, `targets` and `copied`, all `[rows, length]`."""
    word = rng.integers(1, self.symbols + 1, (rows, self.word))
    start = np.zeros((rows, 1), int)
    tokens = np.concatenate([start, word, start, word], axis=1, dtype=np.int32)
    place = np.arange(self.length)
    copied = (place > self.word) & (place < self.length - 1)
    return {
      "inputs": tokens,
      "targets": np.roll(tokens, -1, axis=1),
      "copied": np.tile(copied.astype(np.float32), (rows, 1)),
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
      mlp_width=self.mlp_width,
      positions="learned",
      residuals=self.residuals,
      tie_embeddings=False,
      dtype=dtype,
    )

  def measure(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Nats a symbol of the second word, and the share of those right."""
    return sequences.measure(outputs, batch["targets"], batch["copied"])

  def floors(self) -> dict[str, float]:
    """Expected accuracy of an answer that copies nothing."""
    return {"any symbol": 1 / self.symbols}
