"""The report of a run on a synthetic task."""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from experiments.common import files
from experiments.common import loop
from experiments.common import metrics
from experiments.common import plots
from experiments.common import report
from experiments.synthetic import task as task_lib


def verdict(results: dict[str, Any], workdir: pathlib.Path) -> str:
  """Plain words on the result, and where the report lies."""
  name, value = results["metric"], results["value"]
  better = results["lower_is_better"]
  return (
    f"result: {name} {value:.4f} on {results['eval_rows']:,} held-out rows\n"
    f"{report.standing(value, results['floors'], lower_is_better=better)}\n"
    f"report: {workdir / 'report' / 'report.md'}"
  )


def write(
  config: Any,
  identity: dict[str, Any],
  workdir: pathlib.Path,
  task: task_lib.SyntheticTask,
  result: loop.Result,
) -> dict[str, Any]:
  """Writes the report directory and prints the verdict.

  Args:
    config: of the run.
    identity: by which the run is known again.
    workdir: of the run.
    task: of the run.
    result: of the loop.

  Returns:
    What `results.json` holds.
  """
  params = jax.tree.leaves(result.state["params"])
  results = {
    "task": config.task,
    "method": config.method,
    "metric": task.metric,
    "lower_is_better": task.lower_is_better,
    "value": result.evaluation[task.metric],
    "loss": result.evaluation["held_out_loss"],
    "floors": task.floors(),
    "eval_rows": config.eval_rows,
    "parameters": int(sum(x.size for x in params)),
    "seconds": result.seconds,
    "tokens_per_second": result.tokens_per_second,
    "identity": identity,
    "environment": report.environment(),
  }
  if files.first_process():
    folder = workdir / "report"
    lines = metrics.read(workdir / metrics.NAME)
    _plot(folder, lines, results)
    report.write(
      folder,
      title=f"{config.task}: {config.method}",
      sections=_sections(config, task, results, lines),
      results=results,
    )
  files.say(verdict(results, workdir))
  return results


def _curve(
  lines: list[dict[str, Any]], metric: str
) -> list[tuple[float, float]]:
  return [(line["step"], line[metric]) for line in lines if metric in line]


def _plot(
  folder: pathlib.Path, lines: list[dict[str, Any]], results: dict[str, Any]
) -> None:
  name = results["metric"]
  plots.curves(
    folder / "curve.png",
    {f"{results['method']}, held out": _curve(lines, name)},
    levels=results["floors"],
    title=f"{results['task']}, {results['method']}",
    x_label="step",
    y_label=name,
  )


def _sections(
  config: Any,
  task: task_lib.SyntheticTask,
  results: dict[str, Any],
  lines: list[dict[str, Any]],
) -> list[tuple[str, str]]:
  name = results["metric"]
  rows = [(n, v, "trivial answer") for n, v in results["floors"].items()]
  note = f"{results['parameters']:,} parameters"
  rows.append((f"**{results['method']}**", results["value"], note))
  rows.sort(key=lambda row: row[1], reverse=not results["lower_is_better"])
  columns = ("model", name, "note")
  better = "lower" if results["lower_is_better"] else "higher"
  curve = [(f"{step:,}", value) for step, value in _curve(lines, name)]
  facts = [
    (name, f"{results['value']:.4f}"),
    ("loss on the held-out rows", f"{results['loss']:.4f}"),
    ("steps", f"{config.steps:,}"),
    ("rows read", f"{config.steps * config.batch_size:,}"),
    ("tokens a second while training", f"{results['tokens_per_second']:,.0f}"),
    ("training and its evaluation", report.duration(results["seconds"])),
    *results["environment"].items(),
  ]
  options = json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)
  return [
    (
      "Result",
      f"{report.table(columns, rows)}\n\n{better.capitalize()} is better.\n\n"
      "![curve](curve.png)",
    ),
    (
      "How it is measured",
      f"On {config.eval_rows:,} held-out rows of {task.length} tokens, the "
      "same for every run of this task. Every training step draws rows of its "
      "own, so none is seen twice. The floors are expected values.",
    ),
    ("Curve", report.table(("step", name), curve)),
    ("Run", report.table(("what", "value"), facts)),
    ("Configuration", report.code(options)),
  ]
