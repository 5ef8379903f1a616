"""Question answering: configuration, and a run from end to end."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import checkpoint
from experiments.common import encoders
from experiments.common import files
from experiments.common import loop
from experiments.common import report
from experiments.common import sharding
from experiments.common import tokens as tokens_lib
from experiments.common import transformers
from experiments.qa import corpora
from experiments.qa import floors
from experiments.qa import metrics
from experiments.qa import predictor
from experiments.qa import reader
from experiments.qa import rows as rows_lib
from experiments.qa import summary


@dataclasses.dataclass
class Config(encoders.EncoderConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  # Questions.
  corpus: str = "needle"  # See docs/question_answering.md.
  train_path: str = ""  # Of corpora that are the user's files.
  valid_path: str = ""
  test_path: str = ""
  evidence: str = ""  # Folder of the pages of triviaqa.
  train_questions: int = 0  # To learn from, at most; 0: all.
  eval_questions: int = 0  # To watch while training, at most; 0: all.
  test_questions: int = 0  # For the result, at most; 0: all.
  join_paragraphs: bool = True  # Of SQuAD, into whole articles.
  needle_documents: int = 400  # To learn from.
  needle_held_out: int = 50  # For valid, and for test.
  needle_characters: int = 4800  # Of a document.
  needle_names: int = 16  # Modules to ask for.
  needles: int = 4  # In a document.
  # Rows.
  tokenizer: str = "bytes"  # bytes, bpe, or the path of a .json or .model.
  vocab_size: int = 1024  # Of bpe, which is trained on the documents.
  length: int = 512  # Tokens in a row.
  stride: int = 0  # Between windows; 0: documents are cut off.
  max_question: int = 32  # Tokens.
  max_answer: int = 30  # Tokens.
  max_candidates: int = 512  # Tokens of a question's candidates, if it has any.
  max_sentences: int = 64  # Of a window, for etc and supporting facts.
  empty_rate: float = 1.0  # Of windows that the answer is outside of.
  # Model.
  model: str = "encoder"  # encoder, or etc: two streams.
  etc_radius: int = 84  # How far tokens of etc see to each side.
  positions: str = "rotary"  # learned, sinusoidal, rotary, none.
  facts_weight: float = 1.0  # Of a sentence's nats beside the answer's.
  # Result.
  beyond: int = 512  # Scores apart for answers from this token on; 0: none.


def check(config: Config) -> None:
  """Raises UserError for options that would fail only after training."""
  loop.check(config)
  for name in (
    "train_questions",
    "eval_questions",
    "test_questions",
    "beyond",
    "facts_weight",
    "seed",
  ):
    if getattr(config, name) < 0:
      raise files.UserError(
        f"--config.{name} must not be negative, got {getattr(config, name)}."
      )
  for name in ("max_answer", "max_candidates", "max_sentences", "etc_radius"):
    if getattr(config, name) < 1:
      raise files.UserError(
        f"--config.{name} must be positive, got {getattr(config, name)}."
      )
  if config.model not in ("encoder", "etc"):
    raise files.UserError(
      f"--config.model must be encoder or etc, got {config.model!r}."
    )
  if not 0 <= config.empty_rate <= 1:
    raise files.UserError(
      f"--config.empty_rate must lie in [0, 1], got {config.empty_rate}."
    )
  if config.stride and not config.empty_rate:
    raise files.UserError(
      "--config.stride needs --config.empty_rate above 0: windows of one "
      "question are compared by what they say of having no answer."
    )
  make_form(config)


def make_form(
  config: Config, corpus: corpora.Corpus | None = None
) -> rows_lib.Form:
  """How rows are made, of a corpus if there is one already."""
  choose = corpus is not None and corpus.has_candidates()
  apart = config.model == "etc" or (corpus is not None and corpus.has_facts())
  return rows_lib.Form(
    config.length,
    config.stride,
    config.max_question,
    max_candidates=config.max_candidates if choose else 0,
    max_sentences=config.max_sentences if apart else 0,
  )


def make_model(
  config: Config, vocab_size: int, corpus: corpora.Corpus
) -> reader.Reader | reader.EtcReader:
  """Makes the model.

  Args:
    config: of the run.
    vocab_size: number of token ids.
    corpus: whose questions it answers.

  Returns:
    The model.

  Raises:
    UserError: if the options do not fit together.
  """
  etc = config.model == "etc"
  heads = reader.Heads(
    num_types=len(rows_lib.KINDS) if corpus.kinds() & {"yes", "no"} else 0,
    find_facts=corpus.has_facts(),
    dropout=config.dropout,
    dtype=jnp.dtype(config.dtype),
  )
  if etc:
    cfg = encoders.etc_config(config, vocab_size=vocab_size + 1)
    return reader.EtcReader(cfg, heads)
  cfg = encoders.model_config(
    config,
    vocab_size=vocab_size,
    length=config.length,
    form={"type_vocab_size": 2},
  )
  return reader.Reader(cfg, heads)


def identity(config: Config, corpus: corpora.Corpus) -> dict[str, Any]:
  """What must be equal for a run to be the same run: options and questions."""
  found = {f"questions.{part}": corpus.digest(part) for part in corpora.PARTS}
  return checkpoint.identity(
    config, found | tokens_lib.digest(config.tokenizer)
  )


def make_task(
  config: Config,
  model: reader.Reader | reader.EtcReader,
  rows: rows_lib.Rows,
  evaluate: Any,
) -> loop.Task:
  """What the loop needs to train on `rows`."""
  example = jax.tree.map(lambda x: x[None], rows[0])

  def init(rng: jax.Array) -> Any:
    return model.init(rng, example)

  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    weight = config.facts_weight
    return reader.loss(model, params, carried, batch, rng, facts_weight=weight)

  transformers.check_init(config, init, f"--config.length {config.length}")
  return transformers.make_task(
    config,
    init=init,
    loss=loss,
    rows=rows,
    length=config.length,
    evaluate=evaluate,
    loss_unit="bits/question",
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
  corpus = corpora.load(config)
  same = identity(config, corpus)
  checkpoint.claim(workdir, same)
  done = report.finished(workdir, same)
  if done is not None:
    files.say(summary.verdict(done, workdir))
    return done
  files.say(summary.describe(corpus))
  tokenizer = tokens_lib.make(
    config.tokenizer,
    sorted({d.text.encode() for d in corpus.train}),
    vocab_size=config.vocab_size,
    workdir=workdir,
  )
  rows = _rows(config, corpus, tokenizer)
  model = make_model(config, tokenizer.vocab_size, corpus)
  predict = predictor.Predictor(
    model,
    mesh,
    batch_size=config.batch_size // config.accumulate,
    max_answer=config.max_answer,
    may_be_none="none" in corpus.kinds(),
  )

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    said = predict(params, carried, rows["valid"])
    found = metrics.score(said.texts, rows["valid"].golds())
    return {"valid_exact": found.exact, "valid_f1": found.f1}

  files.say("compiling the training step, then training")
  task = make_task(config, model, rows["train"], evaluate)
  result = loop.train(config, task, workdir)
  files.say("answering the questions held out for the result")
  said = predict(result.state["params"], result.state["carried"], rows["test"])
  lows = floors.all_floors(corpora.thin(corpus.test, config.test_questions))
  return summary.write(config, same, workdir, corpus, rows, lows, result, said)


def _rows(
  config: Config, corpus: corpora.Corpus, tokenizer: tokens_lib.Tokenizer
) -> dict[str, rows_lib.Rows]:
  """The rows of each part; those to learn from are chosen."""
  limits = {"valid": config.eval_questions, "test": config.test_questions}
  form, rows = make_form(config, corpus), {}
  for part in corpora.PARTS:
    documents = corpora.thin(getattr(corpus, part), limits.get(part, 0))
    rows[part] = rows_lib.Rows(documents, tokenizer, form)
  rows["train"].learnable(config.empty_rate, config.seed)
  return rows
