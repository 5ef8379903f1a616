"""Sampling from logits, and generation with a decoder under jit."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import masks
from jaxattn.models import blocks
from jaxattn.models import decoder
from jaxattn.models import decoding


def sample_logits(
  rng: jax.Array,
  logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  top_k: int | None = None,
  top_p: float | jax.Array | None = None,
) -> jax.Array:
  """Draws a token from logits.

  In this order: logits are divided by the temperature; `top_k` keeps the k
  largest, of equal ones those with the lower ids; `top_p` keeps the smallest
  set of the likeliest tokens left whose probability, renormalised over those
  left, is at least p, the token that crosses p included. Of what is kept, a
  token is drawn by its probability.

  Args:
    rng: key, consumed.
    logits: `[*B, V]` floats; `-inf` forbids a token.
    temperature: a number or `[*B]`, at least 0, may be traced. At 0 the result
      is the token of the largest logit, the lowest id of equal ones.
    top_k: static int of at least 1, or None to keep all.
    top_p: a number or `[*B]` in (0, 1], may be traced; None or 1 keeps all.

  Returns:
    `[*B]` int32 token ids.

  Raises:
    ValueError: if an option that is not traced lies out of its range.

  Example:
    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> int(sample_logits(jax.random.key(0), logits, temperature=0.0))
    0

  Source: Fan et al., 2018, https://arxiv.org/abs/1805.04833 (top-k); Holtzman
  et al., 2020, https://arxiv.org/abs/1904.09751 (top-p).
  """
  check_sampling(temperature, top_k, top_p)
  shape, vocab = logits.shape[:-1], logits.shape[-1]
  logits = logits.astype(jnp.float32)
  heat = _per_row(temperature, shape)
  greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  scaled = logits / jnp.where(heat > 0, heat, 1.0)
  if top_k is None and top_p is None:
    drawn = jax.random.categorical(rng, scaled).astype(jnp.int32)
    return jnp.where(heat[..., 0] > 0, drawn, greedy)
  kept = vocab if top_k is None else min(top_k, vocab)
  scaled, ids = jax.lax.top_k(scaled, kept)  # Sorted, ties by id.
  if top_p is not None:
    mass = _per_row(top_p, shape)
    before = jnp.cumsum(jax.nn.softmax(scaled), axis=-1)[..., :-1]
    before = jnp.concatenate([jnp.zeros_like(before[..., :1]), before], axis=-1)
    # Rounded sums may reach 1 before the last tokens, hence the second term.
    scaled = jnp.where((before < mass) | (mass >= 1.0), scaled, -jnp.inf)
  drawn = jax.random.categorical(rng, scaled)[..., None]
  drawn = jnp.take_along_axis(ids, drawn, axis=-1)[..., 0].astype(jnp.int32)
  return jnp.where(heat[..., 0] > 0, drawn, greedy)


def generate(
  model: decoder.Decoder,
  variables: Any,
  prompt: jax.Array,
  *,
  max_new_tokens: int,
  prompt_lengths: jax.Array | None = None,
  rng: jax.Array | None = None,
  temperature: float | jax.Array = 1.0,
  top_k: int | None = None,
  top_p: float | jax.Array | None = None,
  eos_id: int | jax.Array | None = None,
) -> jax.Array:
  """Continues prompts, token by token.

  The prompts are read in one pass, then a loop on the device draws tokens until
  every row has ended or `max_new_tokens` are drawn. Where a method is not
  strict, and so cannot decode, each token is computed from all before it by the
  parallel form, at the cost of a whole row. Compiled once for a model,
  the shapes, `max_new_tokens`, `top_k` and which options are None: pad prompts
  to a few lengths rather than giving each its own.

  Args:
    model: the decoder.
    variables: of `model.init`, trained.
    prompt: `[B, P]` ints, shorter rows padded at the right with any token.
    max_new_tokens: static, at least 1.
    prompt_lengths: `[B]` ints from 1 to P; None means P.
    rng: key of the draws; may be None when `temperature` is the number 0.
    temperature: as of `sample_logits`; may be traced.
    top_k: as of `sample_logits`; static.
    top_p: as of `sample_logits`; may be traced.
    eos_id: token that ends a row; None for none.

  Returns:
    `[B, max_new_tokens]` int32, without the prompt. After the first `eos_id` of
    a row, every token is `eos_id`.

  Raises:
    ValueError: if shapes or options do not fit, or the text would exceed the
      learned positions.

  Example:
    >>> from jaxattn.models import decoder
    >>> from jaxattn.models import generation
    >>> cfg = decoder.DecoderConfig(
    ...     vocab_size=11, width=16, num_layers=1, num_heads=2)
    >>> model, prompt = decoder.Decoder(cfg), jnp.array([[1, 2, 3]])
    >>> variables = model.init(jax.random.key(0), prompt)
    >>> generation.generate(
    ...     model, variables, prompt, max_new_tokens=5, rng=jax.random.key(1),
    ...     top_k=3).shape
    (1, 5)

  Source: `jaxattn.models.decoding.decode_step` and `sample_logits`.
  """
  check_sampling(temperature, top_k, top_p)
  blocks.check_tokens(prompt)
  batch, width = prompt.shape
  if width < 1 or max_new_tokens < 1:
    raise ValueError(
      "prompt must hold at least one token, and max_new_tokens be at least "
      f"1; got prompt {prompt.shape}, max_new_tokens {max_new_tokens}."
    )
  if prompt_lengths is None:
    prompt_lengths = jnp.full((batch,), width, jnp.int32)
  prompt_lengths = jnp.asarray(prompt_lengths, jnp.int32)
  if prompt_lengths.shape != (batch,):
    raise ValueError(
      f"prompt_lengths must have shape {(batch,)}, got {prompt_lengths.shape}."
    )
  if not isinstance(prompt_lengths, jax.core.Tracer):
    low, high = int(prompt_lengths.min()), int(prompt_lengths.max())
    if low < 1 or high > width:
      raise ValueError(
        f"prompt_lengths must lie in [1, {width}], got {low} to {high}."
      )
  if rng is None:
    if not isinstance(temperature, int | float) or temperature > 0:
      raise ValueError(
        "rng is needed unless temperature is the number 0; got temperature "
        f"{temperature}."
      )
    rng = jax.random.key(0)
  return _generate(
    model,
    variables,
    prompt,
    prompt_lengths,
    rng,
    temperature,
    top_p,
    eos_id,
    max_new_tokens=max_new_tokens,
    top_k=top_k,
  )


@functools.partial(
  jax.jit, static_argnames=("model", "max_new_tokens", "top_k")
)
def _generate(
  model: decoder.Decoder,
  variables: Any,
  prompt: jax.Array,
  prompt_lengths: jax.Array,
  rng: jax.Array,
  temperature: Any,
  top_p: Any,
  eos_id: Any,
  *,
  max_new_tokens: int,
  top_k: int | None,
) -> jax.Array:
  batch, width = prompt.shape

  def draw(step: Any, logits: jax.Array) -> jax.Array:
    return sample_logits(
      jax.random.fold_in(rng, step),
      logits,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
    )

  def unfinished(carry: Any) -> jax.Array:
    step, done, *_ = carry
    return (step < max_new_tokens) & ~jnp.all(done)

  def advance(carry: Any) -> Any:
    step, done, tokens, last, cache = carry
    logits, cache = follow(cache, last, ~done)
    last = draw(step, logits)
    if eos_id is not None:
      last = jnp.where(done, eos_id, last)
      done = done | (last == eos_id)
    return step + 1, done, tokens.at[:, step].set(last), last, cache

  strict = all(m.causality == "strict" for m in model.cfg.methods)
  begin = _with_cache if strict else _by_rows
  follow, logits, cache = begin(
    model, variables, prompt, prompt_lengths, width + max_new_tokens - 1
  )
  last = draw(0, logits)
  fill = 0 if eos_id is None else eos_id
  tokens = jnp.full((batch, max_new_tokens), fill, jnp.int32)
  tokens = tokens.at[:, 0].set(last)
  done = jnp.zeros((batch,), bool) if eos_id is None else last == eos_id
  carry = (jnp.int32(1), done, tokens, last, cache)
  return jax.lax.while_loop(unfinished, advance, carry)[2]


def _with_cache(
  model: decoder.Decoder,
  variables: Any,
  prompt: jax.Array,
  lengths: jax.Array,
  max_length: int,
) -> Any:
  """How tokens follow, the logits after the prompts, and the cache."""

  def follow(cache: Any, last: jax.Array, active: jax.Array) -> Any:
    return decoding.decode_step(
      model, variables, cache, last[:, None], active[:, None], last_only=True
    )

  cache = decoding.init_cache(
    model, variables, batch_size=len(prompt), max_length=max_length
  )
  steps = jnp.arange(prompt.shape[1], dtype=jnp.int32)[None]
  logits, cache = decoding.decode_step(
    model, variables, cache, prompt, steps < lengths[:, None], last_only=True
  )
  return follow, logits, cache


def _by_rows(
  model: decoder.Decoder,
  variables: Any,
  prompt: jax.Array,
  lengths: jax.Array,
  max_length: int,
) -> Any:
  """The same without a cache: whole rows each time."""
  missing = max_length - prompt.shape[1]
  rows = jnp.pad(prompt, ((0, 0), (0, missing)))
  place = jnp.arange(max_length, dtype=jnp.int32)[None]

  def logits(rows: jax.Array, lengths: jax.Array) -> jax.Array:
    valid = place < lengths[:, None]
    mask = masks.Mask(causal=True, key_valid=valid, query_valid=valid)
    found: Any = model.apply(variables, rows, mask=mask)
    at = (lengths - 1)[:, None, None]
    return jnp.take_along_axis(found, at, axis=1)[:, 0]

  def follow(cache: Any, last: jax.Array, active: jax.Array) -> Any:
    rows, lengths = cache
    new = (place == lengths[:, None]) & active[:, None]
    rows = jnp.where(new, last[:, None], rows)
    lengths = lengths + active.astype(jnp.int32)
    return logits(rows, lengths), (rows, lengths)

  return follow, logits(rows, lengths), (rows, lengths)


def check_sampling(temperature: Any, top_k: Any, top_p: Any) -> None:
  """Raises ValueError for sampling options out of range; skips traced ones."""
  if isinstance(temperature, int | float) and not temperature >= 0:
    raise ValueError(f"temperature must be at least 0, got {temperature}.")
  if top_k is not None and top_k < 1:
    raise ValueError(f"top_k must be at least 1 or None, got {top_k}.")
  if isinstance(top_p, int | float) and not 0 < top_p <= 1:
    raise ValueError(f"top_p must lie in (0, 1] or be None, got {top_p}.")


def _per_row(value: Any, shape: tuple[int, ...]) -> jax.Array:
  """A number or `[*B]` as `[*B, 1]` float32."""
  value = jnp.asarray(value, jnp.float32)
  return jnp.broadcast_to(value, shape)[..., None]
