"""Decoding with an encoder-decoder: its cache, steps, and greedy writing."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import masks
from jaxattn.models import blocks
from jaxattn.models import decoding
from jaxattn.models import encoder_decoder


def init_cache(
  model: encoder_decoder.EncoderDecoder,
  variables: Any,
  context: jax.Array,
  *,
  context_valid: jax.Array | None = None,
  max_length: int | None = None,
) -> Any:
  """Makes a decoding cache for encoded sources.

  Keys and values of cross-attention are computed here, once, and lie in the
  cache beside those of self-attention.

  Args:
    model: the model.
    variables: of `model.init`.
    context: `[B, S, D]`, what `model.encode` gave.
    context_valid: `[B, S]` bool, False at padding of the source; None when
      there is none.
    max_length: target tokens that a row may reach; None means that of the
      decoder's configuration. The caller keeps count.

  Returns:
    A pytree whose arrays lead with B; `jaxattn.take` selects rows.

  Raises:
    ValueError: if `max_length` exceeds the learned positions.

  Example:
    >>> from jaxattn.models import encoder_decoder
    >>> from jaxattn.models import seq2seq
    >>> model = encoder_decoder.EncoderDecoder(encoder_decoder.led(
    ...     vocab_size=11, width=16, num_layers=1, num_heads=2, window=4))
    >>> source = jnp.array([[1, 2, 3, 4, 5]])
    >>> variables = model.init(jax.random.key(0), source, source)
    >>> context = model.apply(variables, source, method="encode")
    >>> cache = seq2seq.init_cache(
    ...     model, variables, context, max_length=8)
    >>> cache["decoder"]["blocks_0"]["cross"]["key"].shape
    (1, 5, 2, 8)

  Source: the caches of `jaxattn.models.decoding`.
  """
  cfg = model.cfg.decoder
  too_long = max_length is not None and max_length > cfg.max_length
  if cfg.positions == "learned" and too_long:
    raise ValueError(
      f"max_length {max_length} exceeds max_length {cfg.max_length} of the "
      "learned positions."
    )
  _, new = model.apply(
    variables,
    context,
    context_valid,
    max_length,
    method="init_cache",
    mutable=["cache"],
  )
  return new["cache"]


def decode_step(
  model: encoder_decoder.EncoderDecoder,
  variables: Any,
  cache: Any,
  tokens: jax.Array,
  key_valid: jax.Array | None = None,
  *,
  last_only: bool = False,
) -> tuple[jax.Array, Any]:
  """Appends target tokens to every row and predicts what follows.

  Equal to the parallel forward over all tokens so far.

  Args:
    model: the model.
    variables: of `model.init`.
    cache: of `init_cache` or the last call; not modified.
    tokens: `[B, n]` ints, the new tokens.
    key_valid: as of `jaxattn.models.decoding.decode_step`.
    last_only: as of `jaxattn.models.decoding.decode_step`.

  Returns:
    Logits `[B, n, vocab_size]`, or `[B, vocab_size]` with `last_only`, in
    float32, and the new cache.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> from jaxattn.models import encoder_decoder
    >>> from jaxattn.models import seq2seq
    >>> model = encoder_decoder.EncoderDecoder(encoder_decoder.led(
    ...     vocab_size=11, width=16, num_layers=1, num_heads=2, window=4))
    >>> source = jnp.array([[1, 2, 3, 4, 5]])
    >>> variables = model.init(jax.random.key(0), source, source)
    >>> context = model.apply(variables, source, method="encode")
    >>> cache = seq2seq.init_cache(
    ...     model, variables, context, max_length=8)
    >>> seq2seq.decode_step(
    ...     model, variables, cache, jnp.array([[2]]))[0].shape
    (1, 1, 11)

  Source: incremental decoding, Shazeer, 2019,
  https://arxiv.org/abs/1911.02150.
  """
  step: Any = decoding.decode_step  # Takes any model that can `extend`.
  return step(model, variables, cache, tokens, key_valid, last_only=last_only)


def greedy(
  model: encoder_decoder.EncoderDecoder,
  variables: Any,
  source: jax.Array,
  *,
  start_id: int,
  max_new_tokens: int,
  eos_id: int | None = None,
  source_mask: masks.Mask = masks.FULL,
  global_positions: jax.Array | None = None,
  source_positions: jax.Array | None = None,
) -> jax.Array:
  """Writes the likeliest next token, again and again.

  One compiled program: the encoder, then a loop on the device until every row
  has ended or `max_new_tokens` are written.

  Args:
    model: the model.
    variables: of `model.init`, trained.
    source: `[B, S]` ints.
    start_id: the token that the decoder reads first; LED takes its end token.
    max_new_tokens: static, at least 1.
    eos_id: token that ends a row; None for none.
    source_mask: without segment ids.
    global_positions: as of `Encoder`.
    source_positions: as of `Encoder`.

  Returns:
    `[B, max_new_tokens]` int32, without the start token. After the first
    `eos_id` of a row, every token is `eos_id`.

  Raises:
    ValueError: if shapes or options do not fit, or the text would exceed the
      learned positions.

  Example:
    >>> from jaxattn.models import encoder_decoder
    >>> from jaxattn.models import seq2seq
    >>> model = encoder_decoder.EncoderDecoder(encoder_decoder.led(
    ...     vocab_size=11, width=16, num_layers=1, num_heads=2, window=4))
    >>> source = jnp.array([[1, 2, 3, 4, 5]])
    >>> variables = model.init(jax.random.key(0), source, source)
    >>> seq2seq.greedy(
    ...     model, variables, source, start_id=2, max_new_tokens=4).shape
    (1, 4)

  Source: `jaxattn.models.seq2seq.decode_step`.
  """
  check_source(source, source_mask, max_new_tokens)
  return _greedy(
    model,
    variables,
    source,
    source_mask,
    global_positions,
    source_positions,
    jnp.int32(start_id),
    None if eos_id is None else jnp.int32(eos_id),
    max_new_tokens=max_new_tokens,
  )


def check_source(
  source: jax.Array, mask: masks.Mask, max_new_tokens: int
) -> None:
  """Raises ValueError for what no text can be written from."""
  blocks.check_tokens(source)
  if max_new_tokens < 1:
    raise ValueError(
      f"max_new_tokens must be at least 1, got {max_new_tokens}."
    )
  if mask.key_segment_ids is not None:
    raise ValueError(
      "source_mask has segment ids, but one text is written for a row: give "
      "every source a row of its own."
    )


def encode_to_cache(
  model: encoder_decoder.EncoderDecoder,
  variables: Any,
  source: jax.Array,
  mask: masks.Mask,
  global_positions: jax.Array | None,
  positions: jax.Array | None,
  max_new_tokens: int,
) -> Any:
  """The cache to write from, of sources that are not encoded yet."""
  valid = mask.key_valid
  if valid is not None:
    valid = jnp.broadcast_to(valid, source.shape)
  context: Any = model.apply(
    variables,
    source,
    mask=mask,
    global_positions=global_positions,
    positions=positions,
    method="encode",
  )
  return init_cache(
    model,
    variables,
    context,
    context_valid=valid,
    max_length=max_new_tokens,
  )


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens"))
def _greedy(
  model: encoder_decoder.EncoderDecoder,
  variables: Any,
  source: jax.Array,
  mask: masks.Mask,
  global_positions: jax.Array | None,
  positions: jax.Array | None,
  start_id: jax.Array,
  eos_id: jax.Array | None,
  *,
  max_new_tokens: int,
) -> jax.Array:
  batch = source.shape[0]

  def unfinished(carry: Any) -> jax.Array:
    step, done, *_ = carry
    return (step < max_new_tokens) & ~jnp.all(done)

  def advance(carry: Any) -> Any:
    step, done, tokens, last, cache = carry
    logits, cache = decode_step(
      model, variables, cache, last[:, None], ~done[:, None], last_only=True
    )
    last = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if eos_id is not None:
      last = jnp.where(done, eos_id, last)
      done = done | (last == eos_id)
    return step + 1, done, tokens.at[:, step].set(last), last, cache

  cache = encode_to_cache(
    model, variables, source, mask, global_positions, positions, max_new_tokens
  )
  fill = jnp.int32(0) if eos_id is None else eos_id
  tokens = jnp.broadcast_to(fill, (batch, max_new_tokens))
  last = jnp.broadcast_to(start_id, (batch,))
  carry = (jnp.int32(0), jnp.zeros((batch,), bool), tokens, last, cache)
  return jax.lax.while_loop(unfinished, advance, carry)[2]
