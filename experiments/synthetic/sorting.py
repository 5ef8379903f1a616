"""Algorithmic sorting: symbols, a separator, and the same symbols in order."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.common import methods
from experiments.synthetic import sequences
from experiments.synthetic import task as task_lib


@dataclasses.dataclass(frozen=True)
class Sorting:
  """Rows of `count` random symbols, a separator, and the symbols sorted.

  A causal model predicts the next token; loss and metric count the second half
  alone.

  Attributes:
    symbols: how many there are to draw from.
    count: symbols to sort; a row has `2 count` tokens.
    layers: of the model.
    width: of the model.
    heads: of the model.
    positions: of the model, as of `DecoderConfig`.

  Raises:
    UserError: if the numbers do not fit together.

  Example:
    >>> row = Sorting(symbols=9, count=3).draw(np.random.default_rng(0), 1)
    >>> row["inputs"].tolist(), row["targets"].tolist()
    ([[7, 5, 4, 9, 4, 5]], [[5, 4, 9, 4, 5, 7]])

  Source: Tay et al., 2020, https://arxiv.org/abs/2002.11296, section 4.1.
  """

  symbols: int = 32
  count: int = 32
  layers: int = 2
  width: int = 128
  heads: int = 4
  positions: str = "learned"
  metric = "accuracy"
  lower_is_better = False

  def __post_init__(self) -> None:
    sequences.at_least(self, symbols=2, count=1)

  @property
  def length(self) -> int:
    """Tokens in a row."""
    return 2 * self.count

  def draw(self, rng: np.random.Generator, rows: int) -> task_lib.Batch:
    """Draws `inputs`, `targets` and `sorted`, all `[rows, length]`."""
    given = rng.integers(0, self.symbols, (rows, self.count))
    border = np.full((rows, 1), self.symbols)
    tokens = np.concatenate(
      [given, border, np.sort(given, axis=1)], axis=1, dtype=np.int32
    )
    counted = np.arange(self.length) >= self.count
    return {
      "inputs": tokens[:, :-1],
      "targets": tokens[:, 1:],
      "sorted": np.tile(counted.astype(np.float32), (rows, 1)),
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
    """Nats a sorted symbol, and the share of those that are right."""
    return sequences.measure(outputs, batch["targets"], batch["sorted"])

  def exact(self, outputs: Any, batch: Any) -> jax.Array:
    """Whether every symbol of a row is right, given the right ones before it.

    Args:
      outputs: `[rows, length, symbols + 1]` logits.
      batch: of `draw`.

    Returns:
      `[rows]` bool.
    """
    right = jnp.argmax(outputs, axis=-1) == batch["targets"]
    return jnp.all(right | (batch["sorted"] == 0), axis=1)

  def floors(self) -> dict[str, float]:
    """Expected accuracy of an answer that sorts nothing."""
    return {"any symbol": 1 / self.symbols}
