"""Sorting by Sinkhorn, local and full attention.

  python -m benchmarks.sorting
  python -m benchmarks.sorting --methods=local --seeds=0 --steps=100

Trains decoders of two layers on symbols, a separator and the symbols sorted. A
symbol of the sorted half depends on all given ones, which blocks of their own
alone do not reach. Results go to a JSON Lines file, and beside it a table.
"""

import pathlib
from typing import Any

import numpy as np
from absl import app
from absl import flags
from absl import logging

from benchmarks import timing
from benchmarks import training
from experiments.common import files
from experiments.synthetic import sorting

_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Of trainings.")
_METHODS = flags.DEFINE_list("methods", [], "Which; all without it.")
_COUNT = flags.DEFINE_integer("count", 32, "Symbols to sort.", lower_bound=1)
_SYMBOLS = flags.DEFINE_integer(
  "symbols", 32, "Different symbols.", lower_bound=2
)
_BLOCK = flags.DEFINE_integer("block", 8, "Tokens in a block.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 1500, "Of training.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 32, "Rows a step.", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 2e-3, "After 100 steps of warm-up.")
_ROWS = flags.DEFINE_integer(
  "rows", 512, "Held-out rows, a multiple of 16.", lower_bound=16
)
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/sorting.jsonl", "Where results go."
)


def _methods() -> dict[str, tuple[str, dict[str, Any]]]:
  """Name -> method and options."""
  block = _BLOCK.value
  return {
    "sinkhorn": ("sinkhorn", {"block": block}),
    "sinkhorn per head": ("sinkhorn", {"block": block, "networks": "per_head"}),
    "sinkhorn mixture": ("sinkhorn", {"block": block, "mixture": True}),
    "local": ("sliding_window", {"window": block}),
    "local, twice": ("sliding_window", {"window": 2 * block}),
    "full": ("dense", {}),
  }


def measure(name: str, seed: int) -> dict[str, Any]:
  """Trains and evaluates one model."""
  task = sorting.Sorting(symbols=_SYMBOLS.value, count=_COUNT.value)
  method, options = _methods()[name]
  model = task.make_model(method, options, dtype="float32")
  trained = training.train(
    task,
    model,
    steps=_STEPS.value,
    batch_size=_BATCH.value,
    learning_rate=_RATE.value,
    warmup=100,
    seed=seed,
  )
  found = training.evaluate(
    task, model, trained.variables, rows=_ROWS.value, batch_size=16
  )
  return {
    "method": name,
    "seed": seed,
    "steps": _STEPS.value,
    "batch": _BATCH.value,
    "count": _COUNT.value,
    "symbols": _SYMBOLS.value,
    "block": _BLOCK.value,
    "train_seconds": round(trained.seconds, 1),
    "train_losses": [round(x, 3) for x in trained.losses],
    **found,
  }


def table(records: list[dict[str, Any]]) -> str:
  """Accuracy of every method over seeds."""
  rows = []
  for name in dict.fromkeys(r["method"] for r in records):
    found = [r for r in records if r["method"] == name]
    accuracy = [100 * r["accuracy"] for r in found]
    rows.append(
      {
        "method": name,
        "symbols right, %": f"{np.mean(accuracy):.1f}",
        "by seed": ", ".join(f"{x:.1f}" for x in accuracy),
        "rows right, %": f"{100 * np.mean([r['exact'] for r in found]):.1f}",
        "nats": f"{np.mean([r['loss'] for r in found]):.3f}",
        "seconds": f"{np.mean([r['train_seconds'] for r in found]):.0f}",
      }
    )
  return timing.markdown(rows)


def main(argv: list[str]) -> None:
  """Runs all trainings, writes and prints the results."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  chosen = _METHODS.value or list(_methods())
  for name in chosen:
    if name not in _methods():
      raise app.UsageError(
        f"--methods: unknown {name!r}; known: {', '.join(_methods())}."
      )
  logging.set_verbosity(logging.WARNING)
  where, path = timing.environment(), pathlib.Path(_OUTPUT.value)
  records: list[dict[str, Any]] = []
  for seed in map(int, _SEEDS.value):
    for name in chosen:
      records.append(measure(name, seed))
      print(f"{name}, seed {seed}: {records[-1]['accuracy']:.3f}", flush=True)
      # Written each time, so that an interrupted run leaves what it has.
      timing.write_jsonl(path, [where | r for r in records])
  head = (
    f"`{where['command']}`, {where['date']}, {where['device']} with "
    f"{where['cores']} cores, jax {where['jax']}. {_COUNT.value} of "
    f"{_SYMBOLS.value} symbols, {_ROWS.value} held-out rows, each symbol given "
    "the right ones before it; two layers of four heads, width 128, "
    f"{_STEPS.value} steps of {_BATCH.value} rows; blocks and windows of "
    f"{_BLOCK.value} tokens. By chance: {100 / _SYMBOLS.value:.1f}.\n\n"
  )
  text = head + table(records) + "\n"
  with files.whole(path.with_suffix(".md")) as part:
    part.write_text(text)
  print(f"\n{text}\nwritten to {path} (.md beside it)")


if __name__ == "__main__":
  app.run(main)
