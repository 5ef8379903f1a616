"""Answers to questions: spans, types of answers, candidates, facts."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import masks
from jaxattn.models import heads
from jaxattn.models.layers import star


class SpanLogits(NamedTuple):
  """What a `SpanHead` says of every row.

  Attributes:
    start: `[B, T]` float32, -inf where no answer may start.
    end: `[B, T]` float32, -inf where no answer may end.
    types: `[B, num_types]` float32, or None without types.

  Example:
    >>> from jaxattn.models import answers
    >>> answers.SpanLogits._fields
    ('start', 'end', 'types')

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 4.2.
  """

  start: jax.Array
  end: jax.Array
  types: jax.Array | None


class SpanHead(nn.Module, kw_only=True):
  """Says where an answer starts and ends, and of which type it is.

  Types are classes of a row, such as none, short, long, yes and no of Natural
  Questions; they are read off the first real token.

  Attributes:
    num_types: of answers; 0 for none.
    dropout: rate before each linear map.
    dtype: of the computation; None means that of inputs and parameters.
    param_dtype: of the parameters.

  Example:
    >>> from jaxattn.models import answers
    >>> head = answers.SpanHead(num_types=5)
    >>> x, allowed = jnp.ones((2, 7, 8)), jnp.ones((2, 7), bool)
    >>> logits, _ = head.init_with_output(jax.random.key(0), x, allowed)
    >>> logits.start.shape, logits.types.shape
    ((2, 7), (2, 5))

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805 (spans); Alberti
  et al., 2019 (types), https://arxiv.org/abs/1901.08634.
  """

  num_types: int = 0
  dropout: float = 0.0
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    allowed: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> SpanLogits:
    """Logits of `x [B, T, D]`.

    Args:
      x: of an encoder.
      allowed: `[B, T]` bool, where an answer may lie: the tokens of the
        document, and the first of the row where that stands for no answer.
      mask: of the encoder, `key_valid` and `query_valid`; no answer lies where
        a token is invalid in either.
      train: whether dropout is active.

    Returns:
      The logits.

    Raises:
      ValueError: if shapes do not fit.
      NotImplementedError: if `mask` sets another field.
    """
    _check_bool("allowed", allowed, x.shape[:-1])
    batch, length = x.shape[:-2], x.shape[-2]
    allowed &= star.real_tokens(mask, batch, length, by="SpanHead")
    kinds: dict[str, Any] = {
      "dropout": self.dropout,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
    }
    span = heads.TokenHead(num_outputs=2, name="span", **kinds)(x, train=train)
    span = jnp.where(allowed[..., None], span, -jnp.inf)
    types = None
    if self.num_types:
      classify = heads.ClassificationHead(
        num_classes=self.num_types, name="types", **kinds
      )
      types = classify(x, mask=mask, train=train)
    return SpanLogits(span[..., 0], span[..., 1], types)


class MentionHead(nn.Module, kw_only=True):
  """Scores candidates or sentences by the tokens that mention them.

  Attributes:
    dropout: rate before the linear map.
    dtype: of the computation; None means that of inputs and parameters.
    param_dtype: of the parameters.

  Example:
    >>> from jaxattn.models import answers
    >>> places = jnp.array([[[0, 4], [3, -1], [-1, -1]]])
    >>> logits, _ = answers.MentionHead().init_with_output(
    ...     jax.random.key(0), jnp.ones((1, 5, 8)), places)
    >>> logits.shape, bool(jnp.isneginf(logits[0, 2]))
    ((1, 3), True)

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 6.2
  and appendix (WikiHop: candidates; HotpotQA: supporting facts).
  """

  dropout: float = 0.0
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, places: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Logits `[B, C]` float32, -inf for candidates that nothing mentions.

    Args:
      x: `[B, T, D]` of an encoder.
      places: `[B, C, M]` ints, the tokens of each candidate; -1 pads.
      train: whether dropout is active.

    Returns:
      One logit a candidate, of the mean of its tokens. For one of many take a
      softmax over them, for supporting facts a sigmoid each.

    Raises:
      ValueError: if shapes do not fit.
    """
    means = mention_means(x, places)
    head = heads.TokenHead(
      num_outputs=1,
      dropout=self.dropout,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="score",
    )
    logits = head(means, train=train)[..., 0]
    return jnp.where(jnp.any(places >= 0, axis=-1), logits, -jnp.inf)


def mention_means(x: jax.Array, places: jax.Array) -> jax.Array:
  """The mean of the tokens of each candidate.

  Args:
    x: `[B, T, D]` floats.
    places: `[B, C, M]` ints in `[0, T)`; -1 pads.

  Returns:
    `[B, C, D]` in the dtype of `x`, 0 where all places are -1.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> from jaxattn.models import answers
    >>> x = jnp.array([[[1.0], [2.0], [6.0]]])
    >>> answers.mention_means(x, jnp.array([[[0, 2], [1, -1]]])).tolist()
    [[[3.5], [2.0]]]

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150.
  """
  batch, _, width = x.shape
  integers = jnp.issubdtype(places.dtype, jnp.integer)
  if places.ndim != 3 or places.shape[0] != batch or not integers:
    raise ValueError(
      f"places must be integers [B, C, M] with B {batch}, got "
      f"{places.dtype}{places.shape}."
    )
  there = (places >= 0)[..., None]
  index = jnp.maximum(places, 0).reshape(batch, -1, 1)
  found = jnp.take_along_axis(x, index, axis=1)
  found = found.reshape(*places.shape, width).astype(jnp.float32)
  total = jnp.sum(jnp.where(there, found, 0.0), axis=2)
  count = jnp.maximum(jnp.sum(there, axis=2, dtype=jnp.float32), 1.0)
  return (total / count).astype(x.dtype)


