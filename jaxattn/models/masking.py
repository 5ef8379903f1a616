"""Which tokens a masked language model has to predict, drawn under `jit`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class HiddenTokens(NamedTuple):
  """Rows with tokens hidden, and what stood there.

  Attributes:
    tokens: `[*B, T]` ints, with tokens replaced.
    places: `[*B, P]` int32 in `[0, T)`, where predictions are due.
    targets: `[*B, P]` ints, what stood there.
    weights: `[*B, P]` bools, false where a row has fewer than P.
  """

  tokens: jax.Array
  places: jax.Array
  targets: jax.Array
  weights: jax.Array


def hide_words(
  key: jax.Array,
  tokens: jax.Array,
  begins: jax.Array,
  candidates: jax.Array,
  *,
  mask_id: int,
  vocab_size: int,
  rate: float = 0.15,
) -> HiddenTokens:
  """Hides whole words, drawn anew with every key.

  Words are taken in a random order while, together, they have no more tokens
  than `rate` of the row's candidates (one at least, so that a row of one short
  word is of use). A hidden token is replaced by `mask_id` with probability
  0.8, by a random one with 0.1, and left as it is with 0.1, each by itself.

  Args:
    key: of the draw, one for all rows.
    tokens: `[*B, T]` ints.
    begins: `[*B, T]` bools, where a word begins; where each token does, tokens
      are hidden one by one.
    candidates: `[*B, T]` bools, what may be hidden: neither padding nor special
      tokens. A word is hidden as far as its tokens are candidates.
    mask_id: of the mask token.
    vocab_size: random tokens are in `[0, vocab_size)`.
    rate: share of the candidates that is hidden, in (0, 1).

  Returns:
    The rows, with `P = ceil(rate * T)` places each.

  Raises:
    ValueError: if shapes disagree or `rate` is out of range.

  Example:
    >>> from jaxattn.models import masking
    >>> row = jnp.arange(8)
    >>> hidden = masking.hide_words(jax.random.key(0), row, row % 2 == 0,
    ...     row < 6, mask_id=8, vocab_size=8, rate=0.5)
    >>> hidden.weights.tolist()  # Words have two tokens, and 3 may be hidden.
    [True, True, False, False]

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, with the whole
  words of its authors' later release; Liu et al., 2019 (dynamic masks),
  https://arxiv.org/abs/1907.11692.
  """
  for name, x in (("begins", begins), ("candidates", candidates)):
    if x.shape != tokens.shape:
      raise ValueError(f"{name} must have shape {tokens.shape}, got {x.shape}.")
  if not 0 < rate < 1:
    raise ValueError(f"rate must lie in (0, 1), got {rate}.")
  length = tokens.shape[-1]
  count = -int(-rate * length // 1)
  order_key, kind_key, random_key = jax.random.split(key, 3)
  word = jnp.cumsum(begins, axis=-1, dtype=jnp.int32)
  drawn = jax.random.uniform(order_key, (*tokens.shape[:-1], length + 1))
  drawn = jnp.take_along_axis(drawn, word, axis=-1)
  drawn = jnp.where(candidates, drawn, 2.0)
  order = jnp.argsort(drawn, axis=-1, stable=True)
  chosen = _whole(jnp.take_along_axis(drawn, order, axis=-1), candidates, rate)
  places, weights = order[..., :count], chosen[..., :count]
  targets = jnp.take_along_axis(tokens, places, axis=-1)
  kind = jax.random.uniform(kind_key, places.shape)
  other = jax.random.randint(
    random_key, places.shape, 0, vocab_size, dtype=tokens.dtype
  )
  shown = jnp.where(kind < 0.8, jnp.asarray(mask_id, tokens.dtype), other)
  shown = jnp.where((kind < 0.9) & weights, shown, targets)
  hidden = jnp.put_along_axis(tokens, places, shown, axis=-1, inplace=False)
  return HiddenTokens(hidden, places.astype(jnp.int32), targets, weights)


def _whole(drawn: jax.Array, candidates: jax.Array, rate: float) -> jax.Array:
  """Which of the ascending draws belong to words that fit the budget."""
  length = drawn.shape[-1]
  index = jnp.arange(length, dtype=jnp.int32)
  ends = jnp.append(
    drawn[..., 1:] != drawn[..., :-1],
    jnp.ones((*drawn.shape[:-1], 1), bool),
    axis=-1,
  )
  last = jax.lax.cummin(
    jnp.where(ends, index, length), axis=drawn.ndim - 1, reverse=True
  )
  budget = jnp.floor(rate * jnp.sum(candidates, axis=-1, keepdims=True))
  return (drawn < 1.5) & (last < jnp.maximum(budget, 1))
