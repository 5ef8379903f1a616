"""Beam search with an encoder-decoder, in one compiled program."""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxattn._src import masks
from jaxattn.models import encoder_decoder
from jaxattn.models import seq2seq


class Beams(NamedTuple):
  """The texts that `beam_search` found, the best first.

  Attributes:
    tokens: `[B, num_beams, max_new_tokens]` int32, without the start token;
      after the first `eos_id` every token is `eos_id`.
    scores: `[B, num_beams]` float32, log probabilities divided by the length
      penalty; -inf where there are fewer texts.
    finished: `[B, num_beams]` bool, whether the text ends with `eos_id`.

  Example:
    >>> from jaxattn.models import beam_search
    >>> beam_search.Beams._fields
    ('tokens', 'scores', 'finished')

  Source: Graves, 2012, https://arxiv.org/abs/1211.3711.
  """

  tokens: jax.Array
  scores: jax.Array
  finished: jax.Array


class _Search(NamedTuple):
  """What the loop carries; rows of the cache are sources times beams."""

  step: jax.Array
  alive: jax.Array  # [B, K, L]; the end token from `step` on.
  log_probs: jax.Array  # [B, K]
  done: jax.Array  # [B, K, L]
  done_scores: jax.Array  # [B, K], best first; -inf: none yet.
  cache: Any


def length_penalty(length: jax.Array, alpha: jax.Array) -> jax.Array:
  """What the log probability of a text is divided by: `((5 + n) / 6)^alpha`.

  Args:
    length: n, the number of tokens, the end token included.
    alpha: 0 compares log probabilities as they are and favours short texts.

  Returns:
    Floats in the shape of `length`.

  Example:
    >>> from jaxattn.models import beam_search
    >>> float(beam_search.length_penalty(jnp.array(7.0), jnp.array(1.0)))
    2.0

  Source: Wu et al., 2016, https://arxiv.org/abs/1609.08144, equation 14.
  """
  return ((5.0 + length) / 6.0) ** alpha


def beam_search(
  model: encoder_decoder.EncoderDecoder,
  variables: Any,
  source: jax.Array,
  *,
  start_id: int,
  eos_id: int,
  max_new_tokens: int,
  num_beams: int = 4,
  alpha: float = 0.8,
  no_repeat_ngram: int = 0,
  min_new_tokens: int = 0,
  source_mask: masks.Mask = masks.FULL,
  global_positions: jax.Array | None = None,
  source_positions: jax.Array | None = None,
) -> Beams:
  """Searches for the texts with the best score.

  At every step each of the `num_beams` likeliest unfinished texts may end, and
  the best that ended are kept beside those that go on. The search of a source
  ends when no unfinished text can become better than its kept ones, which
  leaves out nothing. Sources are encoded once, keys and values of
  cross-attention computed once.

  Args:
    model: the model.
    variables: of `model.init`, trained.
    source: `[B, S]` ints.
    start_id: the token that the decoder reads first.
    eos_id: the token that ends a text.
    max_new_tokens: static, at least 1.
    num_beams: static, at least 1.
    alpha: of `length_penalty`, not negative; Pegasus and BigBird take 0.6 to
      0.95 by data set.
    no_repeat_ngram: static; no text holds the same tokens of this number twice.
      0 for no limit.
    min_new_tokens: before which no text may end.
    source_mask: without segment ids.
    global_positions: as of `Encoder`.
    source_positions: as of `Encoder`.

  Returns:
    The texts. Where fewer than `num_beams` have finished, the best unfinished
    ones follow them.

  Raises:
    ValueError: if shapes or options do not fit, or the text would exceed the
      learned positions.

  Example:
    >>> from jaxattn.models import beam_search
    >>> from jaxattn.models import encoder_decoder
    >>> model = encoder_decoder.EncoderDecoder(encoder_decoder.led(
    ...     vocab_size=11, width=16, num_layers=1, num_heads=2, window=4))
    >>> source = jnp.array([[1, 2, 3, 4, 5]])
    >>> variables = model.init(jax.random.key(0), source, source)
    >>> beam_search.beam_search(
    ...     model, variables, source, start_id=2, eos_id=2,
    ...     max_new_tokens=4, num_beams=3).tokens.shape
    (1, 3, 4)

  Source: Wu et al., 2016, https://arxiv.org/abs/1609.08144, section 7; Paulus
  et al., 2018 (repeated n-grams), https://arxiv.org/abs/1705.04304. Differs:
  Hugging Face divides by `n^length_penalty`, and lets a text end only where
  the end is among its likeliest continuations.
  """
  seq2seq.check_source(source, source_mask, max_new_tokens)
  _check(model, num_beams, alpha, no_repeat_ngram, start_id, eos_id)
  if not 0 <= min_new_tokens <= max_new_tokens:
    raise ValueError(
      f"min_new_tokens must be in [0, {max_new_tokens}], max_new_tokens, got "
      f"{min_new_tokens}."
    )
  return _beam_search(
    model,
    variables,
    source,
    source_mask,
    global_positions,
    source_positions,
    jnp.int32(start_id),
    jnp.int32(eos_id),
    jnp.float32(alpha),
    jnp.int32(min_new_tokens),
    max_new_tokens=max_new_tokens,
    num_beams=num_beams,
    no_repeat_ngram=no_repeat_ngram,
  )


