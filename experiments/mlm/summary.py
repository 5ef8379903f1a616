"""The floors and the report of a masked language model."""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.common import data as rows_lib
from experiments.common import files
from experiments.common import loop
from experiments.common import metrics
from experiments.common import plots
from experiments.common import report
from experiments.lm import data as corpora
from experiments.mlm import floors as floors_lib
from experiments.mlm import hiding

_SHOWN = 160  # Tokens of a held-out row that the report fills in.


def describe(corpus: corpora.Corpus) -> str:
  """One line on the text of a run."""
  return (
    f"{corpus.name}: {corpus.train.num_bytes:,} bytes in "
    f"{len(corpus.train.names):,} documents to learn from, "
    f"{corpus.test.num_bytes:,} in {len(corpus.test.names):,} held out for the "
    f"result; {corpus.rule}"
  )


def floors_of(
  hide: hiding.Hider,
  train: rows_lib.Tokens,
  test: hiding.HeldOut,
  train_bytes: int,
) -> dict[str, Any]:
  """Scores of counting on what is hidden of the test rows.

  Args:
    hide: hides tokens.
    train: text to count in.
    test: rows that the model is scored on, with the same tokens hidden.
    train_bytes: about how much of the training text to count; 0 for all.

  Returns:
    `{"train_tokens": int, "bits": {name: bits per character}}`.
  """
  began = time.monotonic()
  ids = train.ids
  if train_bytes:
    ids = ids[: max(1, train_bytes * len(ids) // train.num_bytes)]
  rows, places = [], []
  act = jax.jit(lambda batch: hide(test.keys(batch), batch))
  for batch in test.batches(64):
    hidden = jax.device_get(act(batch))
    real = hidden.weights & (batch["counts"] > 0)[:, None]
    row, column = np.nonzero(real)
    found = (hidden.places[row, column], hidden.targets[row, column])
    places.append(np.stack([row + 64 * len(rows), *found], axis=-1))
    rows.append(hidden.tokens)
  hidden, asked = np.concatenate(rows), np.concatenate(places)
  characters = hide.tokenizer.characters()[asked[:, 2]].sum()

  def bits(probabilities: np.ndarray) -> float:
    return float(-np.log2(probabilities).sum() / characters)

  reach = min((63 // int(hide.mask_id).bit_length() - 1) // 2, 3)
  found = {
    "counts of tokens": bits(
      floors_lib.both_sides(ids, hidden, asked, mask_id=hide.mask_id, reach=0)
    ),
    f"counts of {reach}+{reach} neighbours": bits(
      floors_lib.both_sides(ids, hidden, asked, mask_id=hide.mask_id)
    ),
  }
  listed = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
  files.say(
    f"floors, in bits per character: {listed} ({time.monotonic() - began:.0f} "
    "s)"
  )
  return {"train_tokens": len(ids), "bits": found}


def filled_in(
  hide: hiding.Hider, test: hiding.HeldOut, predict: Callable[..., jax.Array]
) -> dict[str, str]:
  """A held-out row: as it was, as the model saw it, and as it filled it in."""
  if jax.process_count() > 1:
    return {}  # Parameters on several hosts are not read here.
  held = hiding.HeldOut(test.rows, test.chosen[len(test.chosen) // 2 :][:1], 0)
  batch = next(held.batches(1))
  hidden = hide(held.keys(batch), batch)
  logits = predict(batch, hidden)
  guess = np.asarray(logits[..., : hide.tokenizer.separator].argmax(-1))
  was = batch["inputs"][0]
  seen, filled = was.copy(), was.copy()
  real = np.asarray(hidden.weights[0])
  places = np.asarray(hidden.places[0])[real]
  gap = hide.tokenizer.encode([b"_"])[0][0]
  seen[places], filled[places] = gap, guess[0][real]
  decode = hide.tokenizer.decode
  return {
    "was": decode(was[:_SHOWN]),
    "seen": decode(seen[:_SHOWN]),
    "filled in": decode(filled[:_SHOWN]),
  }


def verdict(results: dict[str, Any], workdir: pathlib.Path) -> str:
  """Plain words on the result, and where the report lies."""
  test = results["scores"]["test"]
  return (
    f"result: {test['bits_per_character']:.3f} bits per hidden character, "
    f"perplexity {test['perplexity']:.2f} and accuracy {test['accuracy']:.3f} "
    "of hidden tokens, on held-out text\n"
    f"{report.standing(test['bits_per_character'], results['floors']['bits'])}"
    f"\nreport: {workdir / 'report' / 'report.md'}"
  )


def write(
  config: Any,
  identity: dict[str, Any],
  workdir: pathlib.Path,
  corpus: corpora.Corpus,
  tokens: dict[str, rows_lib.Tokens],
  floors: dict[str, Any],
  result: loop.Result,
  scores: dict[str, dict[str, float]],
  shown: dict[str, str],
) -> dict[str, Any]:
  """Writes the report directory and prints the verdict.

  Args:
    config: of the run.
    identity: of `train.identity`, by which the run is known again.
    workdir: of the run.
    corpus: its text.
    tokens: the parts of the corpus, tokenized.
    floors: of `floors_of`.
    result: of the loop.
    scores: of `train.Evaluator`, of `test` and `valid`.
    shown: of `filled_in`.

  Returns:
    What `results.json` holds.
  """
  params = jax.tree.leaves(result.state["params"])
  results = {
    "scores": scores,
    "floors": floors,
    "test_bytes": corpus.test.num_bytes,
    "test_documents": list(corpus.test.names),
    "test_digest": corpus.test.digest(),
    "corpus": corpus.name,
    "split": corpus.rule,
    "parameters": int(sum(x.size for x in params)),
    "train_tokens": len(tokens["train"].ids),
    "train_tokens_read": config.steps * config.batch_size * config.length,
    "seconds": result.seconds,
    "tokens_per_second": result.tokens_per_second,
    "config": dataclasses.asdict(config),
    "identity": identity,
    "environment": report.environment(),
    "filled_in": shown,
  }
  if files.first_process():
    folder = workdir / "report"
    _plot(folder, workdir, results)
    report.write(
      folder,
      title=f"Masked language modelling: {corpus.name}",
      sections=_sections(results),
      results=results,
    )
  files.say(verdict(results, workdir))
  return results


def _plot(
  folder: pathlib.Path, workdir: pathlib.Path, results: dict[str, Any]
) -> None:
  lines = metrics.read(workdir / metrics.NAME)
  name = "valid_bits_per_character"
  points = [(x["step"], x[name]) for x in lines if name in x]
  plots.curves(
    folder / "loss.png",
    {"valid": points},
    levels=results["floors"]["bits"],
    title=f"{results['corpus']}, {results['config']['method']}",
    x_label="step",
    y_label="bits per hidden character",
  )


def _table(results: dict[str, Any]) -> str:
  """The model among its floors, best first."""
  counted = results["floors"]["train_tokens"]
  rows = [
    (name, bits, counted, "interpolated Witten-Bell")
    for name, bits in results["floors"]["bits"].items()
  ]
  rows.append(
    (
      f"**encoder, {results['config']['method']}**",
      results["scores"]["test"]["bits_per_character"],
      results["train_tokens_read"],
      f"{results['parameters']:,} parameters",
    )
  )
  rows.sort(key=lambda row: row[1])
  columns = ("model", "bits per character", "training tokens read", "note")
  return report.table(columns, rows)


def _sections(results: dict[str, Any]) -> list[tuple[str, str]]:
  config, scores = results["config"], results["scores"]
  bits = scores["test"]["bits_per_character"]
  chance = math.log2(scores["test"]["perplexity"])
  facts = [
    *(
      (f"{k}, {part}", f"{v:.4f}")
      for part in scores
      for k, v in scores[part].items()
    ),
    ("bits per hidden token, test", f"{chance:.4f}"),
    ("steps", f"{config['steps']:,}"),
    ("tokens a second while training", f"{results['tokens_per_second']:,.0f}"),
    ("training and its evaluation", report.duration(results["seconds"])),
    *results["environment"].items(),
  ]
  what = "words, whole," if config["whole_words"] else "tokens, one by one,"
  samples = [
    f"{name}:\n\n{report.code(text)}"
    for name, text in results["filled_in"].items()
  ]
  standing = report.standing(bits, results["floors"]["bits"])
  return [
    ("Result", f"{_table(results)}\n\n{standing}\n\n![curves](loss.png)"),
    (
      "How it is measured",
      f"In {results['test_bytes']:,} bytes of "
      f"{len(results['test_documents']):,} held-out documents of "
      f"{results['corpus']} (digest {results['test_digest']}; names in "
      f"results.json), split {results['split']}, {what} are hidden at a rate "
      f"of {config['rate']}: 80% masked, 10% random, 10% as they are; in every "
      "evaluation the same ones, in training others in every step. Bits are "
      "those of the hidden tokens, divided by the characters they stand for. "
      "Floors predict the same tokens from the same rows, by counts of "
      f"{results['floors']['train_tokens']:,} tokens of the training text "
      "between the neighbours that are not hidden.",
    ),
    ("Run", report.table(("what", "value"), facts)),
    ("Filled in", "\n\n".join(samples) or "None."),
    (
      "Configuration",
      report.code(json.dumps(config, indent=2, sort_keys=True)),
    ),
  ]