def span_loss(
  start: jax.Array,
  end: jax.Array,
  spans: jax.Array,
) -> jax.Array:
  """Minus the log probability of any of a row's answers.

  Starts and ends are two softmaxes over all tokens of a row, whatever its
  length; where an answer occurs several times, one occurrence is enough.

  Args:
    start: `[B, T]` logits, -inf where no answer may start.
    end: `[B, T]` logits.
    spans: `[B, A, 2]` ints, first and last token of each answer, both
      included; -1 pads. An answer where the logits are -inf counts as absent.

  Returns:
    `[B]` nats in float32; 0, without gradient, for rows without an answer.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> from jaxattn.models import answers
    >>> zeros = jnp.zeros((1, 4))
    >>> spans = jnp.array([[[0, 1], [2, 3], [-1, -1]]])
    >>> answers.span_loss(zeros, zeros, spans).tolist()  # -log(2 / 16)
    [2.0794415...]

  Source: Clark and Gardner, 2018, https://arxiv.org/abs/1710.10723, section
  3.1.
  """
  _check_logits(start, end)
  integers = jnp.issubdtype(spans.dtype, jnp.integer)
  fits = spans.ndim == 3 and spans.shape[0] == start.shape[0]
  if not fits or spans.shape[-1] != 2 or not integers:
    raise ValueError(
      f"spans must be integers [B, A, 2] with B {start.shape[0]}, got "
      f"{spans.dtype}{spans.shape}."
    )
  nats = jnp.zeros(spans.shape[:2], jnp.float32)
  there = jnp.all(spans >= 0, axis=-1)
  for logits, index in ((start, spans[..., 0]), (end, spans[..., 1])):
    possible = jnp.any(jnp.isfinite(logits), axis=-1, keepdims=True)
    logits = jnp.where(possible, logits.astype(jnp.float32), 0.0)
    logits = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logits, jnp.maximum(index, 0), axis=1)
    finite = jnp.isfinite(chosen) & possible
    there = there & finite
    nats = nats + jnp.where(finite, chosen, 0.0)
  any_ = jnp.any(there, axis=-1)
  # Rows without answers get one that costs nothing, so that no NaN arises.
  nats = jnp.where(there, nats, jnp.where(any_[:, None], -jnp.inf, 0.0))
  return jnp.where(any_, -jax.nn.logsumexp(nats, axis=-1), 0.0)


class Spans(NamedTuple):
  """The best spans of every row, the best first.

  Attributes:
    start: `[B, K]` int32, the first token.
    end: `[B, K]` int32, the last token, included.
    score: `[B, K]` float32, the sum of both logits; -inf where there are fewer.

  Example:
    >>> from jaxattn.models import answers
    >>> answers.Spans._fields
    ('start', 'end', 'score')

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 4.2.
  """

  start: jax.Array
  end: jax.Array
  score: jax.Array


def best_spans(
  start: jax.Array, end: jax.Array, *, max_length: int, num_spans: int = 1
) -> Spans:
  """The spans with the largest sum of the logits of start and end.

  Time and memory grow with `T * max_length`, not with the square of T.

  Args:
    start: `[B, T]` logits, -inf where no answer may start.
    end: `[B, T]` logits.
    max_length: tokens of a span, at most; static.
    num_spans: K, static.

  Returns:
    The spans, which may overlap. Equal scores go by start, then by length.

  Raises:
    ValueError: if shapes or options do not fit.

  Example:
    >>> from jaxattn.models import answers
    >>> start, end = jnp.array([[0.0, 5.0, 1.0]]), jnp.array([[9.0, 0.0, 2.0]])
    >>> found = answers.best_spans(start, end, max_length=2)
    >>> found.start.tolist(), found.end.tolist(), found.score.tolist()
    ([[0]], [[0]], [[9.0]])

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 4.2.
  """
  _check_logits(start, end)
  batch, length = start.shape
  if max_length < 1 or num_spans < 1:
    raise ValueError(
      "max_length and num_spans must be at least 1, got "
      f"{max_length} and {num_spans}."
    )
  reach = min(max_length, length)
  end = jnp.pad(
    end.astype(jnp.float32),
    ((0, 0), (0, reach - 1)),
    constant_values=-jnp.inf,
  )
  ends = jnp.stack([end[:, i : i + length] for i in range(reach)], axis=-1)
  scores = start.astype(jnp.float32)[..., None] + ends
  scores = scores.reshape(batch, length * reach)
  found = min(num_spans, length * reach)
  score, index = jax.lax.top_k(scores, found)
  first = (index // reach).astype(jnp.int32)
  last = first + (index % reach).astype(jnp.int32)
  # What is not there names the first token, and never one past the end.
  first, last = (jnp.where(jnp.isneginf(score), 0, x) for x in (first, last))
  more = ((0, 0), (0, num_spans - found))
  return Spans(
    jnp.pad(first, more),
    jnp.pad(last, more),
    jnp.pad(score, more, constant_values=-jnp.inf),
  )


def _check_bool(name: str, value: jax.Array, shape: tuple[int, ...]) -> None:
  if value.shape != shape or value.dtype != jnp.bool_:
    raise ValueError(
      f"{name} must be bool{shape}, got {value.dtype}{value.shape}."
    )


def _check_logits(start: jax.Array, end: jax.Array) -> None:
  if start.ndim != 2 or start.shape != end.shape or not start.shape[1]:
    raise ValueError(
      "start and end must have one shape [B, T] with T at least 1, got "
      f"{start.shape} and {end.shape}."
    )