def _check(
  model: encoder_decoder.EncoderDecoder,
  num_beams: int,
  alpha: float,
  no_repeat_ngram: int,
  start_id: int,
  eos_id: int,
) -> None:
  if num_beams < 1:
    raise ValueError(f"num_beams must be at least 1, got {num_beams}.")
  if not 0 <= alpha < float("inf"):
    raise ValueError(f"alpha must be finite and not negative, got {alpha}.")
  if no_repeat_ngram < 0:
    raise ValueError(
      f"no_repeat_ngram must not be negative, got {no_repeat_ngram}."
    )
  size = model.cfg.decoder.vocab_size
  for name, token in (("start_id", start_id), ("eos_id", eos_id)):
    if not 0 <= token < size:
      raise ValueError(
        f"{name} must be in [0, {size}), the vocabulary, got {token}."
      )


@functools.partial(
  jax.jit,
  static_argnames=("model", "max_new_tokens", "num_beams", "no_repeat_ngram"),
)
def _beam_search(
  model: encoder_decoder.EncoderDecoder,
  variables: Any,
  source: jax.Array,
  mask: masks.Mask,
  global_positions: jax.Array | None,
  positions: jax.Array | None,
  start_id: jax.Array,
  eos_id: jax.Array,
  alpha: jax.Array,
  min_new_tokens: jax.Array,
  *,
  max_new_tokens: int,
  num_beams: int,
  no_repeat_ngram: int,
) -> Beams:
  batch, length = source.shape[0], max_new_tokens
  cache = seq2seq.encode_to_cache(
    model, variables, source, mask, global_positions, positions, max_new_tokens
  )
  none = jnp.full((batch, num_beams), -jnp.inf)
  empty = jnp.broadcast_to(eos_id, (batch, num_beams, length))
  first = _Search(
    jnp.int32(0),
    empty,
    none.at[:, 0].set(0.0),  # All beams are one text at first.
    empty,
    none,
    jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), cache),
  )

  def unfinished(search: _Search) -> jax.Array:
    # Log probabilities only fall, and the penalty is largest at the end.
    reach = search.log_probs[:, 0] / length_penalty(jnp.float32(length), alpha)
    open_ = reach > search.done_scores[:, -1]
    return (search.step < length) & jnp.any(open_)

  def advance(search: _Search) -> _Search:
    before = search.alive[:, :, jnp.maximum(search.step - 1, 0)]
    last = jnp.where(search.step == 0, start_id, before)
    logits, cache = seq2seq.decode_step(
      model, variables, search.cache, last.reshape(-1, 1), last_only=True
    )
    new = jax.nn.log_softmax(logits.astype(jnp.float32))
    new = new.reshape(batch, num_beams, -1)
    early = search.step < min_new_tokens
    new = new.at[..., eos_id].add(jnp.where(early, -jnp.inf, 0.0))
    if no_repeat_ngram:
      repeats = functools.partial(
        _repeats,
        count=search.step,
        size=no_repeat_ngram,
        vocab=new.shape[-1],
      )
      banned = jax.vmap(jax.vmap(repeats))(search.alive)
      new = jnp.where(banned, -jnp.inf, new)
    return _select(search, new, cache, eos_id, alpha)

  return _result(jax.lax.while_loop(unfinished, advance, first), alpha)


