"""Masked language modelling: configuration, loss, and a run from end to end."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxattn
from experiments.common import checkpoint
from experiments.common import data as rows_lib
from experiments.common import encoders
from experiments.common import files
from experiments.common import loop
from experiments.common import report
from experiments.common import sharding
from experiments.common import tokens as tokens_lib
from experiments.common import transformers
from experiments.lm import data as corpora
from experiments.mlm import hiding
from experiments.mlm import summary
from jaxattn.models import heads


@dataclasses.dataclass
class Config(encoders.EncoderConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  # Text.
  corpus: str = "stdlib"  # See docs/language_modelling.md.
  path: str = ""  # Of enwik8, text8, file, folder.
  train_bytes: int = 0  # About how much of the training text; 0: all.
  held_out_bytes: int = 0  # The same for valid and for test.
  tokenizer: str = "bytes"  # bytes, bpe, or the path of a .json or .model.
  vocab_size: int = 8192  # Of bpe, which is trained on the training text.
  length: int = 256  # Tokens in a row.
  join_documents: bool = False  # Whether those of a row see each other.
  rate: float = 0.15  # Share of the tokens that is hidden.
  whole_words: bool = True  # Whether words are hidden whole.
  eval_rows: int = 0  # At most, while training; 0: all. The end uses all.
  floors_train_bytes: int = 20_000_000  # That counts are made of; 0: all.


def check(config: Config) -> None:
  """Raises UserError for options that would fail only after training."""
  loop.check(config)
  for name in (
    "train_bytes",
    "held_out_bytes",
    "floors_train_bytes",
    "eval_rows",
    "seed",
  ):
    if getattr(config, name) < 0:
      raise files.UserError(
        f"--config.{name} must not be negative, got {getattr(config, name)}."
      )
  if not 0 < config.rate < 1:
    raise files.UserError(
      f"--config.rate must lie in (0, 1), got {config.rate}."
    )
  make_model(config, 258)


def make_model(config: Config, vocab_size: int) -> heads.MaskedLanguageModel:
  """Makes the model that a configuration describes."""
  return heads.MaskedLanguageModel(
    encoders.model_config(config, vocab_size=vocab_size, length=config.length)
  )


def logits_of(
  model: heads.MaskedLanguageModel,
  params: Any,
  carried: Any,
  batch: Any,
  hidden: Any,
  rng: jax.Array | None,
  *,
  train: bool,
) -> tuple[jax.Array, Any]:
  """Logits `[B, P, V]` of what is hidden, and the model's collections."""
  mask, positions = jaxattn.FULL, None
  if "segment_ids" in batch:
    mask = jaxattn.packed(batch["segment_ids"], causal=False, pad_id=0)
    if model.cfg.positions != "none":
      positions = batch["positions"]
  return model.apply(
    {"params": params, **carried},
    hidden.tokens,
    predict=hidden.places,
    mask=mask,
    positions=positions,
    train=train,
    rngs=transformers.draws(rng),
    mutable=list(carried),
  )


def nats_of(logits: jax.Array, hidden: Any) -> jax.Array:
  """Nats of every hidden token, `[B, P]`, 0 where there is none."""
  targets = jnp.where(hidden.weights, hidden.targets, 0)
  nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
  return jnp.where(hidden.weights, nats, 0.0)


class Evaluator:
  """Scores of a model on what is hidden of held-out rows.

  Args:
    model: to evaluate.
    hide: hides tokens.
    mesh: over which rows are split.
    batch_size: rows at once, over all processes.
  """

  def __init__(
    self,
    model: heads.MaskedLanguageModel,
    hide: hiding.Hider,
    mesh: jax.sharding.Mesh,
    batch_size: int,
  ):
    self._batch_size = batch_size
    self._mesh = mesh
    sizes = jnp.asarray(hide.tokenizer.characters(), jnp.float32)

    def sums(params: Any, carried: Any, batch: Any) -> Any:
      hidden = hide(batch["keys"], batch)
      logits, _ = logits_of(
        model, params, carried, batch, hidden, None, train=False
      )
      counts = hidden.weights * batch["counts"][:, None]
      right = jnp.argmax(logits, axis=-1) == hidden.targets
      return {
        "nats": jnp.sum(nats_of(logits, hidden) * counts),
        "tokens": jnp.sum(counts),
        "right": jnp.sum(right * counts),
        "characters": jnp.sum(sizes[hidden.targets] * counts),
      }

    self._totals = transformers.Totals(sums, mesh)

  def __call__(
    self, params: Any, carried: Any, held: hiding.HeldOut
  ) -> dict[str, float]:
    """Bits per character, perplexity and accuracy of hidden tokens."""

    def batches() -> Any:
      for batch in held.batches(self._batch_size):
        yield batch | {"keys": held.keys(batch)}

    total = self._totals(params, carried, batches())
    nats = total["nats"]
    return {
      "bits_per_character": float(nats / math.log(2) / total["characters"]),
      "perplexity": float(np.exp(nats / total["tokens"])),
      "accuracy": float(total["right"] / total["tokens"]),
    }


