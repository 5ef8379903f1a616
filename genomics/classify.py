"""Labels of sequences and of bases: rows, models, loss and predictions."""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.common import data as rows_lib
from experiments.common import encoders
from experiments.common import files
from experiments.common import loop
from experiments.common import sharding
from experiments.common import transformers
from genomics import alphabet
from genomics import embed
from genomics import tokenizers
from jaxattn.models import encoder
from jaxattn.models import heads

OBJECTIVES = ("classes", "outputs", "bases")


@dataclasses.dataclass
class ClassifierConfig(encoders.EncoderConfig):
  """What every experiment with labelled DNA has."""

  tokenizer: str = "nucleotide"  # nucleotide, kmer:K, a path of a .model.
  length: int = 302  # Tokens in a row, [CLS] and [SEP] included.
  pooling: str = "mean"  # mean, first (which is [CLS]).
  both_strands: bool = False  # Learn from both; the mean of both at the end.
  positive_weight: float = 1.0  # Of positives in the loss of yes or no.
  data_seed: int = 0  # Of negatives and windows that are drawn.


class Source(Protocol):
  """Sequences with labels, by random access."""

  def __len__(self) -> int:
    """How many there are."""
    ...

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and label."""
    ...


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Sequences and labels that are in memory.

  Attributes:
    codes: sequences of codes.
    labels: `[n, ...]`; `[n, length]` for labels of bases.

  Example:
    >>> len(Arrays(np.zeros((2, 3), np.uint8), np.zeros(2, np.int32)))
    2

  Source: none.
  """

  codes: Any
  labels: Any

  def __len__(self) -> int:
    return len(self.codes)

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    return self.codes[index], self.labels[index]


class Rows:
  """Sequences as rows [CLS] tokens [SEP] and padding, with their labels.

  With both strands there are twice as many rows, those of the second half being
  the reverse complements: so that it works with every tokenizer.

  Args:
    source: sequences and labels.
    tokenizer: of the rows.
    length: tokens in a row.
    objective: one of `OBJECTIVES`; with `bases` each base is a token.
    both_strands: whether the reverse complements are rows too.
    turn_labels: how labels of bases change on the other strand, by label.

  Raises:
    UserError: if a sequence is too long, or bases are not tokens.

  Example:
    >>> source = Arrays(np.zeros((1, 3), np.uint8), np.array([1]))
    >>> Rows(source, tokenizers.NucleotideTokenizer(), 6)[0]["inputs"].tolist()
    [1, 5, 5, 5, 2, 0]

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805.
  """

  def __init__(
    self,
    source: Source,
    tokenizer: tokenizers.Tokenizer,
    length: int,
    *,
    objective: str = "classes",
    both_strands: bool = False,
    turn_labels: np.ndarray | None = None,
  ):
    if objective == "bases" and tokenizer.name != "nucleotide":
      raise files.UserError(
        "labels of bases need --config.tokenizer=nucleotide, got "
        f"{tokenizer.name!r}."
      )
    self._source, self._tokenizer, self._length = source, tokenizer, length
    self._objective, self._both = objective, both_strands
    self._turn = turn_labels

  def __len__(self) -> int:
    return len(self._source) * (2 if self._both else 1)

  def __getitem__(self, index: int) -> rows_lib.Batch:
    at = int(index) % len(self._source)
    codes, label = self._source[at]
    turned = int(index) >= len(self._source)
    return self.row(codes, label, turned=turned)

  def row(
    self, codes: np.ndarray, label: np.ndarray, *, turned: bool
  ) -> rows_lib.Batch:
    """One row, of either strand."""
    if turned:
      codes = alphabet.reverse_complement(codes)
      if self._objective == "bases":
        label = label[::-1] if self._turn is None else self._turn[label[::-1]]
    tokens = self._tokenizer.encode(codes)
    ids = np.concatenate([[tokenizers.CLS], tokens.ids, [tokenizers.SEP]])
    if len(ids) > self._length:
      raise files.UserError(
        f"a sequence of {len(codes)} bases has {len(ids)} tokens with [CLS] "
        f"and [SEP], more than --config.length {self._length}. Raise it."
      )
    inputs, valid = encoders.padded(ids, self._length, tokenizers.PAD)
    row = {"inputs": inputs, "valid": valid}
    if self._objective == "bases":
      row["labels"] = np.zeros(self._length, np.int32)
      row["labels"][1 : 1 + len(label)] = label
      row["weights"] = np.zeros(self._length, np.float32)
      row["weights"][1 : 1 + len(label)] = tokens.known
    else:
      row["labels"] = np.asarray(label, np.int32)
      row["weights"] = np.ones((), np.float32)
    return row

  def batches(
    self, batch_size: int, *, turned: bool = False
  ) -> Iterator[rows_lib.Batch]:
    """All sequences, in order, on one strand; the last batch is filled up."""
    for low in range(0, len(self._source), batch_size):
      found = []
      for index in range(low, low + batch_size):
        at = min(index, len(self._source) - 1)
        row = self.row(*self._source[at], turned=turned)
        if index >= len(self._source):
          row["weights"] = row["weights"] * 0
        found.append(row)
      yield {name: np.stack([x[name] for x in found]) for name in found[0]}


