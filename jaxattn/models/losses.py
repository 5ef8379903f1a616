"""Losses of language models and of pretraining encoders."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxattn._src import chunked


def masked_language_model_loss(
  logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
  """Mean cross-entropy of the tokens that were to be predicted.

  `sum_t w_t (-log softmax(logits_t)[target_t]) / sum_t w_t`, in nats; 0 where
  no token has a weight.

  Args:
    logits: `[*B, T, V]` floats.
    targets: `[*B, T]` ints in `[0, V)`, where weights are not zero.
    weights: `[*B, T]` bools, ints or floats, at least 0.

  Returns:
    A float32 scalar.

  Raises:
    ValueError: if shapes disagree.

  Example:
    >>> from jaxattn.models import losses
    >>> weights = jnp.array([1.0, 0.0])
    >>> float(losses.masked_language_model_loss(
    ...     jnp.zeros((2, 1)), jnp.array([0, -1]), weights))
    0.0

  Source: Devlin et al., 2018, https://arxiv.org/abs/1810.04805.
  """
  for name, x in (("targets", targets), ("weights", weights)):
    if x.shape != logits.shape[:-1]:
      raise ValueError(
        f"{name} must have shape {logits.shape[:-1]}, got {x.shape}."
      )
  weights = weights.astype(jnp.float32)
  # Ids out of range at tokens without weight must not make NaN of 0 times it.
  chosen = jnp.where(weights > 0, targets, 0)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), chosen
  )
  total = jnp.sum(weights)
  return jnp.sum(losses * weights) / jnp.where(total > 0, total, 1.0)


def chunked_cross_entropy(
  x: jax.Array, table: jax.Array, targets: jax.Array, *, chunk: int
) -> jax.Array:
  """Cross-entropy of tokens, logits of some of them at a time.

  `logsumexp(table x_t) - (table x_t)[target_t]`, without an array of all
  tokens times the vocabulary, in the backward pass neither.

  Args:
    x: `[*B, T, D]` floats, the vectors before the output matrix.
    table: `[V, D]`, the output matrix.
    targets: `[*B, T]` ints in `[0, V)`.
    chunk: tokens of a row whose logits exist at a time.

  Returns:
    `[*B, T]` float32, in nats.

  Raises:
    ValueError: if shapes disagree or `chunk` is not positive.

  Example:
    >>> from jaxattn.models import losses
    >>> x, table = jnp.ones((6, 4)), jnp.zeros((8, 4))
    >>> losses.chunked_cross_entropy(
    ...     x, table, jnp.zeros(6, jnp.int32), chunk=2).round(3)[0].item()
    2.0789999961853027

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 3
  ("Chunking").
  """
  if targets.shape != x.shape[:-1]:
    raise ValueError(
      f"targets must have shape {x.shape[:-1]}, got {targets.shape}."
    )
  if table.ndim != 2 or table.shape[1] != x.shape[-1]:
    raise ValueError(
      f"table must be [V, {x.shape[-1]}] for x {x.shape}, got {table.shape}."
    )

  def losses(given: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, targets = given
    logits = jnp.einsum(
      "...d,vd->...v",
      x,
      table.astype(x.dtype),
      preferred_element_type=jnp.float32,
    )
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, targets[..., 0]
    )[..., None]

  return chunked.map_tokens(losses, (x, targets[..., None]), chunk=chunk)[
    ..., 0
  ]


class HiddenSentences(NamedTuple):
  """Sentences hidden from a text, and each of them alone; see `hide_sentences`.

  Attributes:
    tokens: `[B, T]` ints, with `mask_id` at the tokens of hidden sentences.
    hidden: `[B, T]` bool, where these are.
    sentences: `[B, M]` int32, the indices of hidden sentences, hence of their
      global tokens; -1 for padding.
    sentence_tokens: `[B, M, S]` ints, the tokens of each, `pad_id` behind.
    sentence_valid: `[B, M, S]` bool.

  Example:
    >>> HiddenSentences._fields[0]
    'tokens'

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.4.
  """

  tokens: jax.Array
  hidden: jax.Array
  sentences: jax.Array
  sentence_tokens: jax.Array
  sentence_valid: jax.Array


def hide_sentences(
  rng: jax.Array,
  tokens: jax.Array,
  sentence_ids: jax.Array,
  *,
  num_sentences: int,
  max_hidden: int,
  max_length: int,
  mask_id: int,
  rate: float = 0.1,
  pad_id: int = 0,
) -> HiddenSentences:
  """Hides whole sentences of a text, for ETC's contrastive loss.

  In each row, `ceil(rate * n)` of its n sentences, at most `max_hidden`, are
  drawn without replacement. Their tokens become `mask_id`; their global tokens
  stay. To be encoded again, alone and with a single global token each, they
  come as rows of their own.

  Args:
    rng: PRNG key.
    tokens: `[B, T]` ints.
    sentence_ids: `[B, T]` ints in `[0, num_sentences)`; -1 for none. Sentences
      without tokens do not count.
    num_sentences: how many a row may have: the number of global tokens.
    max_hidden: M.
    max_length: S; of longer sentences the first S tokens are kept.
    mask_id: id of hidden tokens.
    rate: share of the sentences that are hidden, in `[0, 1]`.
    pad_id: id of padding.

  Returns:
    The hidden sentences.

  Raises:
    ValueError: if shapes disagree or an option is out of range.

  Example:
    >>> from jaxattn.models import losses
    >>> found = losses.hide_sentences(
    ...     jax.random.key(0), jnp.array([[5, 6, 7, 8]]),
    ...     jnp.array([[0, 0, 1, 1]]), num_sentences=2, max_hidden=1,
    ...     max_length=3, mask_id=9, rate=0.5)
    >>> int(jnp.sum(found.tokens == 9)), found.sentence_tokens.shape
    (2, (1, 1, 3))

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.4.
  """
  if tokens.ndim != 2 or tokens.shape != sentence_ids.shape:
    raise ValueError(
      "tokens and sentence_ids must have one shape [B, T], got "
      f"{tokens.shape} and {sentence_ids.shape}."
    )
  if not 0 <= rate <= 1:
    raise ValueError(f"rate must be in [0, 1], got {rate}.")
  if not 1 <= max_hidden <= num_sentences:
    raise ValueError(
      f"max_hidden must be in [1, num_sentences={num_sentences}], got "
      f"{max_hidden}."
    )
  if not 1 <= max_length <= tokens.shape[1]:
    raise ValueError(
      f"max_length must be in [1, T={tokens.shape[1]}], got {max_length}."
    )
  index = jnp.arange(num_sentences, dtype=sentence_ids.dtype)
  member = sentence_ids[:, None, :] == index[None, :, None]  # [B, G, T]
  present = jnp.any(member, axis=-1)
  found = jnp.sum(present, axis=-1, dtype=jnp.float32)
  # The product of a rate such as 0.1 may stand a rounding above a whole number.
  wanted = jnp.ceil(found * rate - 1e-4).astype(jnp.int32)
  draw = jax.random.uniform(rng, present.shape)
  _, order = jax.lax.top_k(jnp.where(present, draw, -1.0), max_hidden)
  taken = jnp.arange(max_hidden, dtype=jnp.int32)[None] < wanted[:, None]
  chosen = jnp.take_along_axis(member, order[..., None], axis=1)
  chosen = chosen & taken[..., None]  # [B, M, T]
  hidden = jnp.any(chosen, axis=1)
  # Members first, in their order.
  places = jnp.argsort(~chosen, axis=-1, stable=True)[..., :max_length]
  valid = jnp.take_along_axis(chosen, places, axis=-1)
  alone = jnp.take_along_axis(
    jnp.broadcast_to(tokens[:, None, :], chosen.shape), places, axis=-1
  )
  return HiddenSentences(
    tokens=jnp.where(hidden, jnp.asarray(mask_id, tokens.dtype), tokens),
    hidden=hidden,
    sentences=jnp.where(taken, order, -1).astype(jnp.int32),
    sentence_tokens=jnp.where(valid, alone, jnp.asarray(pad_id, tokens.dtype)),
    sentence_valid=valid,
  )


def cpc_loss(
  context: jax.Array,
  alone: jax.Array,
  valid: jax.Array,
  *,
  scale: float | None = None,
) -> jax.Array:
  """Noise-contrastive loss: which sentence belongs to which place?

  With `a_p` the global vector of hidden sentence p in its text and `c_p` that
  of the sentence encoded alone, the mean over p of

      -log( exp(s a_p . c_p) / sum_q exp(s a_p . c_q) )

  where q runs over all valid sentences of the batch. The paper does not publish
  its scoring function; the scaled dot product is this library's choice.

  Args:
    context: `[*P, D]` floats, from the texts: `[B, M, D]`, say.
    alone: `[*P, D]` floats, from the sentences alone.
    valid: `[*P]` bool, False at padding, which is neither scored nor a
      candidate.
    scale: s; None means `1 / sqrt(D)`.

  Returns:
    A float32 scalar; 0 where nothing is valid.

  Raises:
    ValueError: if shapes disagree.

  Example:
    >>> from jaxattn.models import losses
    >>> x = 10 * jnp.eye(3)
    >>> loss = losses.cpc_loss(x, x, jnp.ones(3, bool), scale=1.0)
    >>> bool(loss < 1e-6)
    True

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.4;
  van den Oord et al., 2018, https://arxiv.org/abs/1807.03748.
  """
  if context.shape != alone.shape or valid.shape != context.shape[:-1]:
    raise ValueError(
      "context and alone must have one shape [*P, D] and valid [*P], got "
      f"{context.shape}, {alone.shape}, {valid.shape}."
    )
  size = context.shape[-1]
  a, c = (x.reshape(-1, size).astype(jnp.float32) for x in (context, alone))
  valid = valid.reshape(-1)
  scores = jnp.einsum("pd,qd->pq", a, c, precision=jax.lax.Precision.HIGHEST)
  scores = scores * jnp.float32(size**-0.5 if scale is None else scale)
  # A row of padding keeps itself, so that it is finite; its weight is zero.
  own = jnp.eye(valid.shape[0], dtype=bool)
  scores = jnp.where(valid[None, :] | own, scores, -jnp.inf)
  losses = jax.nn.logsumexp(scores, axis=-1) - jnp.diagonal(scores)
  total = jnp.sum(valid, dtype=jnp.float32)
  losses = jnp.where(valid, losses, 0.0)
  return jnp.sum(losses) / jnp.where(total > 0, total, 1.0)


def etc_pretraining_loss(
  mlm: jax.Array, cpc: jax.Array, *, cpc_weight: float = 0.2
) -> jax.Array:
  """ETC's loss: `(1 - w) mlm + w cpc`.

  Args:
    mlm: of `masked_language_model_loss`.
    cpc: of `cpc_loss`.
    cpc_weight: w, 0.2 in the paper.

  Returns:
    A scalar.

  Raises:
    ValueError: if the weight is not in `[0, 1]`.

  Example:
    >>> from jaxattn.models import losses
    >>> float(losses.etc_pretraining_loss(jnp.float32(1), jnp.float32(6)))
    2.0

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 4.
  """
  if not 0 <= cpc_weight <= 1:
    raise ValueError(f"cpc_weight must be in [0, 1], got {cpc_weight}.")
  return (1 - cpc_weight) * mlm + cpc_weight * cpc
