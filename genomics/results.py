"""The report of a run on DNA: what was found, beside its floors."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.common import checkpoint
from experiments.common import files
from experiments.common import loop
from experiments.common import metrics as logs
from experiments.common import plots
from experiments.common import report

_HASHED = 1000  # Rows that identify data.


def claim(
  config: Any, workdir: pathlib.Path, data: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
  """Binds a workdir to a run; finds its results if it has ended.

  Args:
    config: of the run.
    workdir: of the run.
    data: what identifies its data.

  Returns:
    The run's identity, and its results or None.

  Raises:
    UserError: if the workdir is another run's.
  """
  same = checkpoint.identity(config, {f"data.{k}": v for k, v in data.items()})
  checkpoint.claim(workdir, same)
  done = report.finished(workdir, same)
  if done is not None:
    files.say(verdict(done, workdir))
  return same, done


def digest(rows: Any) -> str:
  """Identifies arrays, or tuples of them, by what they hold.

  Args:
    rows: the arrays; of many, some that lie evenly among them.

  Returns:
    Sixteen digits.

  Example:
    >>> digest([np.zeros(2)]) == digest([np.zeros(2)]) != digest([np.ones(2)])
    True

  Source: SHA-256.
  """
  found = hashlib.sha256(str(len(rows)).encode())
  for i in np.linspace(0, len(rows) - 1, min(len(rows), _HASHED)).astype(int):
    row = rows[int(i)]
    for x in row if isinstance(row, tuple) else (row,):
      found.update(np.ascontiguousarray(x).tobytes())
  return found.hexdigest()[:16]


def verdict(results: Mapping[str, Any], workdir: pathlib.Path) -> str:
  """Plain words on a result, and where the report lies."""
  name, value = results["headline"], results["scores"][results["headline"]]
  interval = results.get("interval")
  shown = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
  standing = report.standing(
    value, results["floors"], lower_is_better=results["lower_is_better"]
  )
  return (
    f"result: {name} {value:.3f}{shown} on {results['what']}\n{standing}\n"
    f"report: {workdir / 'report' / 'report.md'}"
  )


def write(
  config: Any,
  identity: dict[str, Any],
  workdir: pathlib.Path,
  result: loop.Result,
  *,
  title: str,
  what: str,
  how: str,
  headline: str,
  scores: Mapping[str, float],
  floors: Mapping[str, float],
  lower_is_better: bool = False,
  interval: tuple[float, float] | None = None,
  tables: Sequence[tuple[str, str]] = (),
  notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes the report directory and prints the verdict.

  Args:
    config: of the run.
    identity: of `claim`.
    workdir: of the run.
    result: of the loop.
    title: of the report.
    what: was held out, in words.
    how: it is measured.
    headline: the score that counts.
    scores: name -> value, on what was held out.
    floors: name -> value of the headline without the model.
    lower_is_better: of the headline.
    interval: of the headline, 95 %.
    tables: more sections, (heading, Markdown).
    notes: further facts for `results.json`.

  Returns:
    What `results.json` holds.
  """
  params = jax.tree.leaves(result.state["params"])
  results = {
    "headline": headline,
    "lower_is_better": lower_is_better,
    "scores": dict(scores),
    "interval": list(interval) if interval else None,
    "floors": dict(floors),
    "what": what,
    "parameters": int(sum(x.size for x in params)),
    "seconds": result.seconds,
    "tokens_per_second": result.tokens_per_second,
    "valid": result.evaluation,
    "config": dataclasses.asdict(config),
    "identity": identity,
    "environment": report.environment(),
    **(notes or {}),
  }
  if files.first_process():
    folder = workdir / "report"
    _plot(folder, workdir, results)
    report.write(
      folder,
      title=title,
      sections=[*_first(results, how), *tables, *_last(results)],
      results=results,
    )
  files.say(verdict(results, workdir))
  return results


def _plot(
  folder: pathlib.Path, workdir: pathlib.Path, results: Mapping[str, Any]
) -> None:
  lines, name = logs.read(workdir / logs.NAME), f"valid_{results['headline']}"
  valid = [(x["step"], x[name]) for x in lines if name in x]
  plots.curves(
    folder / "valid.png",
    {"valid": valid},
    levels=results["floors"],
    title=results["config"]["method"],
    x_label="step",
    y_label=results["headline"].replace("_", " "),
  )


def _first(results: Mapping[str, Any], how: str) -> list[tuple[str, str]]:
  name, value = results["headline"], results["scores"][results["headline"]]
  rows = [(n, v, "without the model") for n, v in results["floors"].items()]
  note = f"{results['parameters']:,} parameters"
  if results["interval"]:
    low, high = results["interval"]
    note += f"; 95 %: {low:.3f} to {high:.3f}"
  rows.append((f"**encoder, {results['config']['method']}**", value, note))
  rows.sort(key=lambda row: row[1], reverse=not results["lower_is_better"])
  standing = report.standing(
    value, results["floors"], lower_is_better=results["lower_is_better"]
  )
  table = report.table(("model", name.replace("_", " "), "note"), rows)
  scores = report.table(("score", "value"), list(results["scores"].items()))
  return [
    ("Result", f"{table}\n\n{standing}\n\n![curve](valid.png)"),
    ("Scores", f"On {results['what']}.\n\n{scores}"),
    ("How it is measured", how),
  ]


def _last(results: Mapping[str, Any]) -> list[tuple[str, str]]:
  facts = [
    ("steps", f"{results['config']['steps']:,}"),
    ("tokens a second while training", f"{results['tokens_per_second']:,.0f}"),
    ("training and its evaluation", report.duration(results["seconds"])),
    *results["environment"].items(),
  ]
  shown = json.dumps(results["config"], indent=2, sort_keys=True)
  return [
    ("Run", report.table(("what", "value"), facts)),
    ("Configuration", report.code(shown)),
  ]
