"""Classification: configuration, and a run from end to end."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp

from experiments.classification import classifier
from experiments.classification import data
from experiments.classification import floors
from experiments.classification import summary
from experiments.common import checkpoint
from experiments.common import encoders
from experiments.common import files
from experiments.common import loop
from experiments.common import report
from experiments.common import sharding
from experiments.common import tokens as tokens_lib
from experiments.common import transformers


@dataclasses.dataclass
class Config(encoders.EncoderConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  # Documents.
  corpus: str = "reviews"  # reviews, newsgroups, stdlib, folder.
  path: str = ""  # Of folder, such as aclImdb.
  train_documents: int = 0  # To learn from, at most; 0: all.
  tokenizer: str = "bytes"  # bytes, bpe, or the path of a .json or .model.
  vocab_size: int = 8192  # Of bpe, which is trained on the training part.
  length: int = 1024  # Tokens in a row; what is beyond is cut off.
  # Model; the rest of it stands in `encoders.EncoderConfig`.
  pooling: str = "first"  # first, mean.


def check(config: Config) -> None:
  """Raises UserError for options that would fail only after training."""
  loop.check(config)
  for name in ("train_documents", "seed"):
    if getattr(config, name) < 0:
      raise files.UserError(
        f"--config.{name} must not be negative, got {getattr(config, name)}."
      )
  if config.length < 2:
    raise files.UserError(
      f"--config.length must be at least 2, got {config.length}."
    )
  if config.pooling not in ("first", "mean"):
    raise files.UserError(
      f"--config.pooling must be 'first' or 'mean', got {config.pooling!r}."
    )


def make_model(
  config: Config, *, vocab_size: int, num_classes: int
) -> classifier.Classifier:
  """Makes the classifier that a configuration describes.

  Args:
    config: of the run.
    vocab_size: number of token ids.
    num_classes: of the corpus.

  Returns:
    The model, which takes rows of `config.length`.

  Raises:
    UserError: if the options do not fit together.

  Example:
    >>> make_model(Config(), vocab_size=9, num_classes=2).pooling
    'first'

  Source: `experiments.common.encoders`.
  """
  cfg = encoders.model_config(
    config, vocab_size=vocab_size, length=config.length
  )
  pooling: Any = config.pooling
  model = classifier.Classifier(cfg, num_classes, pooling)
  what = f"{config.length} tokens"
  transformers.check_rows(config, model, config.length, what)
  return model


def _identity(config: Config, corpus: data.Corpus) -> dict[str, Any]:
  parts = ("train", "valid", "test")
  found = {f"documents.{p}": getattr(corpus, p).digest() for p in parts}
  return checkpoint.identity(
    config, found | tokens_lib.digest(config.tokenizer)
  )


def _task(
  config: Config, model: Any, rows: data.Rows, evaluate: Any
) -> loop.Task:
  """What the loop needs to train `model` on `rows`."""

  def loss(params: Any, carried: Any, batch: Any, rng: Any) -> Any:
    return classifier.loss(model, params, carried, batch, rng)

  example = jnp.zeros((1, config.length), jnp.int32)
  return transformers.make_task(
    config,
    init=lambda rng: model.init(rng, example),
    loss=loss,
    rows=rows,
    length=config.length,
    evaluate=evaluate,
    loss_unit="nats",
    loss_scale=1.0,
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
  corpus = data.load(
    config.corpus, path=config.path, train_documents=config.train_documents
  )
  same = _identity(config, corpus)
  make_model(config, vocab_size=300, num_classes=2)  # Before a BPE is trained.
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
  model = make_model(
    config,
    vocab_size=tokenizer.vocab_size,
    num_classes=len(corpus.classes),
  )
  rows = {
    part: data.Rows(getattr(corpus, part), tokenizer, config.length)
    for part in ("train", "valid", "test")
  }
  score = classifier.Evaluator(model, mesh)
  at_once = config.batch_size // config.accumulate

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    found = score(params, carried, rows["valid"].batches(at_once))
    return {f"valid_{name}": found[name] for name in ("nats", "accuracy")}

  task = _task(config, model, rows["train"], evaluate)
  files.say("compiling the training step, then training")
  result = loop.train(config, task, workdir)
  params, carried = result.state["params"], result.state["carried"]
  files.say("evaluating on the test documents, and fitting the floors")
  scores = score(params, carried, rows["test"].batches(at_once))
  return summary.write(
    config,
    same,
    workdir,
    corpus,
    floors.all_floors(corpus),
    result,
    scores | {"cut": rows["test"].cut},
  )
