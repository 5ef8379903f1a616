"""The report of a run on classification."""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from experiments.classification import data
from experiments.classification import floors as floors_lib
from experiments.common import files
from experiments.common import loop
from experiments.common import metrics
from experiments.common import plots
from experiments.common import report


def describe(corpus: data.Corpus) -> str:
  """One line on the data of a run."""
  return (
    f"{corpus.name}: {len(corpus.classes)} classes, {len(corpus.train.texts):,}"
    f" documents to learn from, {len(corpus.valid.texts):,} to watch, "
    f"{len(corpus.test.texts):,} held out for the result; split {corpus.how}"
  )


def verdict(results: dict[str, Any], workdir: pathlib.Path) -> str:
  """Plain words on the result, and where the report lies."""
  scores, (low, high) = results["scores"]["test"], results["interval"]
  standing = report.standing(
    scores["accuracy"], results["floors"], lower_is_better=False
  )
  return (
    f"result: accuracy {scores['accuracy']:.3f} (95%: {low:.3f} to "
    f"{high:.3f}), {scores['nats']:.3f} nats a document, on "
    f"{round(scores['count']):,} held-out documents\n"
    f"{standing}\n"
    f"report: {workdir / 'report' / 'report.md'}"
  )


def write(
  config: Any,
  identity: dict[str, Any],
  workdir: pathlib.Path,
  corpus: data.Corpus,
  floors: dict[str, float],
  result: loop.Result,
  test: dict[str, float],
) -> dict[str, Any]:
  """Writes the report directory and prints the verdict.

  Args:
    config: of the run.
    identity: by which the run is known again.
    workdir: of the run.
    corpus: of the run.
    floors: of `experiments.classification.floors`.
    result: of the loop.
    test: scores of the evaluator, and `cut`, the share of documents that are
      longer than a row.

  Returns:
    What `results.json` holds.
  """
  params = jax.tree.leaves(result.state["params"])
  results = {
    "scores": {"test": test, "valid": result.evaluation},
    "interval": list(floors_lib.wilson(test["right"], test["count"])),
    "floors": floors,
    "corpus": corpus.name,
    "what": describe(corpus),
    "classes": list(corpus.classes),
    "test_digest": corpus.test.digest(),
    "epochs": config.steps * config.batch_size / len(corpus.train.texts),
    "parameters": int(sum(x.size for x in params)),
    "seconds": result.seconds,
    "tokens_per_second": result.tokens_per_second,
    "config": dataclasses.asdict(config),
    "identity": identity,
    "environment": report.environment(),
  }
  if files.first_process():
    folder = workdir / "report"
    _plot(folder, workdir, results)
    report.write(
      folder,
      title=f"Classification: {corpus.name}",
      sections=_sections(results),
      results=results,
    )
  files.say(verdict(results, workdir))
  return results


def _plot(
  folder: pathlib.Path, workdir: pathlib.Path, results: dict[str, Any]
) -> None:
  lines = metrics.read(workdir / metrics.NAME)

  def points(name: str) -> list[tuple[float, float]]:
    return [(x["step"], x[name]) for x in lines if name in x]

  title = f"{results['corpus']}, {results['config']['method']}"
  plots.curves(
    folder / "accuracy.png",
    {"valid": points("valid_accuracy")},
    levels=results["floors"],
    title=title,
    x_label="step",
    y_label="accuracy",
  )
  plots.curves(
    folder / "loss.png",
    {"train": points("train_nats"), "valid": points("valid_nats")},
    title=title,
    x_label="step",
    y_label="nats per document",
  )


def _sections(results: dict[str, Any]) -> list[tuple[str, str]]:
  config, test = results["config"], results["scores"]["test"]
  low, high = results["interval"]
  rows = [(n, v, "whole documents") for n, v in results["floors"].items()]
  note = f"{config['length']:,} tokens; 95%: {low:.3f} to {high:.3f}"
  rows.append((f"**encoder, {config['method']}**", test["accuracy"], note))
  rows.sort(key=lambda row: -row[1])
  standing = report.standing(
    test["accuracy"], results["floors"], lower_is_better=False
  )
  facts = [
    ("accuracy, test", f"{test['accuracy']:.4f}"),
    ("nats a document, test", f"{test['nats']:.4f}"),
    ("accuracy, valid", f"{results['scores']['valid']['valid_accuracy']:.4f}"),
    ("parameters", f"{results['parameters']:,}"),
    ("steps", f"{config['steps']:,}"),
    ("epochs", f"{results['epochs']:.1f}"),
    ("tokens a second while training", f"{results['tokens_per_second']:,.0f}"),
    ("training and its evaluation", report.duration(results["seconds"])),
    *results["environment"].items(),
  ]
  return [
    (
      "Result",
      f"{report.table(('model', 'accuracy', 'note'), rows)}\n\n{standing}\n\n"
      "![accuracy](accuracy.png)\n\n![loss](loss.png)",
    ),
    (
      "How it is measured",
      f"{results['what']} (digest {results['test_digest']}). Classes: "
      f"{', '.join(results['classes'])}. The model reads the first "
      f"{config['length']:,} tokens; {test['cut']:.0%} of the test documents "
      "are longer. The last parameters are tested, not those that were best on "
      "the validation part. The interval is Wilson's. Floors read whole "
      "documents; how strongly the regression is regularised is chosen on the "
      "validation part.",
    ),
    ("Run", report.table(("what", "value"), facts)),
    (
      "Configuration",
      report.code(json.dumps(config, indent=2, sort_keys=True)),
    ),
  ]
