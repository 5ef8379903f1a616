"""The model that classifies, its loss and its scores."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.common import data as rows_lib
from experiments.common import encoders
from experiments.common import transformers
from jaxattn.models import encoder
from jaxattn.models import heads


class Classifier(nn.Module):
  """An encoder and a head over its rows.

  Attributes:
    cfg: of the encoder.
    num_classes: of the result.
    pooling: `first` or `mean`, as of `jaxattn.models.heads.pool`.

  Example:
    >>> cfg = encoder.EncoderConfig(
    ...     vocab_size=9, width=16, num_heads=2, num_layers=1)
    >>> tokens = jnp.zeros((1, 8), jnp.int32)
    >>> model = Classifier(cfg, num_classes=3)
    >>> model.init_with_output(jax.random.key(0), tokens)[0].shape
    (1, 3)

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805.
  """

  cfg: encoder.EncoderConfig
  num_classes: int
  pooling: heads.Pooling = "first"

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    valid: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Logits `[B, num_classes]` of `tokens [B, T]`; `valid` are the real."""
    if valid is None:
      valid = jnp.ones(tokens.shape, bool)
    mask = encoders.padding(valid)
    x = encoder.Encoder(self.cfg, name="encoder")(
      tokens, mask=mask, train=train
    )
    head = heads.ClassificationHead(
      num_classes=self.num_classes,
      pooling=self.pooling,
      dropout=self.cfg.dropout,
      dtype=self.cfg.dtype,
      name="head",
    )
    return head(x, mask=mask, train=train)


def loss(
  model: Classifier, params: Any, carried: Any, batch: Any, rng: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
  """Sum of the loss over rows, their number, and the model's collections.

  Args:
    model: that classifies.
    params: its parameters.
    carried: its other collections.
    batch: of `data.Rows`.
    rng: for dropout and for methods that draw.

  Returns:
    Nats, rows, collections.

  Source: cross-entropy.
  """
  logits, carried = model.apply(
    {"params": params, **carried},
    batch["tokens"],
    batch["valid"],
    train=True,
    rngs=transformers.draws(rng),
    mutable=list(carried),
  )
  nats = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits, batch["label"]
  )
  return jnp.sum(nats), jnp.float32(len(nats)), dict(carried)


class Evaluator:
  """Loss and accuracy of a model on held-out documents.

  Args:
    model: that classifies.
    mesh: over which rows are split.
  """

  def __init__(self, model: Classifier, mesh: jax.sharding.Mesh):
    def sums(params: Any, carried: Any, batch: Any) -> Any:
      logits: Any = model.apply(
        {"params": params, **carried}, batch["tokens"], batch["valid"]
      )
      nats = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, batch["label"]
      )
      right = jnp.argmax(logits, axis=-1) == batch["label"]
      counts = batch["counts"]
      return {
        "nats": jnp.sum(nats * counts),
        "right": jnp.sum(right * counts),
        "count": jnp.sum(counts),
      }

    self._totals = transformers.Totals(sums, mesh)

  def __call__(
    self, params: Any, carried: Any, batches: Iterable[rows_lib.Batch]
  ) -> dict[str, float]:
    """Nats a document, accuracy, and how many are right of how many."""
    total = self._totals(params, carried, batches)
    count = float(total["count"])
    return {
      "nats": float(total["nats"]) / count,
      "accuracy": float(total["right"]) / count,
      "right": float(total["right"]),
      "count": count,
    }
