"""Associative recall by routing, local and random attention, at equal cost.

  python -m benchmarks.associative_recall
  python -m benchmarks.associative_recall --methods=local --seeds=0 --steps=100

Trains decoders of two layers on rows that store values with keys and ask for
them again, 1 to 512 tokens later, and measures how many are recalled. Heads
attend to as many pairs each: a window of w tokens, or C clusters of w tokens
with C w the length. `routing+local` and `random+local` have windows on half
of their heads; full attention stands beside them, at a multiple of the cost.
Results go to a JSON Lines file, and beside it a table.
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
from experiments.synthetic import associative_recall

_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Of trainings.")
_METHODS = flags.DEFINE_list("methods", [], "Which; all without it.")
_LENGTH = flags.DEFINE_integer("length", 512, "Tokens.", lower_bound=8)
_CLUSTERS = flags.DEFINE_integer("clusters", 8, "C.", lower_bound=1)
_VALUES = flags.DEFINE_integer("values", 16, "Different values.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 1500, "Of training.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 8, "Rows a step.", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 3e-3, "After 100 steps of warm-up.")
_DECAY = flags.DEFINE_float("decay", 0.99, "Of the centroids.")
_ROWS = flags.DEFINE_integer(
  "rows", 128, "Held-out rows, a multiple of 16.", lower_bound=16
)
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/associative_recall.jsonl", "Where results go."
)
_HALF = 2  # Of four heads.


def _methods() -> dict[str, tuple[str, dict[str, Any]]]:
  """Name -> method and options, of equal cost but for the last one."""
  window = _LENGTH.value // _CLUSTERS.value
  clusters = {"num_clusters": _CLUSTERS.value, "window": window}
  local = {"local_heads": _HALF, "local_window": window}
  return {
    "routing+local": (
      "routing",
      clusters | local | {"decay": _DECAY.value},
    ),
    "local": ("sliding_window", {"window": window}),
    "random+local": ("routing", clusters | local | {"mode": "random"}),
    "random": ("routing", clusters | {"mode": "random"}),
    "full": ("dense", {}),
  }


def measure(name: str, seed: int) -> dict[str, Any]:
  """Trains and evaluates one model."""
  task = associative_recall.AssociativeRecall(
    length=_LENGTH.value, values=_VALUES.value
  )
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
    "length": _LENGTH.value,
    "window": _LENGTH.value // _CLUSTERS.value,
    "values": _VALUES.value,
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
        "recalled, %": f"{np.mean(accuracy):.1f}",
        "by seed": ", ".join(f"{x:.1f}" for x in accuracy),
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
  window = _LENGTH.value // _CLUSTERS.value
  head = (
    f"`{where['command']}`, {where['date']}, {where['device']} with "
    f"{where['cores']} cores, jax {where['jax']}. Values recalled of "
    f"{_ROWS.value} held-out rows of {_LENGTH.value} tokens and "
    f"{_VALUES.value} values; two layers of four heads, width 64, "
    f"{_STEPS.value} steps of {_BATCH.value} rows. Windows of {window} tokens, "
    f"{_CLUSTERS.value} clusters of {window}. By chance: "
    f"{100 / _VALUES.value:.1f}.\n\n"
  )
  text = head + table(records) + "\n"
  with files.whole(path.with_suffix(".md")) as part:
    part.write_text(text)
  print(f"\n{text}\nwritten to {path} (.md beside it)")


if __name__ == "__main__":
  app.run(main)
