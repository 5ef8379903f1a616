"""Language models of DNA: configuration, loss, and a run from end to end."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxattn
from experiments.common import encoders
from experiments.common import files
from experiments.common import loop
from experiments.common import sharding
from experiments.common import transformers
from genomics import corpus
from genomics import genome as genome_lib
from genomics import intervals
from genomics import markov
from genomics import places
from genomics import promoters
from genomics import results
from genomics import tokenizers
from genomics.pretrain import packed
from genomics.pretrain import rows as rows_lib
from jaxattn.models import heads

OBJECTIVES = ("masked", "causal")


@dataclasses.dataclass
class Config(encoders.EncoderConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  objective: str = "masked"  # masked, causal (each token by those before).
  genome: str = "fly_chr2R"  # See genomics/places.py.
  train: str = "chr2R:1-19032037"  # Regions, counted from 1.
  valid: str = "chr2R:19032038-19232037"
  test: str = "chr2R:19232038-21146708"
  tokenizer: str = "nucleotide"  # nucleotide, kmer:K, a path of a .model.
  bases: int = 510  # In a window.
  length: int = 512  # Tokens in a row, [CLS] and [SEP] included.
  max_unknown: float = 0.5  # Share of N above which windows are left out.
  both_strands: bool = True  # Learn from both.
  rate: float = 0.15  # Share of the bases that is hidden.
  span: float = 1.0  # Mean bases of a hidden run.
  repeat_weight: float = 1.0  # Of tokens in lower case, repeats, in the loss.
  eval_windows: int = 0  # Of valid and of test, at most; 0: all.
  floor_bases: int = 20_000_000  # That floors count in, at most.


@dataclasses.dataclass
class PackedConfig(Config):
  """A run whose rows hold several contigs that do not see each other.

  Contigs are cut at unknown bases; `bases` is what a row holds at most.
  """

  least_bases: int = 32  # Of a piece that is worth a place.


def check(config: Config) -> corpus.Masking:
  """The law by which bases are hidden; UserError for what cannot work."""
  loop.check(config)
  if config.objective not in OBJECTIVES:
    raise files.UserError(
      f"--config.objective must be one of {', '.join(OBJECTIVES)}, got "
      f"{config.objective!r}."
    )
  for name in ("bases", "floor_bases"):
    if getattr(config, name) < 1:
      raise files.UserError(
        f"--config.{name} must be positive, got {getattr(config, name)}."
      )
  if config.repeat_weight < 0:
    raise files.UserError(
      "--config.repeat_weight must not be negative, got "
      f"{config.repeat_weight}."
    )
  try:
    return corpus.Masking(rate=config.rate, span=config.span)
  except ValueError as error:
    raise files.UserError(f"--config: {error}") from error


def make_model(config: Config, vocab_size: int) -> heads.MaskedLanguageModel:
  """The model of a configuration, which takes its rows.

  Raises:
    UserError: if options do not fit.
  """
  cfg = encoders.model_config(
    config, vocab_size=vocab_size, length=config.length
  )
  model = heads.MaskedLanguageModel(cfg)
  tokens = jax.ShapeDtypeStruct((1, config.length), jnp.int32)
  names = ("segments", "positions") if isinstance(config, PackedConfig) else ()
  batch = dict.fromkeys(names, tokens)
  batch["valid"] = jax.ShapeDtypeStruct((1, config.length), jnp.bool_)

  def init(rng: jax.Array, tokens: jax.Array, batch: Any) -> Any:
    return model.init(rng, tokens, **_seen(config, batch))

  try:
    jax.eval_shape(init, jax.random.key(0), tokens, batch)
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(
      f"method {config.method!r} does not take {config.objective} rows of "
      f"--config.length {config.length}: {error}"
    ) from error
  return model


def _seen(config: Config, batch: Any) -> dict[str, Any]:
  """The mask of rows, and the positions of those with several contigs."""
  # Padding stands at the end, where no token before looks.
  causal = config.objective == "causal"
  mask = jaxattn.CAUSAL if causal else encoders.padding(batch["valid"])
  if "segments" not in batch:
    return {"mask": mask}
  ids = batch["segments"]
  found: dict[str, Any] = {
    "mask": dataclasses.replace(
      mask, query_segment_ids=ids, key_segment_ids=ids
    )
  }
  if config.positions != "none":
    found["positions"] = batch["positions"]
  return found


def sums_of(
  config: Config,
  model: heads.MaskedLanguageModel,
  masking: corpus.Masking,
  params: Any,
  carried: Any,
  batch: Any,
  keys: jax.Array,
  rng: jax.Array | None,
) -> tuple[dict[str, jax.Array], Any]:
  """Nats, tokens, right guesses and bases of what is predicted of a batch.

  Args:
    config: of the run.
    model: the model.
    masking: the law by which bases are hidden.
    params: of the model.
    carried: its other collections.
    batch: of `genomics.pretrain.rows`.
    keys: `[B]`, one a row, which decide what is hidden.
    rng: for dropout and methods that draw; None to evaluate.

  Returns:
    The sums by name, and the collections.
  """

  def hide(key: jax.Array, row: Any) -> corpus.Hidden:
    return corpus.mask_tokens(
      key,
      row["ids"],
      row["starts"],
      row["ends"],
      row["known"],
      vocab_size=model.cfg.vocab_size,
      length=config.bases,
      masking=masking,
    )

  if config.objective == "masked":
    hidden = jax.vmap(hide)(keys, batch)
    inputs, targets, chosen = hidden.shown, batch["ids"], hidden.guess
    spelled, repeat = chosen, batch["repeat"]
  else:
    inputs, chosen = batch["ids"], jnp.roll(batch["known"], -1, axis=1)
    targets = jnp.roll(batch["ids"], -1, axis=1)
    spelled, repeat = batch["known"], jnp.roll(batch["repeat"], -1, axis=1)

  def bases(chosen: jax.Array) -> jax.Array:
    cover = jax.vmap(lambda a, b, c: corpus.covered(a, b, c, config.bases))
    found = cover(batch["starts"], batch["ends"], chosen)
    return jnp.sum(found).astype(jnp.float32)

  logits, new = model.apply(
    {"params": params, **carried},
    inputs,
    **_seen(config, batch),
    train=rng is not None,
    rngs=transformers.draws(rng),
    mutable=list(carried),
  )
  nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
  nats = jnp.where(chosen, nats, 0.0)
  right = (jnp.argmax(logits, -1) == targets) & chosen
  weights = jnp.where(repeat, config.repeat_weight, 1.0) * chosen
  sums = {
    "weighted": jnp.sum(nats * weights),
    "weights": jnp.sum(weights),
    "nats": jnp.sum(nats),
    "tokens": jnp.sum(chosen).astype(jnp.float32),
    "right": jnp.sum(right).astype(jnp.float32),
    "bases": bases(spelled),
    "repeat_nats": jnp.sum(nats * repeat),
    "repeat_bases": bases(spelled & batch["repeat"]),
  }
  return sums, dict(new)


def evaluator(
  config: Config,
  model: heads.MaskedLanguageModel,
  masking: corpus.Masking,
  mesh: jax.sharding.Mesh,
) -> Callable[[Any, Any, rows_lib.Rows | packed.Rows], dict[str, float]]:
  """Scores on windows: the same is hidden of each at all times, as [MASK].

  Args:
    config: of the run.
    model: to evaluate.
    masking: of training; here nothing is kept or swapped.
    mesh: over which rows are split.

  Returns:
    From parameters, collections and rows to bits a base and accuracy.
  """
  all_masked = dataclasses.replace(masking, keep=0.0, swap=0.0)

  def sums(params: Any, carried: Any, batch: Any) -> Any:
    key = jax.random.key(1)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])
    found, _ = sums_of(
      config, model, all_masked, params, carried, batch, keys, None
    )
    return found

  totals = transformers.Totals(sums, mesh)

  def evaluate(
    params: Any, carried: Any, rows: rows_lib.Rows | packed.Rows
  ) -> dict[str, float]:
    batches = rows.batches(config.batch_size // config.accumulate)
    found = totals(params, carried, batches)
    bits, inside = found["nats"] / math.log(2), found["repeat_bases"]
    repeat = found["repeat_nats"] / math.log(2)
    parts = {
      "bits_per_base_in_repeats": float(repeat / max(inside, 1)),
      "bits_per_base_elsewhere": float(
        (bits - repeat) / max(found["bases"] - inside, 1)
      ),
    }
    return (parts if inside else {}) | {
      "bits_per_base": float(bits / max(found["bases"], 1)),
      "accuracy": float(found["right"] / max(found["tokens"], 1)),
      "bases_per_token": float(found["bases"] / max(found["tokens"], 1)),
    }

  return evaluate


@dataclasses.dataclass(frozen=True)
class Data:
  """A genome in parts.

  Attributes:
    genome: to read.
    regions: of each part.
    windows: of each part.
  """

  genome: genome_lib.Genome
  regions: dict[str, list[intervals.Interval]]
  windows: dict[str, list[intervals.Interval]]


def load(config: Config) -> Data:
  """The windows of each part, apart from each other.

  Raises:
    UserError: if regions share bases, or hold no window.
  """
  genome = places.genome(config.genome)
  split = {
    part: places.regions(getattr(config, part), genome)
    for part in promoters.PARTS
  }
  found, windows = {}, {}
  for part, regions in split.items():
    found[part] = [
      intervals.Interval(r.chrom, r.start, r.end or genome.lengths[r.chrom])
      for r in regions
    ]
    if isinstance(config, PackedConfig):
      all_of = packed.pieces(
        genome, found[part], _room(config), least=config.least_bases
      )
    else:
      all_of = corpus.windows(
        genome, found[part], config.bases, max_unknown=config.max_unknown
      )
    if part != "train" and config.eval_windows:
      step = -(-len(all_of) // config.eval_windows)
      all_of = all_of[::step]
    windows[part] = all_of
  windows = promoters.split_windows(
    [x for some in windows.values() for x in some], split
  )
  return Data(genome, found, windows)


def _room(config: Config) -> int:
  """Bases that a row holds, whatever the tokenizer."""
  return max(min(config.bases, config.length - 2), 1)


def make_rows(
  config: Config, data: Data, part: str, tokenizer: tokenizers.Tokenizer
) -> rows_lib.Rows | packed.Rows:
  """Rows of a part; of the train part on both strands if the run says so.

  Args:
    config: of the run.
    data: of `load`.
    part: train, valid or test.
    tokenizer: of the rows.

  Returns:
    The rows.
  """
  windows = data.windows[part]
  form = {"both_strands": config.both_strands and part == "train"}
  inputs = (data.genome, windows, tokenizer, config.length)
  if isinstance(config, PackedConfig):
    return packed.Rows(*inputs, bases=config.bases, **form)
  return rows_lib.Rows(*inputs, **form)


def floors_of(config: Config, data: Data) -> dict[str, float]:
  """Bits a base of Markov models on the windows of the test part."""

  def codes(part: list[intervals.Interval]) -> list[np.ndarray]:
    return [
      genome_lib.codes(data.genome, x.chrom, x.start, x.end) for x in part
    ]

  train, left = [], config.floor_bases
  for region in data.regions["train"]:
    size = min(region.length, left)
    if size > 0:
      piece = dataclasses.replace(region, end=region.start + size)
      train += codes([piece])
      left -= size
  test, found = codes(data.windows["test"]), {"uniform": 2.0}
  if config.objective == "causal":
    for order in (2, 8):
      model = markov.Causal(order, train)
      bits = np.concatenate([model.bits(x) for x in test])
      found[model.name] = float(bits.mean())
    return found
  for sides in (2, 4):
    neighbours = markov.Bidirectional(sides, train)
    bits = np.concatenate([neighbours.score(x)[0] for x in test])
    found[neighbours.name] = float(bits.mean())
  return found


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
  masking = check(config)
  tokenizer = tokenizers.make(config.tokenizer)
  model = make_model(config, tokenizer.vocab_size)
  mesh = sharding.make_mesh(config.mesh)
  data = load(config)
  sizes = {part: len(x) for part, x in data.windows.items()}
  rows = {
    part: make_rows(config, data, part, tokenizer) for part in data.windows
  }
  held = {
    part: results.digest([x["ids"] for x in map(some.__getitem__, _some(some))])
    for part, some in rows.items()
  }
  same, done = results.claim(
    config, workdir, {"tokenizer": tokenizer.name, "rows": held, "sizes": sizes}
  )
  if done is not None:
    return done
  floors = floors_of(config, data)
  files.say(
    "floors, bits per base: "
    + ", ".join(f"{k} {v:.3f}" for k, v in floors.items())
  )
  measure = evaluator(config, model, masking, mesh)

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    found = measure(params, carried, rows["valid"])
    return {f"valid_{name}": value for name, value in found.items()}

  task = _task(config, model, masking, rows["train"], evaluate)
  files.say("compiling the training step, then training")
  result = loop.train(config, task, workdir)
  scores = measure(
    result.state["params"], result.state["carried"], rows["test"]
  )
  return _report(
    config, same, workdir, result, scores, floors, tokenizer, sizes
  )


def _some(rows: rows_lib.Rows | packed.Rows) -> list[int]:
  """Up to a hundred rows that lie evenly among all."""
  return [int(i) for i in np.linspace(0, len(rows) - 1, min(len(rows), 100))]


def _task(
  config: Config,
  model: heads.MaskedLanguageModel,
  masking: corpus.Masking,
  rows: rows_lib.Rows | packed.Rows,
  evaluate: Any,
) -> loop.Task:
  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    hide_rng, rng = jax.random.split(rng)
    keys = jax.random.split(hide_rng, batch["ids"].shape[0])
    found, new = sums_of(
      config, model, masking, params, carried, batch, keys, rng
    )
    return found["weighted"], found["weights"], new

  example = jnp.zeros((1, min(config.length, 8)), jnp.int32)
  return transformers.make_task(
    config,
    init=lambda rng: model.init(rng, example),
    loss=loss,
    rows=rows,
    length=config.length,
    evaluate=evaluate,
  )


def _report(
  config: Config,
  same: dict[str, Any],
  workdir: pathlib.Path,
  result: loop.Result,
  scores: dict[str, float],
  floors: dict[str, float],
  tokenizer: tokenizers.Tokenizer,
  sizes: dict[str, int],
) -> dict[str, Any]:
  how = {
    "causal": "The length of a code: the bits of all tokens, each given those "
    "before it, over the known bases that they spell. It compares between "
    "tokenizers.",
    "masked": f"{config.rate:.0%} of bases are hidden, in runs of "
    f"{config.span:g} on average, with every token that touches one; the bits "
    "of these tokens, over the known bases that they spell. No code length: it "
    "compares at the same rate and span only. At evaluation [MASK] stands for "
    "all of them. The floors see every neighbour, the model sees some hidden.",
  }
  at_most = "at most " if isinstance(config, PackedConfig) else ""
  warning = " Overlapping tokens show what is hidden through their neighbours."
  return results.write(
    config,
    same,
    workdir,
    result,
    title=f"A {config.objective} model of {config.genome}",
    what=f"{sizes['test']:,} windows of "
    f"{at_most}{config.bases:,} bases of "
    f"{config.test}",
    how=how[config.objective] + (warning if tokenizer.overlapping else ""),
    headline="bits_per_base",
    lower_is_better=True,
    scores=scores,
    floors=floors,
  )
