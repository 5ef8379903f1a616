"""Language modelling: configuration, loss, and a run from end to end."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxattn
from experiments.common import checkpoint
from experiments.common import data as rows_lib
from experiments.common import files
from experiments.common import loop
from experiments.common import methods
from experiments.common import sharding
from experiments.common import tokens as tokens_lib
from experiments.lm import data as corpora
from experiments.lm import summary
from jaxattn.models import decoder
from jaxattn.models import generation
from jaxattn.models import sparse_transformer


@dataclasses.dataclass
class Config(loop.LoopConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  # Text.
  corpus: str = "stdlib"  # See docs/language_modelling.md.
  path: str = ""  # Of enwik8, text8, file, folder.
  train_bytes: int = 0  # About how much of the training text; 0: all.
  held_out_bytes: int = 0  # The same for valid and for test.
  tokenizer: str = "bytes"  # bytes, bpe, or the path of a tokenizer.json.
  vocab_size: int = 8192  # Of bpe, which is trained on the training text.
  length: int = 256  # Tokens in a row.
  eval_stride: int = 128  # New predictions of a sliding evaluation window.
  eval_windows: int = 0  # At most, while training; 0: all. The end uses all.
  floors_train_bytes: int = 20_000_000  # That Markov models count; 0: all.
  # Model.
  model: str = "gpt"  # gpt, or sparse_transformer: its form of the decoder.
  method: str = "dense"  # See experiments/common/methods.py.
  method_options: dict[str, Any] = dataclasses.field(default_factory=dict)
  width: int = 256
  num_layers: int = 4
  num_heads: int = 4
  num_kv_heads: int = 0  # 0: as num_heads.
  mlp_width: int = 0  # 0: 4 * width.
  positions: str = "rotary"  # rotary, learned, relative, none.
  qk_norm: bool = False
  tie_embeddings: bool = True
  dropout: float = 0.0
  remat: str = "none"  # none, full, dots.
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
  sizes = methods.Sizes(config.length, config.num_layers, config.num_heads)
  layer_methods = methods.make(config.method, sizes, config.method_options)
  options: dict[str, Any] = {
    "vocab_size": vocab_size,
    "width": config.width,
    "num_layers": config.num_layers,
    "num_heads": config.num_heads,
    "num_kv_heads": config.num_kv_heads or None,
    "mlp_width": config.mlp_width or None,
    "methods": layer_methods,
    "positions": config.positions,
    "max_length": config.length,
    "qk_norm": config.qk_norm,
    "tie_embeddings": config.tie_embeddings,
    "dropout": config.dropout,
    "remat": config.remat,
    "dtype": jnp.dtype(config.dtype),
  }
  if config.model == "sparse_transformer":
    column = config.method_options.get("stride", math.isqrt(config.length))
    options |= sparse_transformer.form((-(-config.length // column), column))
  elif config.model != "gpt":
    raise files.UserError(
      f"--config.model must be gpt or sparse_transformer, got {config.model!r}."
    )
  try:
    return decoder.Decoder(decoder.DecoderConfig(**options))
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(f"the model cannot be built: {error}") from error


def loss_sums(
  model: decoder.Decoder,
  params: Any,
  carried: Any,
  batch: Any,
  rng: jax.Array | None,
  *,
  train: bool,
) -> tuple[jax.Array, jax.Array, Any]:
  """Sums the loss of a batch over what counts.

  Args:
    model: the decoder.
    params: its parameters.
    carried: its other collections, `{}` if it has none.
    batch: of `experiments.common.data`; `weights` is 0 at padding and where the
      next token belongs to another document.
    rng: for dropout and methods that draw; None without.
    train: whether these, and the carried state, are active.

  Returns:
    The sum in nats, the sum of the weights, and the collections.
  """
  mask, positions = jaxattn.CAUSAL, None
  if "segment_ids" in batch:
    mask = jaxattn.packed(batch["segment_ids"], causal=True, pad_id=0)
    if model.cfg.positions in ("rotary", "learned", "axes"):
      positions = batch["positions"]
  rngs = {}
  if rng is not None:
    names = ("dropout", "attention")
    rngs = dict(zip(names, jax.random.split(rng, 2), strict=True))
  logits, carried = model.apply(
    {"params": params, **carried},
    batch["inputs"],
    mask=mask,
    positions=positions,
    train=train,
    rngs=rngs,
    mutable=list(carried),
  )
  nats = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits, batch["targets"]
  )
  # Where, not a product: what a masked row holds must not matter.
  weights = batch["weights"]
  nats = jnp.where(weights > 0, nats * weights, 0.0)
  return jnp.sum(nats), jnp.sum(weights), dict(carried)


class Evaluator:
  """Bits per byte of a model on held-out documents.

  Args:
    model: the decoder.
    mesh: over which rows are split.
    batch_size: rows at once, over all processes.
  """

  def __init__(
    self, model: decoder.Decoder, mesh: jax.sharding.Mesh, batch_size: int
  ):
    self._sharding = sharding.of_rows(mesh)
    self._batch_size = batch_size

    def sums(params: Any, carried: Any, batch: Any) -> Any:
      return loss_sums(model, params, carried, batch, None, train=False)[:2]

    self._sums = jax.jit(sums, out_shardings=sharding.replicated(mesh))

  def __call__(
    self, params: Any, carried: Any, windows: rows_lib.Windows
  ) -> float:
    """Bits per byte over all of `windows`."""
    share = slice(jax.process_index(), None, jax.process_count())
    nats = weight = 0.0
    for batch in windows.batches(self._batch_size):
      batch = {name: x[share] for name, x in batch.items()}
      placed = sharding.put_rows(batch, self._sharding)
      loss, count = self._sums(params, carried, placed)
      nats, weight = nats + float(loss), weight + float(count)
    tokens = windows.tokens
    predicted = len(tokens.ids) - len(tokens.starts)
    return nats / weight / math.log(2) * predicted / tokens.num_bytes


def make_tokenizer(
  config: Config, train: corpora.Split, workdir: pathlib.Path
) -> tokens_lib.Tokenizer:
  """The tokenizer of a run; a BPE is trained once and kept in the workdir."""
  if config.tokenizer == "bytes":
    return tokens_lib.Bytes()
  if config.tokenizer != "bpe":
    return tokens_lib.Bpe(pathlib.Path(config.tokenizer))
  path = workdir / "tokenizer.json"
  if files.first_process() and not path.exists():
    files.say(f"training a BPE of {config.vocab_size:,} tokens")
    tokens_lib.train_bpe(train.texts, vocab_size=config.vocab_size, path=path)
  files.barrier("tokenizer")
  return tokens_lib.Bpe(path)


def identity(config: Config, corpus: corpora.Corpus) -> dict[str, Any]:
  """What must be equal for a run to be the same run: options and text."""
  found = dataclasses.asdict(config)
  for part in ("train", "valid", "test"):
    found[f"text.{part}"] = getattr(corpus, part).digest()
  if config.tokenizer not in ("bytes", "bpe"):
    path = pathlib.Path(config.tokenizer)
    files.read_bytes(path, "Check --config.tokenizer.")
    found["text.tokenizer"] = files.sha256(path)[:16]
  return json.loads(json.dumps(found))  # As it comes back from a file.


def check_lengths(config: Config, model: decoder.Decoder) -> None:
  """Raises UserError if the model does not take rows of `config.length`."""
  tokens = jax.ShapeDtypeStruct((1, config.length), jnp.int32)
  try:
    jax.eval_shape(model.init, jax.random.key(0), tokens)
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(
      f"method {config.method!r} does not take rows of --config.length "
      f"{config.length}: {error}"
    ) from error


def make_task(
  config: Config,
  model: decoder.Decoder,
  train: rows_lib.Tokens,
  evaluate: Any,
) -> loop.Task:
  """What the loop needs to train `model` on `train`."""

  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    return loss_sums(model, params, carried, batch, rng, train=True)

  example = jnp.zeros((1, min(config.length, 8)), jnp.int32)
  return loop.Task(
    init=lambda rng: model.init(rng, example),
    loss=loss,
    batches=rows_lib.batches(
      rows_lib.PackedRows(train, config.length),
      batch_size=config.batch_size,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    ),
    evaluate=evaluate,
    tokens_per_row=config.length,
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
  done = summary.finished(workdir, same)
  if done is not None:
    files.say(summary.verdict(done, workdir))
    return done
  files.say(summary.describe(corpus))
  tokenizer = make_tokenizer(config, corpus.train, workdir)
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
  floors = summary.floors_of(corpus, config.floors_train_bytes, workdir)
  measure = Evaluator(model, mesh, config.batch_size // config.accumulate)
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
