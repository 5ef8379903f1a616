"""Language modelling: configuration, loss, and a run from end to end."""

import dataclasses
import math
import pathlib
from typing import Any

import jax

from experiments.common import checkpoint
from experiments.common import data as rows_lib
from experiments.common import decoders
from experiments.common import files
from experiments.common import loop
from experiments.common import report
from experiments.common import sharding
from experiments.common import tokens as tokens_lib
from experiments.common import transformers
from experiments.lm import data as corpora
from experiments.lm import summary
from jaxattn.models import decoder
from jaxattn.models import generation
from jaxattn.models import sparse_transformer


@dataclasses.dataclass
class Config(decoders.ModelConfig):
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
  eval_stride: int = 128  # New predictions of a sliding evaluation window.
  eval_windows: int = 0  # At most, while training; 0: all. The end uses all.
  floors_train_bytes: int = 20_000_000  # That Markov models count; 0: all.
  # Model; the rest of it stands in `decoders.ModelConfig`.
  model: str = "gpt"  # gpt, or sparse_transformer: its form of the decoder.
  # Text at the end.
  sample_tokens: int = 256
  temperature: float = 0.8
  top_p: float = 0.95


def check(config: Config) -> None:
  """Raises UserError for options that would fail only after training."""
  loop.check(config)
  for name in (
    "train_bytes",
    "held_out_bytes",
    "floors_train_bytes",
    "eval_windows",
    "sample_tokens",
    "seed",
  ):
    if getattr(config, name) < 0:
      raise files.UserError(
        f"--config.{name} must not be negative, got {getattr(config, name)}."
      )
  try:
    generation.check_sampling(config.temperature, None, config.top_p)
  except ValueError as error:
    raise files.UserError(f"--config.{error}") from error
  make_model(config, 257)


def make_model(config: Config, vocab_size: int) -> decoder.Decoder:
  """Makes the decoder that a configuration describes."""
  form = {}
  if config.model == "sparse_transformer":
    column = config.method_options.get("stride", math.isqrt(config.length))
    form = sparse_transformer.form((-(-config.length // column), column))
  elif config.model != "gpt":
    raise files.UserError(
      f"--config.model must be gpt or sparse_transformer, got {config.model!r}."
    )
  return decoders.make_model(
    config, vocab_size=vocab_size, length=config.length, form=form
  )


class Evaluator:
  """Bits per byte of a model on held-out documents.

  Args:
    model: the decoder.
    mesh: over which rows are split.
    batch_size: rows at once, over all processes.
    chunk: as of `decoders.loss_sums`.
  """

  def __init__(
    self,
    model: decoder.Decoder,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    chunk: int = 0,
  ):
    self._nats = decoders.Evaluator(model, mesh, chunk)
    self._batch_size = batch_size

  def __call__(
    self, params: Any, carried: Any, windows: rows_lib.Windows
  ) -> float:
    """Bits per byte over all of `windows`."""
    nats = self._nats(params, carried, windows.batches(self._batch_size))
    tokens = windows.tokens
    predicted = len(tokens.ids) - len(tokens.starts)
    return nats / math.log(2) * predicted / tokens.num_bytes


def identity(config: Config, corpus: corpora.Corpus) -> dict[str, Any]:
  """What must be equal for a run to be the same run: options and text."""
  return checkpoint.identity(
    config, corpus.digests() | tokens_lib.digest(config.tokenizer)
  )


def check_lengths(config: Config, model: decoder.Decoder) -> None:
  """Raises UserError if the model does not take rows of `config.length`."""
  what = f"--config.length {config.length}"
  transformers.check_rows(config, model, config.length, what)


def check_masks(config: Config, train: rows_lib.Tokens) -> None:
  """Raises UserError if documents must be told apart and cannot be."""
  if config.join_documents or len(train.starts) < 2:
    return
  layer_methods = make_model(config, 257).cfg.layer_methods()
  transformers.check_segments(config, layer_methods)


def make_task(
  config: Config,
  model: decoder.Decoder,
  train: rows_lib.Tokens,
  evaluate: Any,
) -> loop.Task:
  """What the loop needs to train `model` on `train`."""
  rows = rows_lib.PackedRows(train, config.length, joined=config.join_documents)
  return decoders.make_task(config, model, rows, config.length, evaluate)


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
  tokens = {
    part: rows_lib.join(tokenizer, getattr(corpus, part).texts)
    for part in ("train", "valid", "test")
  }
  model = make_model(config, tokenizer.vocab_size)
  check_lengths(config, model)
  windows = {
    part: rows_lib.windows(
      tokens[part], length=config.length, stride=config.eval_stride
    )
    for part in ("valid", "test")
  }
  check_masks(config, tokens["train"])
  floors = summary.floors_of(corpus, config.floors_train_bytes, workdir)
  rows = config.batch_size // config.accumulate
  measure = Evaluator(model, mesh, rows, config.loss_chunk)
  watched = windows["valid"].thin(config.eval_windows)

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    return {"valid_bits_per_byte": measure(params, carried, watched)}

  files.say("compiling the training step, then training")
  task = make_task(config, model, tokens["train"], evaluate)
  result = loop.train(config, task, workdir)
  params, carried = result.state["params"], result.state["carried"]
  files.say("evaluating on the held-out text")
  scores = {
    "test": measure(params, carried, windows["test"]),
    "valid": result.evaluation["valid_bits_per_byte"],
  }
  samples = summary.sample(
    config, model, {"params": params, **carried}, tokenizer, tokens["test"]
  )
  return summary.write(
    config, same, workdir, corpus, tokens, floors, result, scores, samples
  )