def identity(config: Config, corpus: corpora.Corpus) -> dict[str, Any]:
  """What must be equal for a run to be the same run: options and text."""
  found = dataclasses.asdict(config)
  for part in ("train", "valid", "test"):
    found[f"text.{part}"] = getattr(corpus, part).digest()
  found |= tokens_lib.digest(config.tokenizer)
  return json.loads(json.dumps(found))  # As it comes back from a file.


def make_task(
  config: Config,
  model: heads.MaskedLanguageModel,
  hide: hiding.Hider,
  rows: rows_lib.PackedRows,
  evaluate: Any,
) -> loop.Task:
  """What the loop needs to train `model` on `rows`."""

  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    hide_rng, rng = jax.random.split(rng)
    keys = jax.random.split(hide_rng, batch["inputs"].shape[0])
    hidden = hide(keys, batch)
    logits, carried = logits_of(
      model, params, carried, batch, hidden, rng, train=True
    )
    nats = nats_of(logits, hidden)
    return jnp.sum(nats), jnp.sum(hidden.weights), dict(carried)

  example = jnp.zeros((1, min(config.length, 8)), jnp.int32)
  return transformers.make_task(
    config,
    init=lambda rng: model.init(rng, example),
    loss=loss,
    rows=rows,
    length=config.length,
    evaluate=evaluate,
  )


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, evaluates and reports; goes on where an earlier run stopped.

  Args:
    config: of the run.
    workdir: for checkpoints, metrics and the report.

  Returns:
    What `report/results.json` holds.

  Raises:
    UserError: for anything that the user can mend.
  """
  check(config)
  mesh = sharding.make_mesh(config.mesh)
  corpus = corpora.load(
    config.corpus,
    config.path,
    held_out_bytes=config.held_out_bytes,
    train_bytes=config.train_bytes,
  )
  same = identity(config, corpus)
  checkpoint.claim(workdir, same)
  done = report.finished(workdir, same)
  if done is not None:
    files.say(summary.verdict(done, workdir))
    return done
  files.say(summary.describe(corpus))
  tokenizer = tokens_lib.make(
    config.tokenizer,
    corpus.train.texts,
    vocab_size=config.vocab_size,
    workdir=workdir,
  )
  hide = hiding.Hider(tokenizer, config.rate, config.whole_words)
  tokens, held = _rows(config, corpus, tokenizer)
  model = make_model(config, hide.vocab_size)
  transformers.check_rows(
    config, model, config.length, f"--config.length {config.length}"
  )
  _check_apart(config, model, tokens["train"])
  floors = summary.floors_of(
    hide, tokens["train"], held["test"], config.floors_train_bytes
  )
  rows = config.batch_size // config.accumulate
  measure = Evaluator(model, hide, mesh, rows)
  watched = held["valid"].thin(config.eval_rows)

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    found = measure(params, carried, watched)
    return {f"valid_{name}": value for name, value in found.items()}

  files.say("compiling the training step, then training")
  task = make_task(config, model, hide, held["train"].rows, evaluate)
  result = loop.train(config, task, workdir)
  params, carried = result.state["params"], result.state["carried"]
  files.say("evaluating on the held-out text")
  scores = {"test": measure(params, carried, held["test"])}
  scores["valid"] = {
    name.removeprefix("valid_"): value
    for name, value in result.evaluation.items()
  }

  def predict(batch: Any, hidden: Any) -> jax.Array:
    return logits_of(model, params, carried, batch, hidden, None, train=False)[
      0
    ]

  shown = summary.filled_in(hide, held["test"], predict)
  return summary.write(
    config, same, workdir, corpus, tokens, floors, result, scores, shown
  )


def _rows(
  config: Config, corpus: corpora.Corpus, tokenizer: tokens_lib.Tokenizer
) -> tuple[dict[str, rows_lib.Tokens], dict[str, hiding.HeldOut]]:
  """Each part's tokens, and its rows."""
  tokens, held = {}, {}
  for i, part in enumerate(("train", "valid", "test")):
    tokens[part] = rows_lib.join(tokenizer, getattr(corpus, part).texts)
    rows = rows_lib.PackedRows(
      tokens[part], config.length, joined=config.join_documents
    )
    held[part] = hiding.HeldOut(rows, np.arange(len(rows)), config.seed + i)
  return tokens, held


def _check_apart(
  config: Config, model: heads.MaskedLanguageModel, train: rows_lib.Tokens
) -> None:
  """Raises UserError if documents must be told apart and cannot be."""
  if config.join_documents or len(train.starts) < 2:
    return
  transformers.check_segments(config, model.cfg.layer_methods())
