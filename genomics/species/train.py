"""Which species a stretch of DNA is of: configuration and run."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments.common import files
from experiments.common import loop
from experiments.common import sharding
from genomics import alphabet
from genomics import classify
from genomics import data
from genomics import genome as genome_lib
from genomics import intervals
from genomics import kmers
from genomics import metrics
from genomics import results
from genomics import synthetic
from genomics import tokenizers

PARTS = ("train", "valid", "test")


@dataclasses.dataclass
class Config(classify.ClassifierConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  genome: str = "bacteria"  # bacteria, synthetic, or names species/strain/x.
  held_out: str = "DH1,SJM180,RF122,O395"  # Strains that test, whole.
  bases: int = 1000  # In a window.
  train_windows: int = 20_000
  held_out_windows: int = 1_000  # For valid and for test.


def _genome(name: str) -> genome_lib.Genome:
  if name != "synthetic":
    found = data.mapped(name) if name == "bacteria" else genome_lib.load(name)
    odd = [x for x in found.lengths if x.count("/") < 2]
    if odd:
      raise files.UserError(
        f"sequences must be named species/strain/name, got {odd[0]!r}."
      )
    return found
  rng, rows = np.random.default_rng(0), {}
  for i, kind in enumerate(("a", "b")):  # One of them is rich in G and C.
    for strain in ("DH1", "x"):
      codes = synthetic.chain(20_000, rng)
      swapped = np.where(rng.random(len(codes)) < 0.3 * i, 2, codes)
      rows[f"{kind}/{strain}/1"] = alphabet.decode(swapped)
  return genome_lib.InMemory(rows)


def windows(
  genome: genome_lib.Genome,
  names: list[str],
  count: int,
  length: int,
  rng: np.random.Generator,
) -> list[intervals.Interval]:
  """Windows anywhere, as many of each species, on either strand.

  Args:
    genome: whose names are species/strain/sequence.
    names: of sequences to draw from, by their lengths.
    count: of windows.
    length: bases of each.
    rng: to draw from.

  Returns:
    The windows.

  Raises:
    UserError: if a species has no sequence that long.
  """
  found, kinds = [], data.species(genome)
  for i in range(count):
    kind = kinds[i % len(kinds)]
    mine = [x for x in names if x.startswith(f"{kind}/")]
    room = np.array([max(genome.lengths[x] - length + 1, 0) for x in mine])
    if not room.sum():
      raise files.UserError(
        f"no sequence of {kind!r} has {length} bases; lower --config.bases or "
        "hold out other strains."
      )
    index = int(rng.choice(len(mine), p=room / room.sum()))
    at = int(rng.integers(room[index]))
    strand = intervals.STRANDS[int(rng.integers(2))]
    found.append(intervals.Interval(mine[index], at, at + length, strand))
  return found


def load(config: Config) -> tuple[dict[str, classify.Arrays], tuple[str, ...]]:
  """Windows of each part, and the species; strains of test are nowhere else.

  What is watched while training comes from the strains of training.
  """
  genome = _genome(config.genome)
  strains = [x.strip() for x in config.held_out.split(",")]
  names, away = data.strains(genome, strains)
  kinds, parts = data.species(genome), {}
  for number, part in enumerate(PARTS):
    count = config.train_windows if part == "train" else config.held_out_windows
    rng = np.random.default_rng([config.data_seed, number])
    source = away if part == "test" else names
    found = windows(genome, source, count, config.bases, rng)
    labels = [kinds.index(x.chrom.split("/")[0]) for x in found]
    codes = np.stack([genome_lib.read(genome, x).codes for x in found])
    parts[part] = classify.Arrays(codes, np.array(labels, np.int32))
  return parts, kinds


def floors_of(
  parts: dict[str, classify.Arrays], kinds: int
) -> dict[str, float]:
  """Accuracy on the test part of counts of words, and of chance."""
  found = {"chance": 1 / kinds}
  for k in (2, 4):
    model = kmers.KmerLogistic(k, both_strands=True)
    model.fit(parts["train"].codes, parts["train"].labels)
    chosen = model.probabilities(parts["test"].codes).argmax(1)
    found[model.name] = float(np.mean(chosen == parts["test"].labels))
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
  for name in ("bases", "train_windows", "held_out_windows"):
    if getattr(config, name) < 1:
      raise files.UserError(
        f"--config.{name} must be positive, got {getattr(config, name)}."
      )
  tokenizer = tokenizers.make(config.tokenizer)
  parts, kinds = load(config)
  model = classify.make_model(
    config, tokenizer.vocab_size, len(kinds), "classes"
  )
  mesh = sharding.make_mesh(config.mesh)
  held = {part: results.digest(x) for part, x in parts.items()}
  same, done = results.claim(
    config, workdir, {"tokenizer": tokenizer.name, "codes": held}
  )
  if done is not None:
    return done
  rows = {
    part: classify.Rows(
      x,
      tokenizer,
      config.length,
      both_strands=config.both_strands and part == "train",
    )
    for part, x in parts.items()
  }
  floors = floors_of(parts, len(kinds))
  files.say("floors: " + ", ".join(f"{k} {v:.3f}" for k, v in floors.items()))
  predict = classify.Predictor(
    model,
    mesh,
    config.batch_size // config.accumulate,
    both_strands=config.both_strands,
  )

  def scores(params: Any, carried: Any, part: str) -> Any:
    logits, labels = predict(params, carried, rows[part])
    right = (logits.argmax(1) == labels).astype(float)
    found = {
      "accuracy": float(right.mean()),
      "mcc": metrics.mcc(labels, logits.argmax(1)),
    }
    return found, right

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    found, _ = scores(params, carried, "valid")
    return {f"valid_{name}": value for name, value in found.items()}

  task = classify.make_task(config, model, rows["train"], "classes", evaluate)
  files.say("compiling the training step, then training")
  result = loop.train(config, task, workdir)
  found, right = scores(result.state["params"], result.state["carried"], "test")
  return _report(config, same, workdir, result, found, right, floors, kinds)


def _report(
  config: Config,
  same: dict[str, Any],
  workdir: pathlib.Path,
  result: loop.Result,
  scores: dict[str, float],
  right: np.ndarray,
  floors: dict[str, float],
  kinds: tuple[str, ...],
) -> dict[str, Any]:
  interval = metrics.bootstrap(
    lambda at: right[at].mean(), np.arange(len(right))
  )
  return results.write(
    config,
    same,
    workdir,
    result,
    title=f"Species: {len(kinds)} of {config.genome}, {config.bases} bases",
    what=f"{len(right):,} windows of {config.bases:,} bases of strains held "
    f"out whole ({config.held_out})",
    how="Windows lie anywhere on either strand, as many of each species. The "
    "strains of the test part are in no other part. The interval draws windows "
    "again. Floors count words on both strands of the same windows.",
    headline="accuracy",
    scores=scores,
    floors=floors,
    interval=interval,
  )
