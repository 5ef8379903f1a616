"""Promoters or not: configuration, and a run from end to end."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments.common import files
from experiments.common import loop
from experiments.common import report
from experiments.common import sharding
from genomics import classify
from genomics import kmers
from genomics import leakage
from genomics import metrics
from genomics import places
from genomics import promoters
from genomics import results
from genomics import tokenizers

_FLOORS = (4, 5)  # Bases in the words that floors count.


@dataclasses.dataclass
class Config(classify.ClassifierConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  genome: str = "fly_chr2R"  # See genomics/places.py.
  starts: str = "fly"
  chain: str = ""  # From the assembly of the starts to the genome.
  upstream: int = 249  # Bases before the start.
  downstream: int = 51  # From it on.
  negatives: str = "genomic"  # See genomics/promoters.py.
  distance: int = 1000  # From starts to negatives elsewhere on the genome.
  train: str = "chr2R:1-13000000"  # Regions, counted from 1.
  valid: str = "chr2R:13000001-15000000"
  test: str = "chr2R:15000001-21146708"


def load(config: Config) -> dict[str, promoters.Examples]:
  """Promoters and negatives of each part."""
  for name in ("upstream", "downstream"):
    if getattr(config, name) < 1:
      raise files.UserError(
        f"--config.{name} must be positive, got {getattr(config, name)}."
      )
  genome = places.genome(config.genome)
  split = {
    part: places.regions(getattr(config, part), genome)
    for part in promoters.PARTS
  }
  return promoters.examples(
    genome,
    places.starts(config.starts, genome, config.chain),
    split,
    upstream=config.upstream,
    downstream=config.downstream,
    negatives=config.negatives,
    distance=config.distance,
    seed=config.data_seed,
  )


def floors_of(parts: dict[str, promoters.Examples]) -> dict[str, float]:
  """F1 of logistic regression upon counts of words, on the test part."""
  train, test, found = parts["train"], parts["test"], {}
  for k in _FLOORS:
    model = kmers.KmerLogistic(k).fit(train.codes, train.labels)
    chance = model.probabilities(test.codes)[:, 1]
    found[model.name] = metrics.binary(test.labels, chance)["f1"]
  share = float(np.mean(test.labels))
  found["always yes"] = 2 * share / (1 + share)
  return found


def _scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  return metrics.binary(labels, logits[:, 1] - logits[:, 0], threshold=0.0)


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
  tokenizer = tokenizers.make(config.tokenizer)
  model = classify.make_model(config, tokenizer.vocab_size, 2, "classes")
  mesh = sharding.make_mesh(config.mesh)
  parts = load(config)
  held = {part: results.digest(x.codes) for part, x in parts.items()}
  same, done = results.claim(
    config, workdir, {"tokenizer": tokenizer.name, "codes": held}
  )
  if done is not None:
    return done
  rows = {
    part: classify.Rows(
      classify.Arrays(x.codes, x.labels),
      tokenizer,
      config.length,
      both_strands=config.both_strands and part == "train",
    )
    for part, x in parts.items()
  }
  leaks = leakage.report(
    {part: list(x.codes) for part, x in parts.items()},
    {part: x.windows for part, x in parts.items()},
  )
  files.say("\n".join(map(str, leaks)))
  floors = floors_of(parts)
  files.say(
    "floors, F1: " + ", ".join(f"{k} {v:.3f}" for k, v in floors.items())
  )
  predict = classify.Predictor(
    model,
    mesh,
    config.batch_size // config.accumulate,
    both_strands=config.both_strands,
  )

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    found = _scores(*predict(params, carried, rows["valid"]))
    return {f"valid_{name}": value for name, value in found.items()}

  task = classify.make_task(config, model, rows["train"], "classes", evaluate)
  files.say("compiling the training step, then training")
  result = loop.train(config, task, workdir)
  logits, labels = predict(
    result.state["params"], result.state["carried"], rows["test"]
  )
  interval = metrics.bootstrap(
    lambda at: _scores(logits[at], labels[at])["f1"], parts["test"].groups
  )
  return _report(
    config,
    same,
    workdir,
    result,
    _scores(logits, labels),
    floors,
    interval,
    parts,
    leaks,
  )


def _report(
  config: Config,
  same: dict[str, Any],
  workdir: pathlib.Path,
  result: loop.Result,
  scores: dict[str, float],
  floors: dict[str, float],
  interval: tuple[float, float],
  parts: dict[str, promoters.Examples],
  leaks: list[leakage.Leak],
) -> dict[str, Any]:
  size, length = len(parts["test"].labels), config.upstream + config.downstream
  table = report.table(
    ("part", "overlapping windows", "repeats", "share of 24-mers in train"),
    [(x.part, x.overlapping, x.repeats, x.shared) for x in leaks],
  )
  return results.write(
    config,
    same,
    workdir,
    result,
    title=f"Promoters: {config.genome}, {length} bases, {config.negatives}",
    what=f"{size:,} windows of {length} bases of {config.test}, half promoters",
    how="The parts are regions; what crosses their borders is left out, and "
    f"negatives ({config.negatives}) are made inside each part from a stored "
    "seed. The interval draws pairs of a promoter and its negative again. "
    "Floors are logistic regressions upon the same windows.",
    headline="f1",
    scores=scores,
    floors=floors,
    interval=interval,
    tables=[("Leaks", table)],
    notes={"leaks": [dataclasses.asdict(x) for x in leaks]},
  )
