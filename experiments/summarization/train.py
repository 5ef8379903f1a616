"""Summarization: configuration, loss, and a run from end to end."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import checkpoint
from experiments.common import encoders
from experiments.common import files
from experiments.common import loop
from experiments.common import report
from experiments.common import sharding
from experiments.common import tokens as tokens_lib
from experiments.common import transformers
from experiments.summarization import data
from experiments.summarization import rows as rows_lib
from experiments.summarization import summary
from jaxattn.models import beam_search
from jaxattn.models import decoder
from jaxattn.models import encoder_decoder

# Fields that encoder and decoder share.
_SHARED = (
  "vocab_size",
  "width",
  "num_heads",
  "num_kv_heads",
  "mlp_width",
  "norm",
  "activation",
  "use_bias",
  "qk_norm",
  "layer_norm_eps",
  "dropout",
  "remat",
  "dtype",
)


@dataclasses.dataclass
class Config(encoders.EncoderConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  corpus: str = "docstrings"  # docstrings, papers, folder.
  path: str = ""  # Of the folder.
  train_articles: int = 0  # At most; 0: all.
  tokenizer: str = "bpe"  # bytes, bpe, or the path of a .json or .model.
  vocab_size: int = 8192  # Of bpe, which is trained on the training texts.
  length: int = 512  # Tokens of an article that are read; the rest is cut.
  target_length: int = 64  # Tokens of a summary, its end included.
  # Method and positions are the encoder's; the decoder attends to everything,
  # and learns its positions.
  decoder_layers: int = 2
  # Text at the end.
  num_beams: int = 4
  length_penalty: float = 0.8  # alpha of Wu et al.; 0 favours short texts.
  no_repeat_ngram: int = 3  # 0 for no limit.
  min_length: int = 0  # Tokens before which no summary ends.
  eval_articles: int = 100  # Written and scored at the end, at most; 0: all.
  watched_articles: int = 128  # Whose loss is watched, at most; 0: all.
  lead_sentences: int = 0  # Of the floors; 0: as many as summaries have.


def check(config: Config) -> None:
  """Raises UserError for options that would fail only after training."""
  loop.check(config)
  for name in ("length", "target_length", "decoder_layers", "num_beams"):
    if getattr(config, name) < 1:
      raise files.UserError(
        f"--config.{name} must be positive, got {getattr(config, name)}."
      )
  for name in (
    "train_articles",
    "length_penalty",
    "no_repeat_ngram",
    "min_length",
    "eval_articles",
    "watched_articles",
    "lead_sentences",
    "seed",
  ):
    if getattr(config, name) < 0:
      raise files.UserError(
        f"--config.{name} must not be negative, got {getattr(config, name)}."
      )
  if config.min_length > config.target_length:
    raise files.UserError(
      f"--config.min_length {config.min_length} must not exceed "
      f"--config.target_length {config.target_length}."
    )
  make_model(config, 257)


def make_model(
  config: Config, vocab_size: int
) -> encoder_decoder.EncoderDecoder:
  """The model of a configuration; UserError where options do not fit."""
  source = encoders.model_config(
    config, vocab_size=vocab_size, length=config.length
  )
  shared: dict[str, Any] = {name: getattr(source, name) for name in _SHARED}
  try:
    target = decoder.DecoderConfig(
      num_layers=config.decoder_layers,
      positions="learned",
      max_length=config.target_length,
      cross_attention=True,
      **shared,
    )
    model = encoder_decoder.EncoderDecoder(
      encoder_decoder.EncoderDecoderConfig(encoder=source, decoder=target)
    )
    shape = jax.ShapeDtypeStruct((1, config.length), jnp.int32)
    short = jax.ShapeDtypeStruct((1, config.target_length), jnp.int32)
    jax.eval_shape(model.init, jax.random.key(0), shape, short)
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(f"the model cannot be built: {error}") from error
  return model


def loss_sums(
  model: encoder_decoder.EncoderDecoder,
  params: Any,
  carried: Any,
  batch: Any,
  rng: jax.Array | None,
  *,
  train: bool,
) -> tuple[jax.Array, jax.Array, Any]:
  """Nats of the summaries of a batch, their tokens, and collections."""
  logits, carried = model.apply(
    {"params": params, **carried},
    batch["source"],
    batch["inputs"],
    source_mask=encoders.padding(batch["valid"]),
    train=train,
    rngs=transformers.draws(rng),
    mutable=list(carried),
  )
  nats = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits, batch["targets"]
  )
  weights = batch["weights"]
  nats = jnp.where(weights > 0, nats * weights, 0.0)
  return jnp.sum(nats), jnp.sum(weights), dict(carried)


def written(
  config: Config,
  model: encoder_decoder.EncoderDecoder,
  tokenizer: tokens_lib.Tokenizer,
  variables: Any,
  rows: rows_lib.Rows,
  count: int,
) -> list[str]:
  """Summaries of the first `count` rows, by beam search."""
  end, found = tokenizer.separator, []
  for batch in rows.batches(min(8, count), count):
    beams = beam_search.beam_search(
      model,
      variables,
      jnp.asarray(batch["source"]),
      start_id=end,
      eos_id=end,
      max_new_tokens=config.target_length,
      num_beams=config.num_beams,
      alpha=config.length_penalty,
      no_repeat_ngram=config.no_repeat_ngram,
      min_new_tokens=config.min_length,
      source_mask=encoders.padding(jnp.asarray(batch["valid"])),
    )
    best = np.asarray(jax.device_get(beams.tokens))[:, 0]
    found += [tokenizer.decode(row) for row in best]
  return found[:count]


def identity(config: Config, articles: data.Articles) -> dict[str, Any]:
  """What must be equal for a run to be the same run: options and text."""
  parts = ("train", "valid", "test")
  found = {f"text.{part}": articles.digest(part) for part in parts}
  return checkpoint.identity(
    config, found | tokens_lib.digest(config.tokenizer)
  )


def make_task(
  config: Config,
  model: encoder_decoder.EncoderDecoder,
  rows: rows_lib.Rows,
  evaluate: Any,
) -> loop.Task:
  """What the loop needs to train `model` on `rows`."""

  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    return loss_sums(model, params, carried, batch, rng, train=True)

  source = jnp.zeros((1, min(config.length, 8)), jnp.int32)
  target = jnp.zeros((1, min(config.target_length, 8)), jnp.int32)
  return transformers.make_task(
    config,
    init=lambda rng: model.init(rng, source, target),
    loss=loss,
    rows=rows,
    length=config.length + config.target_length,
    evaluate=evaluate,
    loss_unit="bits/target token",
  )


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, writes summaries and reports; goes on where a run stopped.

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
  articles = data.load(config.corpus, config.path)
  if config.train_articles:
    articles = dataclasses.replace(
      articles, train=articles.train[: config.train_articles]
    )
  same = identity(config, articles)
  checkpoint.claim(workdir, same)
  done = report.finished(workdir, same)
  if done is not None:
    files.say(summary.verdict(done, workdir))
    return done
  files.say(summary.describe(articles))
  tokenizer = tokens_lib.make(
    config.tokenizer,
    [f"{a.text}\n{a.summary}".encode() for a in articles.train],
    vocab_size=config.vocab_size,
    workdir=workdir,
  )
  sizes = config.length, config.target_length
  rows = {
    part: rows_lib.Rows(getattr(articles, part), tokenizer, *sizes)
    for part in ("train", "valid", "test")
  }
  count = min(config.eval_articles or len(rows["test"]), len(rows["test"]))
  scored = articles.test[:count]
  floors = summary.floors_of(articles, scored, config.lead_sentences)
  model = make_model(config, tokenizer.vocab_size)

  def sums(params: Any, carried: Any, batch: Any) -> Any:
    return loss_sums(model, params, carried, batch, None, train=False)[:2]

  totals = transformers.Totals(sums, mesh)
  size = config.batch_size // config.accumulate

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    watched = rows["valid"].batches(size, config.watched_articles)
    nats, weight = totals(params, carried, watched)
    return {"valid_bits_per_token": float(nats / weight / np.log(2))}

  files.say("compiling the training step, then training")
  task = make_task(config, model, rows["train"], evaluate)
  result = loop.train(config, task, workdir)
  variables = {"params": result.state["params"], **result.state["carried"]}
  files.say(f"writing summaries of {count:,} held-out articles")
  texts = written(config, model, tokenizer, variables, rows["test"], count)
  return summary.write(
    config, same, workdir, articles, scored, floors, result, texts
  )
