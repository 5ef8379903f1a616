"""The models that read, and their loss."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxattn
from experiments.common import encoders
from experiments.common import transformers
from jaxattn.models import answers
from jaxattn.models import encoder
from jaxattn.models import etc
from jaxattn.models.layers import longformer

Batch = dict[str, jax.Array]


class Said(NamedTuple):
  """What a model says of rows.

  Attributes:
    spans: where answers stand; None where one of the candidates is chosen.
    candidates: `[B, C]` logits, or None.
    facts: `[B, S]` logits of sentences that lead to the answer, or None.
  """

  spans: answers.SpanLogits | None
  candidates: jax.Array | None = None
  facts: jax.Array | None = None


class Heads(nn.Module, kw_only=True):
  """Heads over what an encoder read, as the rows ask for.

  Rows with `candidates` have one of them chosen, by its tokens; others get
  spans, and the sentences of `ends` are told apart if `find_facts`.

  Attributes:
    num_types: of answers; 0 where all are spans.
    find_facts: whether to say which sentences lead to the answer.
    dropout: rate before each of the linear maps.
    dtype: of the computation.

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 6.2
  and appendix.
  """

  num_types: int = 0
  find_facts: bool = False
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    batch: Batch,
    mask: jaxattn.Mask,
    *,
    sentences: jax.Array | None = None,
    train: bool = False,
  ) -> Said:
    """Logits of `x [B, T, D]`; of sentences by `[B, S, D]`, if given."""
    kinds: dict[str, Any] = {"dropout": self.dropout, "dtype": self.dtype}
    if "candidates" in batch:
      choose = answers.MentionHead(name="candidates", **kinds)
      return Said(None, choose(x, batch["candidates"], train=train))
    spans = answers.SpanHead(num_types=self.num_types, name="spans", **kinds)
    found = spans(x, batch["allowed"], mask=mask, train=train)
    if not self.find_facts:
      return Said(found)
    facts = answers.MentionHead(name="facts", **kinds)
    places = batch["ends"]
    if sentences is not None:
      number = jnp.arange(places.shape[1], dtype=places.dtype)[:, None]
      x, places = sentences, jnp.where(places[..., :1] < 0, -1, number)
    return Said(found, None, facts(x, places, train=train))


class Reader(nn.Module):
  """An encoder with `Heads`.

  Attributes:
    cfg: of the encoder.
    heads: over what it read.

  Example:
    >>> from experiments.common import tokens
    >>> from experiments.qa import rows, squad
    >>> cfg = encoder.EncoderConfig(
    ...     vocab_size=257, width=16, num_heads=2, num_layers=1,
    ...     type_vocab_size=2)
    >>> ask = squad.Question("q", "Who?", (squad.Answer(0, "Bo"),))
    >>> found = rows.Rows([squad.Document("t", "Bo ran.", (ask,))],
    ...                   tokens.Bytes(), rows.Form(16, 0, 6))
    >>> batch = {name: x[None] for name, x in found[0].items()}
    >>> model, rng = Reader(cfg, Heads()), jax.random.key(0)
    >>> said, _ = model.init_with_output(rng, batch)
    >>> said.spans.start.shape
    (1, 16)

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 4.2;
  Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 6.1.
  """

  cfg: encoder.EncoderConfig
  heads: Heads

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> Said:
    """What is said of a `batch` of `rows.Rows`."""
    mask = encoders.padding(batch["valid"])
    options: dict[str, Any] = {"type_ids": batch["types"]}
    if takes_globals(self.cfg):
      options["global_positions"] = batch["globals"]
    x = encoder.Encoder(self.cfg, name="encoder")(
      batch["tokens"], mask=mask, train=train, **options
    )
    return self.heads(x, batch, mask, train=train)


class EtcReader(nn.Module):
  """An ETC model with `Heads`.

  The long input is the row. The global input is the question, with its
  candidates, and a token for every sentence; that of a sentence sees its own
  tokens only, those of the question see all. Facts are told by the sentences'
  global tokens.

  Attributes:
    cfg: of the model; its last token id is that of sentences.
    heads: over what it read.

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, sections 3.3
  and 4.2.
  """

  cfg: etc.EtcModelConfig
  heads: Heads

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> Said:
    """What is said of a `batch` of `rows.Rows` with sentences."""
    valid, asked = batch["valid"], batch["globals"]
    global_, structure = self._global(batch)
    types = jnp.where(jnp.arange(global_.shape[1]) < asked.shape[1], 2, 3)
    types = jnp.broadcast_to(types, global_.shape)
    long, summary = etc.EtcModel(self.cfg, name="encoder")(
      batch["tokens"],
      global_,
      structure,
      token_types=batch["types"],
      global_token_types=types,
      train=train,
    )
    return self.heads(
      long,
      batch,
      encoders.padding(valid),
      sentences=summary[:, asked.shape[1] :],
      train=train,
    )

  def _global(
    self, batch: Batch
  ) -> tuple[jax.Array, etc.etc_labels.EtcStructure]:
    """Ids of the global tokens, and who sees whom."""
    asked, there = batch["globals"], batch["globals"] >= 0
    ids = jnp.take_along_axis(batch["tokens"], jnp.maximum(asked, 0), axis=1)
    sentence = batch["ends"][..., 0] >= 0
    summary = jnp.full(sentence.shape, self.cfg.vocab_size - 1, ids.dtype)
    number = batch["sentences"]
    structure = etc.etc_labels.EtcStructure(
      long_valid=batch["valid"],
      global_valid=jnp.concatenate([there, sentence], axis=1),
      sentence_ids=jnp.where(number < 0, -1, number + asked.shape[1]),
      hard_global_to_long=True,
      sees_all=jnp.concatenate([there, jnp.zeros_like(sentence)], axis=1),
    )
    return jnp.concatenate([ids, summary], axis=1), structure


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
  model: Reader | EtcReader,
  params: Any,
  carried: Any,
  batch: Batch,
  rng: jax.Array,
  *,
  facts_weight: float = 1.0,
) -> tuple[jax.Array, jax.Array, Any]:
  """Sum of the loss over rows, their number, and the model's collections.

  Args:
    model: that reads.
    params: its parameters.
    carried: its other collections.
    batch: of `rows.Rows`.
    rng: for dropout and for methods that draw.
    facts_weight: of the nats of a sentence, beside those of the answer.

  Returns:
    Nats of spans or of the candidates, of types and of facts where the model
    has these; rows; collections.

  Source: `jaxattn.models.answers.span_loss`; Beltagy et al., 2020,
  https://arxiv.org/abs/2004.05150, appendix.
  """
  said, carried = model.apply(
    {"params": params, **carried},
    batch,
    train=True,
    rngs=transformers.draws(rng),
    mutable=list(carried),
  )
  nats = answer_nats(said, batch)
  if said.facts is not None:
    told = batch["facts"] >= 0
    logits = jnp.where(told, said.facts, 0.0)
    each = optax.losses.sigmoid_binary_cross_entropy(logits, batch["facts"])
    nats += facts_weight * jnp.sum(jnp.where(told, each, 0.0), axis=-1)
  return jnp.sum(nats), jnp.float32(nats.shape[0]), dict(carried)


def answer_nats(said: Said, batch: Batch) -> jax.Array:
  """`[B]` nats of the right candidate, or of spans and types."""
  if said.candidates is not None:
    logits = jax.nn.log_softmax(said.candidates)
    right = jnp.maximum(batch["chosen"], 0)
    nats = -jnp.take_along_axis(logits, right[:, None], axis=1)[:, 0]
    # Where no candidate is right there is nothing to learn.
    return jnp.where(batch["chosen"] < 0, 0.0, nats)
  assert said.spans is not None
  nats = answers.span_loss(said.spans.start, said.spans.end, batch["spans"])
  if said.spans.types is not None:
    nats += optax.losses.softmax_cross_entropy_with_integer_labels(
      said.spans.types, batch["kind"]
    )
  return nats
