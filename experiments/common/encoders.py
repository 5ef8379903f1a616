"""Encoders in experiments: their configuration and what they read."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn
from experiments.common import files
from experiments.common import transformers
from jaxattn.models import encoder
from jaxattn.models import etc
from jaxattn.models.layers import etc as etc_layers

# What an encoder has and ETC does not: fields, and the value they must have.
_ETC_ONLY = {
  "method": "dense",
  "method_options": {},
  "num_kv_heads": 0,
  "positions": "none",
  "qk_norm": False,
  "global_projections": False,
}


@dataclasses.dataclass
class EncoderConfig(transformers.TransformerConfig):
  """What every experiment with an encoder has; see `model_config`."""

  positions: str = "learned"  # learned, sinusoidal, rotary, none.
  norm: str = "pre"  # pre, post.
  global_projections: bool = False  # Queries, keys and values of their own.


def model_config(
  config: EncoderConfig,
  *,
  vocab_size: int,
  length: int,
  form: dict[str, Any] | None = None,
) -> encoder.EncoderConfig:
  """The encoder that a configuration describes.

  Args:
    config: of the run.
    vocab_size: number of token ids.
    length: tokens in a row.
    form: fields of the result that go before those of `config`.

  Returns:
    The configuration of `jaxattn.models.encoder.Encoder`.

  Raises:
    UserError: if the options do not fit together.

  Example:
    >>> model_config(EncoderConfig(width=32), vocab_size=9, length=64).head_size
    8

  Source: `jaxattn.models.encoder`.
  """
  options: dict[str, Any] = {
    **transformers.model_options(config, vocab_size=vocab_size, length=length),
    "norm": config.norm,
    "global_projections": config.global_projections,
    **(form or {}),
  }
  try:
    return encoder.EncoderConfig(**options)
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(f"the model cannot be built: {error}") from error


def etc_config(config: Any, *, vocab_size: int) -> etc.EtcModelConfig:
  """The ETC model that a configuration describes.

  Args:
    config: an `EncoderConfig` with `etc_radius`, how far tokens see.
    vocab_size: number of token ids, those of global tokens included.

  Returns:
    The configuration of `jaxattn.models.etc.EtcModel`.

  Raises:
    UserError: if the options do not fit together, or are of encoders only.

  Source: `jaxattn.models.etc`.
  """
  for name, only in _ETC_ONLY.items():
    if getattr(config, name) != only:
      raise files.UserError(
        f"--config.model=etc has its own attention and positions: "
        f"--config.{name} must be {only!r}, got {getattr(config, name)!r}."
      )
  try:
    layers = etc_layers.EtcConfig(
      width=config.width,
      num_layers=config.num_layers,
      num_heads=config.num_heads,
      mlp_width=config.mlp_width or None,
      radius=config.etc_radius,
      norm=config.norm,
      dropout=config.dropout,
      remat=config.remat != "none",
      dtype=jnp.dtype(config.dtype),
    )
    return etc.EtcModelConfig(vocab_size=vocab_size, encoder=layers)
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(f"the model cannot be built: {error}") from error


def padding(valid: jax.Array) -> jaxattn.Mask:
  """The mask of rows `[B, T]` of which `valid` tokens are there."""
  return jaxattn.Mask(key_valid=valid, query_valid=valid)


def padded(
  ids: np.ndarray, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """A row of `length` tokens from at most so many.

  Args:
    ids: `[n]` ints; those beyond `length` are cut off.
    length: T of the row.
    pad_id: of the places left.

  Returns:
    `[T]` int32 tokens, and which of them are there.

  Example:
    >>> padded(np.array([5, 6]), 3, 0)[0].tolist()
    [5, 6, 0]

  Source: padding to a static length, which `jax.jit` needs.
  """
  tokens = np.full(length, pad_id, np.int32)
  kept = ids[:length]
  tokens[: len(kept)] = kept
  return tokens, np.arange(length) < len(kept)
