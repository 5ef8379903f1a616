"""Paragraph retrieval: an answer that stands some hops from the question."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.common import files
from experiments.common import methods
from experiments.synthetic import task as task_lib
from jaxattn.models import encoder
from jaxattn.models import etc
from jaxattn.models import heads
from jaxattn.models.layers import etc as etc_layers

_WIDTH, _HEADS, _FILLERS = 64, 4, 16
# Name -> whether paragraphs have global tokens of their own.
_ETC = {"etc": True, "etc_flat": False}


@dataclasses.dataclass(frozen=True)
class ParagraphRetrieval:
  """Rows of paragraphs that name each other, and a question.

  A paragraph starts with its name and holds, anywhere, a pointer to the name of
  another paragraph and an answer; the rest is filler. Names are drawn anew for
  every row. There is a question for each number of hops, and all name the same
  paragraph; after `hops - 1` pointers from there stands the answer to the last,
  which is what counts. The others are learned, too. All paragraphs are alike,
  so that a model that does not follow the names knows at most which answers a
  row holds.

  Attributes:
    paragraphs: in a row.
    tokens: of a paragraph, at least 3.
    hops: from the question to the answer: 1 is the paragraph that it names.
    names: how many there are to draw from.
    answers: how many there are.
    layers: of the model.
    read: tokens of a row that the model sees, the first ones; 0 for all. With
      fewer, it is cut off as models of a short length are.

  Raises:
    UserError: if the numbers do not fit together.

  Example:
    >>> task = ParagraphRetrieval(paragraphs=4, tokens=4)
    >>> task.draw(np.random.default_rng(0), 2)["tokens"].shape
    (2, 16)

  Source: the structured inputs of Ainslie et al., 2020,
  https://arxiv.org/abs/2004.08483, section 3.3, in small.
  """

  paragraphs: int = 16
  tokens: int = 16
  hops: int = 2
  names: int = 16
  answers: int = 8
  layers: int = 4
  read: int = 0
  metric = "accuracy"
  lower_is_better = False

  def __post_init__(self) -> None:
    for name, low in (
      ("paragraphs", 2),
      ("tokens", 3),
      ("hops", 1),
      ("names", self.paragraphs),
      ("answers", 2),
      ("layers", 1),
      ("read", 0),
    ):
      if getattr(self, name) < low:
        raise files.UserError(
          f"--config.task_options.{name} must be at least {low}, got "
          f"{getattr(self, name)}."
        )
    if self.read > self.length:
      raise files.UserError(
        f"--config.task_options.read must be at most {self.length}, the tokens "
        f"of a row, got {self.read}; 0 reads all."
      )

  @property
  def seen(self) -> int:
    """Tokens of a row that the model sees."""
    return self.read or self.length

  @property
  def length(self) -> int:
    """Tokens in a row."""
    return self.paragraphs * self.tokens

  @property
  def vocab_size(self) -> int:
    """Names, pointers, questions, answers, fillers, and a global token."""
    return self._fillers + _FILLERS + 1

  @property
  def _fillers(self) -> int:
    return (2 + self.hops) * self.names + self.answers

  def draw(self, rng: np.random.Generator, rows: int) -> task_lib.Batch:
    """Draws `tokens [rows, length]`, `question` and `answer [rows, hops]`."""
    shape = (rows, self.paragraphs)
    fillers = self._fillers
    text = rng.integers(fillers, fillers + _FILLERS, (*shape, self.tokens))
    name = np.argsort(rng.random((rows, self.names)), axis=1)
    name = name[:, : self.paragraphs]
    # Any other one: in a cycle, to see who points here would rule out much.
    other = rng.integers(1, self.paragraphs, shape)
    follow = (np.arange(self.paragraphs) + other) % self.paragraphs
    payload = rng.integers(0, self.answers, shape)
    places = np.argsort(rng.random((*shape, self.tokens - 1)), axis=2) + 1
    text[..., 0] = name
    pointer = self.names + np.take_along_axis(name, follow, axis=1)
    answers = fillers - self.answers + payload
    for at, what in ((0, pointer), (1, answers)):
      where = places[..., at : at + 1]
      np.put_along_axis(text, where, what[..., None], axis=2)
    asked = rng.integers(0, self.paragraphs, (rows, 1))
    hop = np.arange(self.hops)
    question = (2 + hop) * self.names + np.take_along_axis(name, asked, axis=1)
    found = []
    for _ in hop:
      found.append(np.take_along_axis(payload, asked, axis=1))
      asked = np.take_along_axis(follow, asked, axis=1)
    return {
      "tokens": text.reshape(rows, self.length).astype(np.int32),
      "question": question.astype(np.int32),
      "answer": np.concatenate(found, axis=1).astype(np.int32),
    }

  def make_model(
    self, method: str, options: dict[str, Any], *, dtype: Any
  ) -> nn.Module:
    """An ETC model, or an encoder with the method of that name."""
    if method in _ETC:
      if self.read:
        raise files.UserError(
          f"method {method!r} reads whole paragraphs: leave "
          "--config.task_options.read at 0."
        )
      return EtcReader(self, _etc_config(self, method, options, dtype))
    if method not in methods.METHODS:
      raise files.UserError(
        f"unknown method {method!r} of paragraph_retrieval; known: "
        f"{', '.join([*_ETC, *sorted(methods.METHODS)])}."
      )
    sizes = methods.Sizes(self.seen + self.hops, self.layers, _HEADS)
    return Reader(
      encoder.EncoderConfig(
        vocab_size=self.vocab_size,
        width=_WIDTH,
        num_layers=self.layers,
        num_heads=_HEADS,
        methods=methods.make(method, sizes, options),
        norm="pre",
        max_length=self.seen + self.hops,
        dtype=dtype,
      ),
      self.answers,
      self.seen,
    )

  def measure(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The loss in nats, and whether the likeliest last answer is right."""
    logits, answer = jax.nn.log_softmax(outputs), batch["answer"]
    nats = -jnp.take_along_axis(logits, answer[..., None], axis=2)[..., 0]
    right = jnp.argmax(logits[:, -1], axis=1) == answer[:, -1]
    return jnp.mean(nats, axis=1), right.astype(jnp.float32)

  def floors(self) -> dict[str, float]:
    """Expected accuracy of answers that need no names."""
    rows = self.draw(np.random.default_rng(0), 4096)
    count = np.zeros((4096, self.answers))
    first = self._fillers - self.answers
    for i in range(self.answers):
      count[:, i] = np.sum(rows["tokens"] == first + i, axis=1)
    often = float(np.mean(count.max(axis=1))) / self.paragraphs
    return {"any answer": 1 / self.answers, "most frequent of a row": often}


