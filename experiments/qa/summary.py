"""The report of a run on questions."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from experiments.common import files
from experiments.common import loop
from experiments.common import metrics as lines_lib
from experiments.common import plots
from experiments.common import report
from experiments.qa import corpora
from experiments.qa import facts
from experiments.qa import metrics
from experiments.qa import predictor
from experiments.qa import rows as rows_lib

_SHOWN = 8  # Questions in the report.


def describe(corpus: corpora.Corpus) -> str:
  """One line on the data of a run."""
  counts = [
    sum(len(d.questions) for d in getattr(corpus, part))
    for part in corpora.PARTS
  ]
  return (
    f"{corpus.name}: {counts[0]:,} questions to learn from, {counts[1]:,} to "
    f"watch, {counts[2]:,} held out for the result; split {corpus.rule}"
  )


def verdict(results: dict[str, Any], workdir: pathlib.Path) -> str:
  """Plain words on the result, and where the report lies."""
  all_ = results["scores"]["all"]
  parts = [
    f"{where}: F1 {found['f1']:.1f} of {found['count']:,}"
    for where, found in results["scores"].items()
    if where != "all"
  ]
  apart = f" ({'; '.join(parts)})" if parts else ""
  told = ""
  if results["facts"]:
    told = "".join(
      f"\nsupporting facts, {name}: F1 {x['f1']:.1f}, exact {x['exact']:.1f}, "
      f"with answers F1 {x['joint_f1']:.1f}, exact {x['joint_exact']:.1f}"
      for name, x in results["facts"].items()
    )
  return (
    f"result: F1 {all_['f1']:.1f}, exact match {all_['exact']:.1f} on "
    f"{all_['count']:,} held-out questions{apart}{told}\n"
    f"{_standing(results)}\n"
    f"report: {workdir / 'report' / 'report.md'}"
  )


def apart(
  rows: rows_lib.Rows, texts: Mapping[str, str], beyond: int
) -> dict[str, dict[str, Any]]:
  """Scores of all questions, and by where the first answer stands.

  Args:
    rows: of the questions.
    texts: question id -> answer.
    beyond: token of a row of the whole document; 0 for no such parts.

  Returns:
    Part -> fields of `metrics.Scores`; parts without questions are left out.
  """
  golds = rows.golds()
  parts: dict[str, list[str]] = {"all": list(golds)}
  if beyond:
    for name in ("before", "beyond", "nowhere"):
      parts[name if name == "nowhere" else f"{name} token {beyond}"] = []
    for number, encoded in enumerate(rows.questions):
      depth = rows.depth(number)
      name = "nowhere"
      if depth is not None:
        name = f"{'before' if depth < beyond else 'beyond'} token {beyond}"
      parts[name].append(encoded.question.id)
  return {
    name: dataclasses.asdict(
      metrics.score(
        {i: texts[i] for i in ids if i in texts}, {i: golds[i] for i in ids}
      )
    )
    for name, ids in parts.items()
    if ids
  }


def fact_scores(
  rows: rows_lib.Rows, said: predictor.Predictions
) -> dict[str, dict[str, float]]:
  """Scores of supporting facts, and of those that no one learned.

  Args:
    rows: of the questions.
    said: of the model.

  Returns:
    Name -> fields of `facts.FactScores`; empty where the model tells none.
  """
  if not said.facts:
    return {}
  right = {
    encoded.question.id: rows.facts(number)
    for number, encoded in enumerate(rows.questions)
  }
  found = {"model": said.facts, "two most similar sentences": facts.floor(rows)}
  return {
    name: dataclasses.asdict(facts.score(x, right, said.texts, rows.golds()))
    for name, x in found.items()
  }


def write(
  config: Any,
  identity: dict[str, Any],
  workdir: pathlib.Path,
  corpus: corpora.Corpus,
  rows: dict[str, rows_lib.Rows],
  floors: dict[str, metrics.Scores],
  result: loop.Result,
  said: predictor.Predictions,
) -> dict[str, Any]:
  """Writes the report directory and prints the verdict.

  Args:
    config: of the run.
    identity: by which the run is known again.
    workdir: of the run.
    corpus: of the run.
    rows: of each part.
    floors: of `experiments.qa.floors`.
    result: of the loop.
    said: answers to the questions of `test`.

  Returns:
    What `results.json` holds.
  """
  params = jax.tree.leaves(result.state["params"])
  test = rows["test"]
  results = {
    "scores": apart(test, said.texts, config.beyond),
    "facts": fact_scores(test, said),
    "floors": {k: dataclasses.asdict(v) for k, v in floors.items()},
    "corpus": corpus.name,
    "what": describe(corpus),
    "test_digest": corpus.digest("test"),
    "test_windows": said.windows,
    "train_windows": len(rows["train"]),
    "epochs": config.steps * config.batch_size / len(rows["train"]),
    "parameters": int(sum(x.size for x in params)),
    "seconds": result.seconds,
    "tokens_per_second": result.tokens_per_second,
    "valid": result.evaluation,
    "shown": _shown(test, said),
    "config": dataclasses.asdict(config),
    "identity": identity,
    "environment": report.environment(),
  }
  if files.first_process():
    folder = workdir / "report"
    _plot(folder, workdir, results)
    files.write_json(folder / "predictions.json", said.texts)
    if said.facts:
      told = {name: sorted(x) for name, x in said.facts.items()}
      files.write_json(folder / "facts.json", told)
    report.write(
      folder,
      title=f"Questions: {corpus.name}",
      sections=_sections(results),
      results=results,
    )
  files.say(verdict(results, workdir))
  return results


def _shown(rows: rows_lib.Rows, said: predictor.Predictions) -> list[list[str]]:
  """Some questions, what was said, and what is right."""
  step = max(len(rows.questions) // _SHOWN, 1)
  chosen = [q.question for q in rows.questions[::step]][:_SHOWN]
  return [
    [q.text, said.texts.get(q.id, ""), " / ".join(dict.fromkeys(q.golds))]
    for q in chosen
  ]


def _standing(results: dict[str, Any]) -> str:
  floors = {name: x["f1"] for name, x in results["floors"].items()}
  f1 = results["scores"]["all"]["f1"]
  return report.standing(f1, floors, lower_is_better=False)


def _plot(
  folder: pathlib.Path, workdir: pathlib.Path, results: dict[str, Any]
) -> None:
  lines = lines_lib.read(workdir / lines_lib.NAME)

  def points(name: str) -> list[tuple[float, float]]:
    return [(x["step"], x[name]) for x in lines if name in x]

  plots.curves(
    folder / "scores.png",
    {"F1": points("valid_f1"), "exact match": points("valid_exact")},
    levels={name: x["f1"] for name, x in results["floors"].items()},
    title=f"{results['corpus']}, {results['config']['method']}",
    x_label="step",
    y_label="percent of questions to watch; floors: F1 of the result's",
  )
  plots.curves(
    folder / "loss.png",
    {"train": points("train_bits_per_question")},
    title=f"{results['corpus']}, {results['config']['method']}",
    x_label="step",
    y_label="bits per question",
  )


def _sections(results: dict[str, Any]) -> list[tuple[str, str]]:
  config, scores = results["config"], results["scores"]
  all_ = scores["all"]
  table = [
    (name, x["exact"], x["f1"], "nothing learned")
    for name, x in results["floors"].items()
  ]
  note = f"{results['parameters']:,} parameters"
  table.append(
    (f"**reader, {config['method']}**", all_["exact"], all_["f1"], note)
  )
  table.sort(key=lambda row: -row[2])
  columns = ("answers", "exact match", "F1", "note")
  places = [(k, x["count"], x["exact"], x["f1"]) for k, x in scores.items()]
  run = [
    ("steps", f"{config['steps']:,}"),
    ("epochs", f"{results['epochs']:.1f}"),
    ("windows to learn from", f"{results['train_windows']:,}"),
    ("windows read for the result", f"{results['test_windows']:,}"),
    ("tokens a second while training", f"{results['tokens_per_second']:,.0f}"),
    ("training and its evaluation", report.duration(results["seconds"])),
    *results["environment"].items(),
  ]
  shown = [
    f"asked: {asked}\nsaid:  {said}\nright: {right or '(no answer)'}"
    for asked, said, right in results["shown"]
  ]
  windows = (
    f"windows of {config['length']} tokens every {config['stride']}"
    if config["stride"]
    else f"the first {config['length']} tokens, question included"
  )
  return [
    (
      "Result",
      f"{report.table(columns, table)}\n\n{_standing(results)}\n\n"
      "![scores](scores.png)\n\n![loss](loss.png)",
    ),
    *_fact_sections(results["facts"]),
    (
      "Where answers stand",
      report.table(("first answer", "questions", "exact match", "F1"), places),
    ),
    (
      "How it is measured",
      f"{results['what']} (digest {results['test_digest']}). Of each document "
      f"the model reads {windows}. Exact match and F1 of words, in percent, as "
      "in SQuAD's scripts. Floors read whole documents: by the words they "
      "share with the question, or not at all. All answers are in "
      "predictions.json.",
    ),
    ("Run", report.table(("what", "value"), run)),
    ("Answers", report.code("\n\n".join(shown))),
    (
      "Configuration",
      report.code(json.dumps(config, indent=2, sort_keys=True)),
    ),
  ]


def _fact_sections(
  facts_: dict[str, dict[str, float]],
) -> list[tuple[str, str]]:
  """A table of supporting facts, if there are any."""
  if not facts_:
    return []
  rows = [
    (name, *(x[k] for k in ("exact", "f1", "joint_exact", "joint_f1")))
    for name, x in facts_.items()
  ]
  columns = (
    "sentences",
    "exact match",
    "F1",
    "exact with answer",
    "F1 with it",
  )
  return [("Supporting facts", report.table(columns, rows))]