class Classifier(nn.Module):
  """An encoder with a head for rows or for tokens.

  Attributes:
    cfg: the shape of the encoder.
    outputs: logits of a row, or of a token.
    pooling: of rows: `mean` or `first`; `none` for tokens.
  """

  cfg: encoder.EncoderConfig
  outputs: int
  pooling: Any = "mean"

  def setup(self) -> None:
    """Makes the layers."""
    self.encoder = encoder.Encoder(self.cfg)
    form = {"dropout": self.cfg.dropout, "dtype": self.cfg.dtype}
    if self.pooling == "none":
      self.head = heads.TokenHead(num_outputs=self.outputs, **form)
    else:
      self.head = heads.ClassificationHead(
        num_classes=self.outputs, pooling=self.pooling, **form
      )

  def __call__(
    self, tokens: jax.Array, valid: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Logits `[B, outputs]` or `[B, T, outputs]` in float32."""
    mask = encoders.padding(valid)
    x = self.encoder(tokens, mask=mask, train=train)
    if self.pooling == "none":
      return self.head(x, train=train)
    return self.head(x, mask=mask, train=train)  # pyrefly: ignore


def make_model(
  config: ClassifierConfig, vocab_size: int, outputs: int, objective: str
) -> Classifier:
  """The model of a configuration, which takes its rows.

  Args:
    config: of the run.
    vocab_size: number of token ids.
    outputs: logits.
    objective: one of `OBJECTIVES`.

  Returns:
    The model.

  Raises:
    UserError: if options do not fit.
  """
  loop.check(config)
  if config.pooling not in ("mean", "first"):
    raise files.UserError(
      f"--config.pooling must be mean or first, got {config.pooling!r}."
    )
  if config.positive_weight <= 0:
    raise files.UserError(
      "--config.positive_weight must be positive, got "
      f"{config.positive_weight}."
    )
  cfg = encoders.model_config(
    config, vocab_size=vocab_size, length=config.length
  )
  pooling = "none" if objective == "bases" else config.pooling
  model = Classifier(cfg, outputs, pooling)
  tokens = jax.ShapeDtypeStruct((1, config.length), jnp.int32)
  valid = jax.ShapeDtypeStruct((1, config.length), jnp.bool_)
  try:
    jax.eval_shape(model.init, jax.random.key(0), tokens, valid)
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(
      f"method {config.method!r} does not take padded rows of --config.length "
      f"{config.length}: {error}"
    ) from error
  return model


def _nats(
  objective: str, logits: jax.Array, labels: jax.Array, weight: float
) -> jax.Array:
  """The loss of each row, or of each token."""
  if objective != "outputs":
    return optax.losses.softmax_cross_entropy_with_integer_labels(
      logits, labels
    )
  wanted = labels.astype(jnp.float32)
  nats = optax.losses.sigmoid_binary_cross_entropy(logits, wanted)
  return jnp.mean(nats * jnp.where(labels > 0, weight, 1.0), axis=-1)


def make_task(
  config: ClassifierConfig,
  model: Classifier,
  rows: Rows,
  objective: str,
  evaluate: Callable[[Any, Any], dict[str, float]],
) -> loop.Task:
  """What the loop needs to train on labelled rows.

  Args:
    config: of the run.
    model: to train.
    rows: to learn from.
    objective: one of `OBJECTIVES`.
    evaluate: as of `loop.Task`.

  Returns:
    The task.
  """

  def init(rng: jax.Array) -> Any:
    tokens = jnp.zeros((1, 8), jnp.int32)
    return model.init(rng, tokens, jnp.ones((1, 8), bool))

  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    logits, new = model.apply(
      {"params": params, **carried},
      batch["inputs"],
      batch["valid"],
      train=True,
      rngs=transformers.draws(rng),
      mutable=list(carried),
    )
    weight = config.positive_weight
    nats = _nats(objective, logits, batch["labels"], weight)
    weights = batch["weights"]
    nats = jnp.where(weights > 0, nats * weights, 0.0)
    return jnp.sum(nats), jnp.sum(weights), dict(new)

  units = {"bases": "bits/base", "outputs": "bits/output"}
  return transformers.make_task(
    config,
    init=init,
    loss=loss,
    rows=rows,
    length=config.length,
    evaluate=evaluate,
    loss_unit=units.get(objective, "bits/row"),
    loss_scale=1 / math.log(2),
  )


class Predictor:
  """Logits of a model for all sequences of a source.

  Args:
    model: the model.
    mesh: over which rows are split.
    batch_size: rows at once, over all processes.
    both_strands: whether to take the mean over both.
    turn_outputs: for logits of bases, which of them takes whose place on the
      other strand.
  """

  def __init__(
    self,
    model: Classifier,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    *,
    both_strands: bool = False,
    turn_outputs: np.ndarray | None = None,
  ):
    def logits(params: Any, carried: Any, batch: Any) -> Any:
      return model.apply(
        {"params": params, **carried}, batch["inputs"], batch["valid"]
      )

    self._logits = jax.jit(logits, out_shardings=sharding.replicated(mesh))
    self._rows = sharding.of_rows(mesh)
    self._size, self._both = batch_size, both_strands
    self._turn = turn_outputs
    self._tokens = model.pooling == "none"

  def _strand(
    self, params: Any, carried: Any, rows: Rows, turned: bool
  ) -> Iterator[tuple[np.ndarray, rows_lib.Batch]]:
    count = jax.process_count()
    share = slice(jax.process_index(), None, count)
    order = np.concatenate(
      [np.arange(self._size)[i::count] for i in range(count)]
    )
    for batch in rows.batches(self._size, turned=turned):
      mine = {name: x[share] for name, x in batch.items()}
      placed = sharding.put_rows(mine, self._rows)
      found = np.asarray(self._logits(params, carried, placed))
      yield found[np.argsort(order)], batch

  def batches(
    self, params: Any, carried: Any, rows: Rows
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits and labels of some rows after the other, of real ones only."""
    plain = self._strand(params, carried, rows, False)
    other = self._strand(params, carried, rows, True) if self._both else None
    for logits, batch in plain:
      if other is not None:
        again, there = next(other)
        if self._tokens:
          again = _turned(again, there["valid"], self._turn)
        logits = (logits + again) / 2
      weights = batch["weights"] > 0
      yield logits[weights], batch["labels"][weights]

  def __call__(
    self, params: Any, carried: Any, rows: Rows
  ) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of all rows; of known bases, if these have labels."""
    found = list(self.batches(params, carried, rows))
    return tuple(np.concatenate(x) for x in zip(*found, strict=True))  # pyrefly: ignore


def _turned(
  logits: np.ndarray, valid: np.ndarray, outputs: np.ndarray | None
) -> np.ndarray:
  """Logits of bases on the other strand, at the places of this one."""
  out = np.zeros_like(logits)
  for i, size in enumerate(valid.sum(1)):
    out[i, :size] = logits[i, :size][::-1]
  return out if outputs is None else out[..., outputs]


def encoder_features(
  model: Classifier | heads.MaskedLanguageModel,
  variables: Any,
  tokenizer: tokenizers.Tokenizer,
  length: int,
  *,
  kind: str = "mean",
) -> Callable[[list[np.ndarray]], np.ndarray]:
  """What `genomics.embed.export` calls: vectors of windows from an encoder.

  Args:
    model: with an encoder.
    variables: its parameters and other collections.
    tokenizer: of its rows.
    length: tokens in a row.
    kind: `mean` over the bases, or `first`, the vector of [CLS].

  Returns:
    From codes of windows to `[n, D]`.
  """
  source = jax.jit(
    lambda tokens, valid: model.apply(
      variables,
      tokens,
      mask=encoders.padding(valid),
      method=lambda m, *x, **k: m.encoder(*x, **k),
    )
  )

  def vectors(codes: list[np.ndarray]) -> np.ndarray:
    rows = Rows(Arrays(codes, np.zeros(len(codes))), tokenizer, length)
    found = []
    for i, row in enumerate(rows.batches(1)):
      h = np.asarray(source(row["inputs"], row["valid"]), np.float32)[0]
      tokens = tokenizer.encode(codes[i])
      bases = embed.per_base(h[1 : 1 + len(tokens.ids)], tokens)
      found.append(h[0] if kind == "first" else bases.mean(0))
    return np.stack(found)

  return vectors
