"""Masked language modelling: configuration, loss, and a run from end to end."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from experiments.mlm import forms
from experiments.mlm import hiding
from experiments.mlm import summary

Form = forms.EncoderForm | forms.EtcForm


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
  # Model; the rest of it stands in `encoders.EncoderConfig`.
  model: str = "encoder"  # encoder, or etc: two streams and the CPC loss.
  etc_radius: int = 84  # How far tokens of etc see to each side.
  etc_lines: int = 32  # Lines of a row that have a global token.
  cpc_weight: float = 0.2  # Of the CPC loss.
  cpc_rate: float = 0.1  # Share of the lines that are hidden for it.
  cpc_lines: int = 2  # At most, in a row.
  cpc_length: int = 64  # Tokens of a hidden line that are encoded alone.


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
  for name in ("cpc_weight", "cpc_rate"):
    if not 0 <= getattr(config, name) <= 1:
      raise files.UserError(
        f"--config.{name} must lie in [0, 1], got {getattr(config, name)}."
      )
  for name in ("etc_radius", "etc_lines", "cpc_lines", "cpc_length"):
    if getattr(config, name) < 1:
      raise files.UserError(
        f"--config.{name} must be positive, got {getattr(config, name)}."
      )
  if config.model == "etc" and config.cpc_length > config.length:
    raise files.UserError(
      f"--config.cpc_length {config.cpc_length} must not be more than "
      f"--config.length {config.length}."
    )
  forms.make(config, hiding.Hider(tokens_lib.Bytes()))


class Evaluator:
  """Scores of a model on what is hidden of held-out rows.

  Args:
    form: of the model.
    hide: hides tokens.
    mesh: over which rows are split.
    batch_size: rows at once, over all processes.
  """

  def __init__(
    self,
    form: Form,
    hide: hiding.Hider,
    mesh: jax.sharding.Mesh,
    batch_size: int,
  ):
    self._batch_size = batch_size
    self._mesh = mesh
    sizes = jnp.asarray(hide.tokenizer.characters(), jnp.float32)

    def sums(params: Any, carried: Any, batch: Any) -> Any:
      hidden = hide(batch["keys"], batch)
      logits, _ = form.logits(params, carried, batch, hidden, None, train=False)
      counts = hidden.weights * batch["counts"][:, None]
      right = jnp.argmax(logits, axis=-1) == hidden.targets
      return {
        "nats": jnp.sum(forms.nats_of(logits, hidden) * counts),
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
  return checkpoint.identity(
    config, corpus.digests() | tokens_lib.digest(config.tokenizer)
  )


def make_task(
  config: Config,
  form: Form,
  hide: hiding.Hider,
  rows: rows_lib.PackedRows,
  evaluate: Any,
) -> loop.Task:
  """What the loop needs to train a model on `rows`."""

  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    hide_rng, rng = jax.random.split(rng)
    keys = jax.random.split(hide_rng, batch["inputs"].shape[0])
    return form.loss(params, carried, batch, hide(keys, batch), rng)

  return transformers.make_task(
    config,
    init=form.init,
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
  form = forms.make(config, hide)
  form.check(len(tokens["train"].starts))
  floors = summary.floors_of(
    hide, tokens["train"], held["test"], config.floors_train_bytes
  )
  rows = config.batch_size // config.accumulate
  measure = Evaluator(form, hide, mesh, rows)
  watched = held["valid"].thin(config.eval_rows)

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    found = measure(params, carried, watched)
    return {f"valid_{name}": value for name, value in found.items()}

  files.say("compiling the training step, then training")
  task = make_task(config, form, hide, held["train"].rows, evaluate)
  result = loop.train(config, task, workdir)
  params, carried = result.state["params"], result.state["carried"]
  files.say("evaluating on the held-out text")
  scores = {"test": measure(params, carried, held["test"])}
  scores["valid"] = {
    name.removeprefix("valid_"): value
    for name, value in result.evaluation.items()
  }

  def predict(batch: Any, hidden: Any) -> jax.Array:
    return form.logits(params, carried, batch, hidden, None, train=False)[0]

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
