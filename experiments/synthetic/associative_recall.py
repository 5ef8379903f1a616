"""Associative recall: the value stored with a key, however long ago."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxattn
from experiments.common import files
from experiments.common import methods
from experiments.synthetic import sequences
from experiments.synthetic import task as task_lib
from jaxattn.models import blocks
from jaxattn.models import decoder


@dataclasses.dataclass(frozen=True)
class AssociativeRecall:
  """Rows that store values with keys, and ask for them again.

  A token is a key with a value, or a key alone that asks for the value it was
  stored with; both kinds are as likely. Every stored key is a new one. How many
  tokens ago a key was stored is drawn on a logarithmic scale: a third of the
  questions reach back 1 to 8 tokens, a third 8 to 64, a third further (for rows
  of 512). What is not seen cannot be answered but by chance.

  Attributes:
    length: tokens in a row; there are as many keys.
    values: how many there are to draw from.
    layers: of the model.
    width: of the model.
    heads: of the model.

  Raises:
    UserError: if the numbers do not fit together.

  Example:
    >>> task = AssociativeRecall(length=6, values=4)
    >>> row = task.draw(np.random.default_rng(3), 1)
    >>> row["keys"].tolist(), row["given"].tolist()
    ([[2, 2, 2, 2, 5, 0]], [[2, 4, 4, 4, 1, 1]])
    >>> row["answers"].tolist(), row["asked"].tolist()
    ([[2, 2, 2, 2, 1, 1]], [[0.0, 1.0, 1.0, 1.0, 0.0, 0.0]])

  Source: Ba et al., 2016, https://arxiv.org/abs/1610.06258, section 4.1; Arora
  et al., 2023, https://arxiv.org/abs/2312.04927.
  """

  length: int = 512
  values: int = 16
  layers: int = 2
  width: int = 64
  heads: int = 4
  metric = "accuracy"
  lower_is_better = False

  def __post_init__(self) -> None:
    sequences.at_least(self, length=2, values=2)

  def draw(self, rng: np.random.Generator, rows: int) -> task_lib.Batch:
    """Draws `keys`, `given`, `answers` and `asked`, all `[rows, length]`.

    `given` is the stored value, or `values` where one is asked for.
    """
    shape, place = (rows, self.length), np.arange(self.length)[None]
    stores = rng.random(shape) < 0.5
    stores[:, 0], stores[:, 1] = True, False  # Every row asks something.
    back = np.exp(rng.random(shape) * np.log(np.maximum(place, 1)))
    source = np.maximum(place - back.astype(int), 0)
    # The last token that stored something, from there back.
    last = np.maximum.accumulate(np.where(stores, place, 0), axis=1)
    source = np.where(stores, place, np.take_along_axis(last, source, axis=1))
    new = rng.permuted(np.tile(place, (rows, 1)), axis=1)
    value = rng.integers(0, self.values, shape)
    keys, answers = (
      np.take_along_axis(x, source, axis=1).astype(np.int32)
      for x in (new, value)
    )
    return {
      "keys": keys,
      "given": np.where(stores, answers, self.values).astype(np.int32),
      "answers": answers,
      "asked": (~stores).astype(np.float32),
    }

  def make_model(
    self, method: str, options: dict[str, Any], *, dtype: Any
  ) -> nn.Module:
    """Blocks of a decoder with the method of that name."""
    sizes = methods.Sizes(self.length, self.layers, self.heads)
    try:
      cfg = decoder.DecoderConfig(
        vocab_size=self.length + self.values + 1,
        width=self.width,
        num_layers=self.layers,
        num_heads=self.heads,
        methods=methods.make(method, sizes, options),
        max_length=self.length,
        positions="none",
        dtype=dtype,
      )
    except (ValueError, NotImplementedError) as error:
      raise files.UserError(f"the model cannot be built: {error}") from error
    return Recaller(cfg, self.length, self.values)

  def measure(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Nats a value asked for, and the share of those that are right."""
    return sequences.measure(outputs, batch["answers"], batch["asked"])

  def floors(self) -> dict[str, float]:
    """Expected accuracy of an answer that recalls nothing."""
    return {"any value": 1 / self.values}


class Recaller(nn.Module):
  """Blocks over the sum of a key's and a value's vector."""

  cfg: decoder.DecoderConfig
  keys: int
  values: int

  @nn.compact
  def __call__(self, batch: Any, *, train: bool = False) -> jax.Array:
    """`[rows, length, values]` logits of the value of every token's key."""
    cfg, init = self.cfg, nn.initializers.normal(1.0)
    x = nn.Embed(self.keys, cfg.width, embedding_init=init, name="key")(
      batch["keys"]
    )
    x = x + nn.Embed(
      self.values + 1, cfg.width, embedding_init=init, name="value"
    )(batch["given"])
    x = x.astype(cfg.dtype)
    for i, method in enumerate(cfg.layer_methods()):
      block = blocks.Block(cfg=cfg, method=method, name=f"block_{i}")
      x = block(x, jaxattn.CAUSAL, None, train, False)
    x = blocks.make_norm(cfg)(x)
    return nn.Dense(self.values, name="out")(x.astype(jnp.float32))
