"""Chromatin profiles: configuration, and a run from end to end."""

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
from genomics import metrics
from genomics import results
from genomics import tokenizers
from genomics.chromatin import sources

_FLOOR_ROWS = 20_000  # That the floor learns from.


@dataclasses.dataclass
class Config(classify.ClassifierConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  data: str = ""  # Folder of DeepSEA's .mat files, or synthetic.
  genome: str = ""  # To see more than 1,000 bases of; see genomics/places.py.
  assembly: str = ""  # Of the genome, by name: hg19.
  bins: str = ""  # Folder of train.bed, valid.bed, test.bed, a bin a row.
  bases: int = 1000  # In a window, with a genome.
  placement: str = "centred"  # centred, upstream.
  least_positives: int = 50  # Of an output that counts.


class _Scores:
  """Scores of all outputs, from batches."""

  def __init__(self, data: sources.Data, least: int):
    self._found = metrics.StreamingScores(data.outputs)
    self._groups, self._least = data.groups, least

  def add(self, labels: np.ndarray, scores: np.ndarray) -> None:
    """Counts some rows."""
    self._found.add(labels, scores)

  def groups(self) -> dict[str, dict[str, float]]:
    """Medians and means by group."""
    return metrics.group_scores(self._found, self._groups, least=self._least)


def floors_of(data: sources.Data, least: int) -> dict[str, float]:
  """Median AUROC of words' counts on the test part, and of chance."""
  model, scores = kmers.KmerRidge(4), _Scores(data, least)
  train, test = data.parts["train"], data.parts["test"]
  kept = np.linspace(0, len(train) - 1, min(len(train), _FLOOR_ROWS))
  rows = [train[int(i)] for i in kept]
  model.fit([x for x, _ in rows], np.stack([y for _, y in rows]))
  for low in range(0, len(test), 1000):
    rows = [test[i] for i in range(low, min(low + 1000, len(test)))]
    labels = np.stack([y for _, y in rows])
    scores.add(labels, model.scores([x for x, _ in rows]))
  found = scores.groups()["all"]["median_auroc"]
  return {model.name: found, "chance": 0.5}


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
  data = sources.load(config)
  model = classify.make_model(
    config, tokenizer.vocab_size, data.outputs, "outputs"
  )
  mesh = sharding.make_mesh(config.mesh)
  sizes = {part: len(x) for part, x in data.parts.items()}
  held = {part: results.digest(x) for part, x in data.parts.items()}
  same, done = results.claim(
    config, workdir, {"tokenizer": tokenizer.name, "rows": held}
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
    for part, x in data.parts.items()
  }
  floors = floors_of(data, config.least_positives)
  files.say(
    "floors, median AUROC: "
    + ", ".join(f"{k} {v:.3f}" for k, v in floors.items())
  )
  predict = classify.Predictor(
    model,
    mesh,
    config.batch_size // config.accumulate,
    both_strands=config.both_strands,
  )

  def scores(params: Any, carried: Any, part: str) -> Any:
    found, errors, weights = _Scores(data, config.least_positives), [], []
    for logits, labels in predict.batches(params, carried, rows[part]):
      found.add(labels, logits)
      right = metrics.correct_prior(logits, config.positive_weight)
      errors.append([_error(labels, x) for x in (logits, right)])
      weights.append(len(labels))
    return found.groups(), np.average(errors, axis=0, weights=weights)

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    found = scores(params, carried, "valid")[0]["all"]
    return {f"valid_{name}": value for name, value in found.items()}

  task = classify.make_task(config, model, rows["train"], "outputs", evaluate)
  files.say("compiling the training step, then training")
  result = loop.train(config, task, workdir)
  groups, errors = scores(
    result.state["params"], result.state["carried"], "test"
  )
  return _report(config, same, workdir, result, groups, errors, floors, sizes)


def _error(labels: np.ndarray, logits: np.ndarray) -> float:
  """How far the mean probability is from how many are positive."""
  return float(np.mean(1 / (1 + np.exp(-logits))) - np.mean(labels))


def _report(
  config: Config,
  same: dict[str, Any],
  workdir: pathlib.Path,
  result: loop.Result,
  groups: dict[str, dict[str, float]],
  errors: np.ndarray,
  floors: dict[str, float],
  sizes: dict[str, int],
) -> dict[str, Any]:
  columns = ("outputs", "median_auroc", "median_auprc", "prevalence")
  table = report.table(
    ("group", *(x.replace("_", " ") for x in columns)),
    [(name, *(row[x] for x in columns)) for name, row in groups.items()],
  )
  scores = groups["all"] | {
    "mean probability less share": float(errors[0]),
    "the same, prior corrected": float(errors[1]),
  }
  return results.write(
    config,
    same,
    workdir,
    result,
    title="Chromatin profiles",
    what=f"{sizes['test']:,} sequences held out",
    how="Medians over the outputs of a group with at least "
    f"{config.least_positives} positives; AUPRC beside its prevalence, which "
    "is what chance has. Positives weigh "
    f"{config.positive_weight:g} in the loss; the prior is corrected by its "
    "logarithm.",
    headline="median_auroc",
    scores=scores,
    floors=floors,
    tables=[("Groups", table)],
    notes={"groups": groups},
  )
