"""What tasks on one sequence have in common: a decoder, and what counts."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.common import files
from experiments.common import methods
from jaxattn.models import decoder


class NextToken(nn.Module):
  """A decoder over the `inputs` of a batch."""

  cfg: decoder.DecoderConfig

  @nn.compact
  def __call__(self, batch: Any, *, train: bool = False) -> jax.Array:
    """`[rows, length, vocab_size]` logits of the next token."""
    return decoder.Decoder(self.cfg, name="decoder")(
      batch["inputs"], train=train
    )


def make_model(
  sizes: methods.Sizes,
  method: str,
  options: dict[str, Any],
  **config: Any,
) -> NextToken:
  """A decoder with the method of that name.

  Args:
    sizes: of the model.
    method: of `experiments.common.methods`.
    options: of the method.
    **config: further fields of `DecoderConfig`.

  Returns:
    The module.

  Raises:
    UserError: if the options do not fit together.
  """
  try:
    return NextToken(
      decoder.DecoderConfig(
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        methods=methods.make(method, sizes, options),
        max_length=sizes.length,
        **config,
      )
    )
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(f"the model cannot be built: {error}") from error


def measure(
  logits: jax.Array, targets: jax.Array, counted: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Nats a counted token, and the share of those that are right.

  Args:
    logits: `[rows, length, vocab_size]`.
    targets: `[rows, length]` ints.
    counted: `[rows, length]` floats, 1 where a prediction counts; every row has
      some.

  Returns:
    `[rows]` each.
  """
  nats = -jnp.take_along_axis(
    jax.nn.log_softmax(logits), targets[..., None], axis=-1
  )[..., 0]
  right = jnp.argmax(logits, axis=-1) == targets
  counts, total = counted > 0, jnp.sum(counted, axis=1)
  return (
    jnp.sum(jnp.where(counts, nats, 0.0), axis=1) / total,
    jnp.sum(counts & right, axis=1) / total,
  )


def at_least(task: Any, **limits: int) -> None:
  """Raises UserError for options of a task below their limits."""
  for name, low in limits.items():
    if getattr(task, name) < low:
      raise files.UserError(
        f"--config.task_options.{name} must be at least {low}, got "
        f"{getattr(task, name)}."
      )