def _select(
  search: _Search,
  new: jax.Array,
  cache: Any,
  eos_id: jax.Array,
  alpha: jax.Array,
) -> _Search:
  """Ends every text, and extends every text; keeps the best of either."""
  batch, beams, vocab = new.shape
  total = search.log_probs[:, :, None] + new
  penalty = length_penalty(search.step.astype(jnp.float32) + 1.0, alpha)
  scores = jnp.take(total, eos_id, axis=2) / penalty
  done_scores, best = jax.lax.top_k(
    jnp.concatenate([search.done_scores, scores], axis=1), beams
  )
  done = jnp.concatenate([search.done, search.alive], axis=1)
  done = jnp.take_along_axis(done, best[..., None], axis=1)
  total = total.at[:, :, eos_id].set(-jnp.inf).reshape(batch, -1)
  log_probs, index = jax.lax.top_k(total, beams)
  parent, token = index // vocab, (index % vocab).astype(jnp.int32)
  alive = jnp.take_along_axis(search.alive, parent[..., None], axis=1)
  alive = alive.at[:, :, search.step].set(token)
  rows = parent + beams * jnp.arange(batch, dtype=parent.dtype)[:, None]
  cache = _reorder(cache, rows.reshape(-1))
  return _Search(search.step + 1, alive, log_probs, done, done_scores, cache)


def _reorder(cache: Any, rows: jax.Array) -> Any:
  """Takes rows of the cache; cross-attention is one for a source's beams."""

  def taken(path: Any, x: jax.Array) -> jax.Array:
    names = [getattr(entry, "key", None) for entry in path]
    return x if "cross" in names else jnp.take(x, rows, axis=0)

  return jax.tree_util.tree_map_with_path(taken, cache)


def _repeats(
  text: jax.Array, count: jax.Array, size: int, vocab: int
) -> jax.Array:
  """Which tokens `[vocab]` would repeat `size` tokens of `text[:count]`."""
  length = text.shape[0]
  if size > length:
    return jnp.zeros((vocab,), bool)
  starts = jnp.arange(length - size + 1, dtype=jnp.int32)
  first = jnp.maximum(count - (size - 1), 0)
  same = (count >= size) & (starts + size <= count)
  for offset in range(size - 1):
    same = same & (text[starts + offset] == text[first + offset])
  banned = jnp.zeros((vocab,), jnp.int32)
  return banned.at[text[starts + size - 1]].max(same.astype(jnp.int32)) > 0


def _result(search: _Search, alpha: jax.Array) -> Beams:
  """The finished texts, then unfinished ones in the places left."""
  beams = search.alive.shape[1]
  penalty = length_penalty(search.step.astype(jnp.float32), alpha)
  scores = jnp.concatenate(
    [search.done_scores, search.log_probs / penalty], axis=1
  )
  there = jnp.isfinite(scores)
  order = jnp.argsort(~there, axis=1, stable=True)[:, :beams]
  texts = jnp.concatenate([search.done, search.alive], axis=1)
  return Beams(
    jnp.take_along_axis(texts, order[..., None], axis=1),
    jnp.take_along_axis(scores, order, axis=1),
    (order < beams) & jnp.take_along_axis(there, order, axis=1),
  )
