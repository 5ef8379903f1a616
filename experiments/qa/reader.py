"""The model that reads, its loss, and its answers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.common import encoders
from experiments.common import sharding
from experiments.common import transformers
from experiments.qa import rows as rows_lib
from jaxattn.models import answers
from jaxattn.models import encoder
from jaxattn.models.layers import longformer


class Reader(nn.Module):
  """An encoder, and heads for spans and types of answers.

  Attributes:
    cfg: of the encoder.
    num_types: of answers; 0 where all are spans.
    dropout: rate before the heads.

  Example:
    >>> cfg = encoder.EncoderConfig(
    ...     vocab_size=9, width=16, num_heads=2, num_layers=1,
    ...     type_vocab_size=2)
    >>> tokens = jnp.zeros((1, 8), jnp.int32)
    >>> out, _ = Reader(cfg).init_with_output(jax.random.key(0), tokens)
    >>> out.start.shape
    (1, 8)

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 4.2;
  Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 6.1.
  """

  cfg: encoder.EncoderConfig
  num_types: int = 0
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    batch: dict[str, jax.Array] | None = None,
    *,
    train: bool = False,
  ) -> answers.SpanLogits:
    """Logits of rows `tokens [B, T]`; `batch` as of `rows.Rows`."""
    if batch is None:
      batch = {"valid": jnp.ones(tokens.shape, bool)}
    mask = encoders.padding(batch["valid"])
    options: dict[str, Any] = {"type_ids": batch.get("types")}
    if takes_globals(self.cfg) and "globals" in batch:
      options["global_positions"] = batch["globals"]
    if options["type_ids"] is None:
      options["type_ids"] = jnp.zeros_like(tokens)
    x = encoder.Encoder(self.cfg, name="encoder")(
      tokens, mask=mask, train=train, **options
    )
    head = answers.SpanHead(
      num_types=self.num_types,
      dropout=self.dropout,
      dtype=self.cfg.dtype,
      name="answers",
    )
    allowed = batch.get("allowed", batch["valid"])
    return head(x, allowed, mask=mask, train=train)


def takes_globals(cfg: encoder.EncoderConfig) -> bool:
  """Whether the question's tokens can see and be seen by all.

  Args:
    cfg: of the encoder.

  Returns:
    Whether every method is a static pattern, as they need.

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150.
  """
  return all(longformer.is_pattern(m) for m in cfg.layer_methods())


def loss(
  model: Reader, params: Any, carried: Any, batch: Any, rng: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
  """Sum of the loss over rows, their number, and the model's collections.

  Args:
    model: that reads.
    params: its parameters.
    carried: its other collections.
    batch: of `rows.Rows`.
    rng: for dropout and for methods that draw.

  Returns:
    Nats of spans, and of types where the model has these; rows; collections.

  Source: `jaxattn.models.answers.span_loss`.
  """
  logits, carried = model.apply(
    {"params": params, **carried},
    batch["tokens"],
    batch,
    train=True,
    rngs=transformers.draws(rng),
    mutable=list(carried),
  )
  nats = answers.span_loss(logits.start, logits.end, batch["spans"])
  if logits.types is not None:
    nats += optax.losses.softmax_cross_entropy_with_integer_labels(
      logits.types, batch["kind"]
    )
  return jnp.sum(nats), jnp.float32(nats.shape[0]), dict(carried)


@dataclasses.dataclass(frozen=True)
class Predictions:
  """The answers of a model.

  Attributes:
    texts: question id -> answer; "" says that there is none.
    windows: rows that were read.
  """

  texts: dict[str, str]
  windows: int


class Predictor:
  """Finds the best answer of every question over all its windows.

  Windows are compared by how much more likely their best span is than the
  first token, which says that the answer is not there.

  Args:
    model: that reads.
    mesh: over which rows are split.
    batch_size: rows at once, over all processes.
    max_answer: tokens of an answer, at most.
    may_be_none: whether a question may have no answer; else the best span is
      taken whatever the first token says.
  """

  def __init__(
    self,
    model: Reader,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    max_answer: int,
    may_be_none: bool,
  ):
    self._batch_size, self._may_be_none = batch_size, may_be_none
    self._sharding = sharding.of_rows(mesh)

    def best(params: Any, carried: Any, batch: Any) -> dict[str, jax.Array]:
      logits, _ = model.apply(
        {"params": params, **carried},
        batch["tokens"],
        batch,
        mutable=list(carried),
      )
      none = logits.start[:, 0] + logits.end[:, 0]
      inside = jnp.arange(logits.start.shape[1]) > 0
      found = answers.best_spans(
        jnp.where(inside, logits.start, -jnp.inf),
        jnp.where(inside, logits.end, -jnp.inf),
        max_length=max_answer,
      )
      kind = jnp.zeros(none.shape, jnp.int32)
      if logits.types is not None:
        kind = jnp.argmax(logits.types, axis=-1)
      return {
        "row": batch["row"],
        "first": found.start[:, 0],
        "last": found.end[:, 0],
        "score": found.score[:, 0] - none,
        "kind": kind,
      }

    self._best = jax.jit(best, out_shardings=sharding.replicated(mesh))

  def __call__(
    self, params: Any, carried: Any, rows: rows_lib.Rows
  ) -> Predictions:
    """The answers to all questions of `rows`."""
    share = slice(jax.process_index(), None, jax.process_count())
    best: dict[int, float] = {}
    texts = {}
    for batch in rows.batches(self._batch_size):
      local = {name: x[share] for name, x in batch.items()}
      placed = sharding.put_rows(local, self._sharding)
      out = jax.tree.map(np.asarray, self._best(params, carried, placed))
      for i, row in enumerate(out["row"]):
        if row < 0:
          continue
        window, score = rows.windows[row], float(out["score"][i])
        number = window.question
        if score <= best.get(number, -np.inf):
          continue
        best[number] = score
        texts[rows.questions[number].question.id] = self._text(
          rows, window, {name: x[i] for name, x in out.items()}
        )
    return Predictions(texts, len(rows))

  def _text(self, rows: rows_lib.Rows, window: Any, found: Any) -> str:
    kind = rows_lib.KINDS[int(found["kind"])]
    if kind != "span":
      return kind
    if self._may_be_none and found["score"] < 0:
      return ""
    return rows.text(window, int(found["first"]), int(found["last"]))
