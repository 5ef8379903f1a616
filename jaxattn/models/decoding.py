"""Decoding with a cache, as functions: cache in, logits and cache out."""

from typing import Any

import jax

from jaxattn.models import decoder


def init_cache(
  model: decoder.Decoder,
  variables: Any,
  *,
  batch_size: int,
  max_length: int | None = None,
) -> Any:
  """Makes an empty decoding cache.

  Its memory is that of each layer's method: `max_length` tokens for dense
  attention, the window for a sliding window.

  Args:
    model: the decoder.
    variables: of `model.init`.
    batch_size: B, rows.
    max_length: tokens that a row may reach, prompt included; None means that
      of the configuration. The caller keeps count: a longer row overwrites its
      oldest tokens.

  Returns:
    A pytree whose arrays lead with B; `jaxattn.take` selects rows.

  Raises:
    ValueError: if `max_length` exceeds the learned positions.

  Example:
    >>> from jaxattn.models import decoder
    >>> from jaxattn.models import decoding
    >>> cfg = decoder.DecoderConfig(
    ...     vocab_size=11, width=16, num_layers=1, num_heads=2,
    ...     methods=(jaxattn.sliding_window(left=3),))
    >>> model = decoder.Decoder(cfg)
    >>> variables = model.init(jax.random.key(0), jnp.array([[1]]))
    >>> cache = decoding.init_cache(model, variables, batch_size=2)
    >>> cache["blocks_0"]["attention"]["cache"]["key"].shape
    (2, 4, 2, 8)

  Source: the caches of `jaxattn.AttentionMethod`.
  """
  cfg = model.cfg
  too_long = max_length is not None and max_length > cfg.max_length
  if cfg.positions == "learned" and too_long:
    raise ValueError(
      f"max_length {max_length} exceeds max_length {cfg.max_length} of the "
      "learned positions."
    )
  _, new = model.apply(
    variables, batch_size, max_length, method="init_cache", mutable=["cache"]
  )
  return new["cache"]


def decode_step(
  model: decoder.Decoder,
  variables: Any,
  cache: Any,
  tokens: jax.Array,
  key_valid: jax.Array | None = None,
  *,
  last_only: bool = False,
) -> tuple[jax.Array, Any]:
  """Appends any number of tokens to every row and predicts what follows.

  The first call takes the prompts, later ones the tokens chosen. Equal to the
  parallel forward over all tokens so far.

  Args:
    model: the decoder.
    variables: of `model.init`.
    cache: of `init_cache` or the last call; not modified.
    tokens: `[B, n]` ints, the new tokens.
    key_valid: `[B, n]` bool, False at padding, which must stand at the right;
      None when there is none. Padding leaves no trace in the cache.
    last_only: whether to return only the logits after each row's last new
      token, which saves the memory of the others. A row without a new token
      gives no meaningful logits.

  Returns:
    Logits `[B, n, vocab_size]`, or `[B, vocab_size]` with `last_only`, in
    float32, and the new cache.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> from jaxattn.models import decoder
    >>> from jaxattn.models import decoding
    >>> cfg = decoder.DecoderConfig(
    ...     vocab_size=11, width=16, num_layers=1, num_heads=2)
    >>> model = decoder.Decoder(cfg)
    >>> variables = model.init(jax.random.key(0), jnp.array([[1]]))
    >>> cache = decoding.init_cache(model, variables, batch_size=1)
    >>> logits, cache = decoding.decode_step(
    ...     model, variables, cache, jnp.array([[5, 6, 7]]), last_only=True)
    >>> logits.shape, cache["length"].tolist()
    ((1, 11), [3])

  Source: incremental decoding, Shazeer, 2019,
  https://arxiv.org/abs/1911.02150.
  """
  logits, new = model.apply(
    {**variables, "cache": cache},
    tokens,
    key_valid,
    last_only=last_only,
    method="extend",
    mutable=["cache"],
  )
  return logits, new["cache"]