class Reader(nn.Module):
  """An encoder over the questions and the paragraphs; answers from the first.

  The questions are the only global tokens of methods that have any.
  """

  cfg: encoder.EncoderConfig
  num_answers: int
  seen: int

  @nn.compact
  def __call__(self, batch: Any, *, train: bool = False) -> jax.Array:
    """`[rows, hops, answers]` logits."""
    asked = batch["question"]
    tokens = jnp.concatenate([asked, batch["tokens"][:, : self.seen]], axis=1)
    x = encoder.Encoder(self.cfg)(tokens, train=train)
    head = heads.TokenHead(num_outputs=self.num_answers)
    return head(x[:, : asked.shape[1]], train=train)


class EtcReader(nn.Module):
  """An ETC model; questions are global, and paragraphs may be too."""

  task: ParagraphRetrieval
  cfg: etc.EtcModelConfig

  @nn.compact
  def __call__(self, batch: Any, *, train: bool = False) -> jax.Array:
    """`[rows, hops, answers]` logits."""
    rows, paragraphs = batch["tokens"].shape[0], self.task.paragraphs
    structured, hops = self.cfg.encoder.max_distance is not None, self.task.hops
    global_ = batch["question"]
    structure = None
    if structured:
      ids = jnp.arange(paragraphs, dtype=jnp.int32) + hops
      ids = jnp.repeat(ids, self.task.tokens)[None]
      summary = jnp.full((rows, paragraphs), self.task.vocab_size - 1)
      global_ = jnp.concatenate([global_, summary.astype(jnp.int32)], axis=1)
      sees_all = jnp.arange(paragraphs + hops)[None] < hops
      structure = etc.etc_labels.EtcStructure(
        sentence_ids=jnp.broadcast_to(ids, batch["tokens"].shape),
        hard_global_to_long=True,
        sees_all=jnp.broadcast_to(sees_all, global_.shape),
      )
    _, x = etc.EtcModel(self.cfg)(
      batch["tokens"], global_, structure, train=train
    )
    head = heads.TokenHead(num_outputs=self.task.answers)
    return head(x[:, :hops], train=train)


def _etc_config(
  task: ParagraphRetrieval, method: str, options: dict[str, Any], dtype: Any
) -> etc.EtcModelConfig:
  known = {f.name for f in dataclasses.fields(etc_layers.EtcConfig)} - {"dtype"}
  strange = sorted(options.keys() - known)
  if strange:
    raise files.UserError(
      f"method {method!r} has no option {strange[0]!r}; it has: "
      f"{', '.join(sorted(known))}."
    )
  fields: dict[str, Any] = {
    "width": _WIDTH,
    "num_layers": task.layers,
    "num_heads": _HEADS,
    "radius": task.tokens // 2,
    "max_distance": 8 if _ETC[method] else None,
    "norm": "pre",
    "kernel_stddev": _WIDTH**-0.5,
    "dropout": 0.0,
    "dtype": dtype,
    **options,
  }
  try:
    return etc.EtcModelConfig(
      vocab_size=task.vocab_size,
      max_positions=0 if _ETC[method] else task.length,
      encoder=etc_layers.EtcConfig(**fields),
    )
  except ValueError as error:
    raise files.UserError(f"method {method!r}: {error}") from error
