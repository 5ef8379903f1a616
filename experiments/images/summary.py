"""The report of a run on images."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.common import files
from experiments.common import loop
from experiments.common import metrics
from experiments.common import plots
from experiments.common import report
from experiments.images import data
from experiments.images import drawing


def describe(images: data.ImageSet) -> str:
  """One line on the data of a run."""
  rows, columns = images.shape
  return (
    f"{images.name}: {images.what}, {rows} x {columns} pixels of "
    f"{images.levels} levels: {len(images.train):,} to learn from, "
    f"{len(images.test):,} held out for the result"
  )


def verdict(results: dict[str, Any], workdir: pathlib.Path) -> str:
  """Plain words on the result, and where the report lies."""
  bits = results["bits_per_dim"]["test"]
  return (
    f"result: {bits:.3f} bits per dimension on {results['test_images']:,} "
    f"held-out images; {results['images_per_second']:.1f} images a second\n"
    f"{report.standing(bits, results['floors'])}\n"
    f"report: {workdir / 'report' / 'report.md'}"
  )


def write(
  config: Any,
  identity: dict[str, Any],
  workdir: pathlib.Path,
  images: data.ImageSet,
  floors: dict[str, float],
  result: loop.Result,
  scores: dict[str, float],
  drawn: drawing.Drawn,
) -> dict[str, Any]:
  """Writes the report directory and prints the verdict.

  Args:
    config: of the run.
    identity: by which the run is known again.
    workdir: of the run.
    images: of the run.
    floors: of `experiments.images.floors`.
    result: of the loop.
    scores: bits per dimension of `test` and `valid`.
    drawn: what the model drew.

  Returns:
    What `results.json` holds.
  """
  params = jax.tree.leaves(result.state["params"])
  results = {
    "bits_per_dim": scores,
    "floors": floors,
    "dataset": images.name,
    "what": describe(images),
    "test_images": len(images.test),
    "test_digest": images.digest("test"),
    "train_images": len(images.train),
    "epochs": config.steps * config.batch_size / len(images.train),
    "parameters": int(sum(x.size for x in params)),
    "seconds": result.seconds,
    "tokens_per_second": result.tokens_per_second,
    "images_per_second": drawn.images_per_second,
    "config": dataclasses.asdict(config),
    "identity": identity,
    "environment": report.environment(),
  }
  if files.first_process():
    folder = workdir / "report"
    _plot(folder, workdir, results)
    pictures = _pictures(folder, images, drawn)
    report.write(
      folder,
      title=f"Images: {images.name}",
      sections=_sections(results, pictures),
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

  plots.curves(
    folder / "loss.png",
    {
      "train": points("train_bits_per_dim"),
      "valid": points("valid_bits_per_dim"),
    },
    levels=results["floors"],
    title=f"{results['dataset']}, {results['config']['method']}",
    x_label="step",
    y_label="bits per dimension",
  )


def _pictures(
  folder: pathlib.Path, images: data.ImageSet, drawn: drawing.Drawn
) -> str:
  """Writes the grids; returns the text that shows them."""
  parts = []
  if len(drawn.samples):
    across = int(np.ceil(len(drawn.samples) ** 0.5))
    rows = [
      list(drawn.samples[i : i + across])
      for i in range(0, len(drawn.samples), across)
    ]
    plots.images(folder / "samples.png", rows, levels=images.levels)
    parts.append("Drawn from nothing:\n\n![samples](samples.png)")
  if len(drawn.given):
    half = drawn.given.copy()
    half[:, images.shape[0] // 2 :] = 0
    rows = [
      [upper, *tries, whole]
      for upper, tries, whole in zip(
        half, drawn.completed, drawn.given, strict=True
      )
    ]
    plots.images(folder / "completions.png", rows, levels=images.levels)
    parts.append(
      "A test image's upper half, four ways in which the model goes on, and "
      "the image:\n\n![completions](completions.png)"
    )
  return "\n\n".join(parts) or "None."


def _sections(results: dict[str, Any], pictures: str) -> list[tuple[str, str]]:
  config, bits = results["config"], results["bits_per_dim"]
  rows = [(n, v, "trained by counting") for n, v in results["floors"].items()]
  note = f"{results['parameters']:,} parameters"
  rows.append((f"**decoder, {config['method']}**", bits["test"], note))
  rows.sort(key=lambda row: row[1])
  speed = f"{results['images_per_second']:.1f}, {config['samples']} at once"
  facts = [
    ("bits per dimension, test", f"{bits['test']:.4f}"),
    ("bits per dimension, valid", f"{bits['valid']:.4f}"),
    ("steps", f"{config['steps']:,}"),
    ("epochs", f"{results['epochs']:.1f}"),
    ("pixels a second while training", f"{results['tokens_per_second']:,.0f}"),
    ("images a second while drawing", speed),
    ("training and its evaluation", report.duration(results["seconds"])),
    *results["environment"].items(),
  ]
  columns = ("model", "bits per dimension", "note")
  return [
    (
      "Result",
      f"{report.table(columns, rows)}\n\n"
      f"{report.standing(bits['test'], results['floors'])}\n\n"
      "![curves](loss.png)",
    ),
    (
      "How it is measured",
      f"{results['what']} (digest {results['test_digest']}). The mean of -log2 "
      "of the probability that the model gives to each pixel, after those "
      "above and to the left. Floors are interpolated by Witten and Bell's "
      "rule, and count the images that the model learns from.",
    ),
    ("Images", pictures),
    ("Run", report.table(("what", "value"), facts)),
    (
      "Configuration",
      report.code(json.dumps(config, indent=2, sort_keys=True)),
    ),
  ]
