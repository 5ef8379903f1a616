"""Decoders in experiments: their configuration, loss and evaluation."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxattn
from experiments.common import data as rows_lib
from experiments.common import files
from experiments.common import loop
from experiments.common import transformers
from jaxattn.models import decoder


@dataclasses.dataclass
class ModelConfig(transformers.TransformerConfig):
  """What every experiment with a decoder has; see `make_model`."""

  tie_embeddings: bool = True
  residuals: str = "plain"  # plain, reversible.
  mlp_chunk: int = 0  # Tokens the feed-forward layers take at a time; 0: all.
  loss_chunk: int = 0  # Tokens whose logits exist at a time; 0: all.


def make_model(
  config: ModelConfig,
  *,
  vocab_size: int,
  length: int,
  form: dict[str, Any] | None = None,
) -> decoder.Decoder:
  """Makes the decoder that a configuration describes.

  Args:
    config: of the run.
    vocab_size: number of token ids.
    length: tokens in a row.
    form: fields of `DecoderConfig` that go before those of `config`.

  Returns:
    The model.

  Raises:
    UserError: if the options do not fit together.

  Example:
    >>> make_model(ModelConfig(width=32), vocab_size=9, length=64).cfg.head_size
    8

  Source: `jaxattn.models.decoder`.
  """
  if config.loss_chunk < 0:
    raise files.UserError(
      f"--config.loss_chunk must not be negative, got {config.loss_chunk}."
    )
  options: dict[str, Any] = {
    **transformers.model_options(config, vocab_size=vocab_size, length=length),
    "tie_embeddings": config.tie_embeddings,
    "residuals": config.residuals,
    "mlp_chunk": config.mlp_chunk or None,
    **(form or {}),
  }
  try:
    return decoder.Decoder(decoder.DecoderConfig(**options))
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(f"the model cannot be built: {error}") from error


def loss_sums(
  model: decoder.Decoder,
  params: Any,
  carried: Any,
  batch: Any,
  rng: jax.Array | None,
  *,
  train: bool,
  chunk: int = 0,
) -> tuple[jax.Array, jax.Array, Any]:
  """Sums the loss of a batch over what counts.

  Args:
    model: the decoder.
    params: its parameters.
    carried: its other collections, `{}` if it has none.
    batch: of `experiments.common.data`; `weights` is 0 at padding and where the
      next token belongs to another document.
    rng: for dropout and methods that draw; None without.
    train: whether these, and the carried state, are active.
    chunk: tokens of a row whose logits exist at a time; 0: all.

  Returns:
    The sum in nats, the sum of the weights, and the collections.
  """
  mask, positions = jaxattn.CAUSAL, None
  if "segment_ids" in batch:
    mask = jaxattn.packed(batch["segment_ids"], causal=True, pad_id=0)
    if model.cfg.positions in ("rotary", "learned", "axes"):
      positions = batch["positions"]
  apply = functools.partial(
    model.apply,
    {"params": params, **carried},
    batch["inputs"],
    mask=mask,
    positions=positions,
    train=train,
    rngs=transformers.draws(rng),
    mutable=list(carried),
  )
  if chunk:
    nats, carried = apply(
      targets=batch["targets"], chunk=chunk, method="token_losses"
    )
  else:
    logits, carried = apply()
    nats = optax.losses.softmax_cross_entropy_with_integer_labels(
      logits, batch["targets"]
    )
  # Where, not a product: what a masked row holds must not matter.
  weights = batch["weights"]
  nats = jnp.where(weights > 0, nats * weights, 0.0)
  return jnp.sum(nats), jnp.sum(weights), dict(carried)


class Evaluator:
  """The mean loss of a model over held-out rows.

  Args:
    model: the decoder.
    mesh: over which rows are split.
    chunk: as of `loss_sums`.
  """

  def __init__(
    self, model: decoder.Decoder, mesh: jax.sharding.Mesh, chunk: int = 0
  ):
    def sums(params: Any, carried: Any, batch: Any) -> Any:
      return loss_sums(
        model, params, carried, batch, None, train=False, chunk=chunk
      )[:2]

    self._totals = transformers.Totals(sums, mesh)

  def __call__(
    self, params: Any, carried: Any, batches: Iterable[rows_lib.Batch]
  ) -> float:
    """Nats per unit of weight over `batches`, which all processes make."""
    nats, weight = self._totals(params, carried, batches)
    return float(nats / weight)


def make_task(
  config: ModelConfig,
  model: decoder.Decoder,
  rows: Any,
  length: int,
  evaluate: Any,
  **units: Any,
) -> loop.Task:
  """What the loop needs to train `model`.

  Args:
    config: of the run.
    model: to train.
    rows: what they are, by random access, as `PackedRows`.
    length: tokens in a row.
    evaluate: as of `loop.Task`.
    **units: `loss_unit` and `loss_scale` as of `loop.Task`.

  Returns:
    The task.
  """

  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    return loss_sums(
      model,
      params,
      carried,
      batch,
      rng,
      train=True,
      chunk=config.loss_chunk,
    )

  example = jnp.zeros((1, min(length, 8)), jnp.int32)
  return transformers.make_task(
    config,
    init=lambda rng: model.init(rng, example),
    loss=loss,
    rows=rows,
    length=length,
    evaluate=evaluate,
    **units,
  )
