"""The floors and the report of a run on articles with summaries."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from experiments.common import files
from experiments.common import loop
from experiments.common import metrics
from experiments.common import plots
from experiments.common import report
from experiments.summarization import data
from experiments.summarization import rouge

_SHOWN = 5  # Summaries in the report.


def describe(articles: data.Articles) -> str:
  """One line on the articles of a run."""
  train = articles.train
  text = sum(len(a.text) for a in train) / len(train)
  short = sum(len(a.summary) for a in train) / len(train)
  return (
    f"{articles.name}: {len(train):,} to learn from, of {text:,.0f} characters "
    f"with summaries of {short:,.0f}; {len(articles.valid):,} and "
    f"{len(articles.test):,} held out, {articles.rule}"
  )


def floors_of(
  articles: data.Articles, scored: Sequence[data.Article], count: int
) -> dict[str, dict[str, float]]:
  """ROUGE of what chooses sentences.

  Args:
    articles: of the run.
    scored: those whose summaries are scored.
    count: sentences that are chosen; 0 for the mean of training summaries.

  Returns:
    Name -> scores of `rouge.scores`.
  """
  if not count:
    sizes = [len(data.sentences(a.summary)) for a in articles.train]
    count = max(1, round(sum(sizes) / len(sizes)))
  found = {
    f"lead-{count}": rouge.scores(
      [rouge.lead(a, count) for a in scored], scored
    ),
    "the oracle that chooses sentences": rouge.scores(
      [rouge.oracle(a, count) for a in scored], scored
    ),
  }
  listed = ", ".join(
    f"{name} {' / '.join(f'{x:.1f}' for x in values.values())}"
    for name, values in found.items()
  )
  files.say(f"floors, ROUGE-1 / 2 / Lsum: {listed}")
  return found


def _standing(results: dict[str, Any]) -> str:
  floors = {n: s["rougeLsum"] for n, s in results["floors"].items()}
  return report.standing(
    results["rouge"]["rougeLsum"], floors, lower_is_better=False
  )


def verdict(results: dict[str, Any], workdir: pathlib.Path) -> str:
  """Plain words on the result, and where the report lies."""
  found = results["rouge"]
  return (
    f"result: ROUGE-1 {found['rouge1']:.2f}, ROUGE-2 {found['rouge2']:.2f}, "
    f"ROUGE-Lsum {found['rougeLsum']:.2f} on {results['test_articles']:,} "
    f"held-out articles; by ROUGE-Lsum\n{_standing(results)}\n"
    f"report: {workdir / 'report' / 'report.md'}"
  )


def write(
  config: Any,
  identity: dict[str, Any],
  workdir: pathlib.Path,
  articles: data.Articles,
  scored: Sequence[data.Article],
  floors: dict[str, dict[str, float]],
  result: loop.Result,
  texts: Sequence[str],
) -> dict[str, Any]:
  """Writes the report directory and prints the verdict.

  Args:
    config: of the run.
    identity: by which the run is known again.
    workdir: of the run.
    articles: of the run.
    scored: the held-out articles that were summarized.
    floors: of `floors_of`.
    result: of the loop.
    texts: the summaries of `scored`.

  Returns:
    What `results.json` holds.
  """
  params = jax.tree.leaves(result.state["params"])
  results = {
    "rouge": rouge.scores(texts, scored),
    "floors": floors,
    "corpus": articles.name,
    "split": articles.rule,
    "train_articles": len(articles.train),
    "test_articles": len(scored),
    "test_digest": articles.digest("test"),
    "valid_bits_per_token": result.evaluation["valid_bits_per_token"],
    "parameters": int(sum(x.size for x in params)),
    "seconds": result.seconds,
    "tokens_per_second": result.tokens_per_second,
    "config": dataclasses.asdict(config),
    "identity": identity,
    "environment": report.environment(),
    "summaries": [
      {"name": a.name, "asked": a.summary, "written": text}
      for a, text in zip(scored, texts, strict=True)
    ],
  }
  if files.first_process():
    folder = workdir / "report"
    lines = metrics.read(workdir / metrics.NAME)
    name = "valid_bits_per_token"
    plots.curves(
      folder / "loss.png",
      {"valid": [(x["step"], x[name]) for x in lines if name in x]},
      title=f"{articles.name}, {config.method}",
      x_label="step",
      y_label="bits per token of summaries",
    )
    report.write(
      folder,
      title=f"Summarization: {articles.name}",
      sections=_sections(results),
      results=results,
    )
  files.say(verdict(results, workdir))
  return results


def _sections(results: dict[str, Any]) -> list[tuple[str, str]]:
  config = results["config"]
  rows = [(name, *s.values()) for name, s in results["floors"].items()]
  rows.append((f"**{config['method']}**", *results["rouge"].values()))
  rows.sort(key=lambda row: -row[-1])
  columns = ("by", "ROUGE-1", "ROUGE-2", "ROUGE-Lsum")
  facts = [
    ("bits per token, valid", f"{results['valid_bits_per_token']:.4f}"),
    ("parameters", f"{results['parameters']:,}"),
    ("tokens a second while training", f"{results['tokens_per_second']:,.0f}"),
    ("training and its evaluation", report.duration(results["seconds"])),
    *results["environment"].items(),
  ]
  samples = [
    f"{s['name']}, asked for:\n\n{report.code(s['asked'])}\n\nwritten:\n\n"
    f"{report.code(s['written'])}"
    for s in results["summaries"][:_SHOWN]
  ]
  return [
    (
      "Result",
      f"{report.table(columns, rows)}\n\nBy ROUGE-Lsum: {_standing(results)}"
      "\n\n![curves](loss.png)",
    ),
    (
      "How it is measured",
      f"F1 in percent by the package rouge-score, with stemming, mean of the "
      f"first {results['test_articles']:,} held-out articles of "
      f"{results['corpus']} (digest {results['test_digest']}), split "
      f"{results['split']}. The encoder reads the first {config['length']:,} "
      f"tokens of an article. Summaries are those of a beam of "
      f"{config['num_beams']} with length penalty {config['length_penalty']}, "
      f"of at most {config['target_length']} tokens. The oracle chooses by the "
      "summary that is asked for; no model has that.",
    ),
    ("Run", report.table(("what", "value"), facts)),
    ("Summaries", "\n\n".join(samples)),
    (
      "Configuration",
      report.code(json.dumps(config, indent=2, sort_keys=True)),
    ),
  ]
