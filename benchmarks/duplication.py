"""The duplication task by rounds of hashing, in training and in evaluation.

  python -m benchmarks.duplication
  python -m benchmarks.duplication --train=full,2 --seeds=0 --steps=250

Trains Reformer's model of one reversible block on rows 0 w 0 w, with full
attention (one chunk, so that every token is seen) and with hash rounds, and
evaluates every trained model with full attention and with every number of
rounds: the table of Kitaev et al., 2020, section 5. Steps are those after which
a model has learned it. Results go to a JSON Lines file, and beside it a table.
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
from experiments.synthetic import duplication

_TRAIN = flags.DEFINE_list(
  "train", ["full", "8", "4", "2", "1"], "Rounds in training, or full."
)
_EVALUATE = flags.DEFINE_list(
  "evaluate", ["full", "8", "4", "2", "1"], "Rounds in evaluation, or full."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Of trainings.")
_WORD = flags.DEFINE_integer("word", 31, "Symbols of a word.", lower_bound=1)
_CHUNK = flags.DEFINE_integer("chunk", 8, "Tokens in a chunk.", lower_bound=1)
_STEPS = flags.DEFINE_integer(
  "steps", 0, "Of every training; 0: 600 full, 1200 with 1 round, else 800."
)
_ROWS = flags.DEFINE_integer(
  "rows", 512, "Held-out rows, a multiple of 32.", lower_bound=32
)
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/duplication.jsonl", "Where results go."
)
_FULL = "full"


def _options(task: Any, rounds: str) -> dict[str, Any]:
  """Options of the method; full attention is one chunk, in one round."""
  if rounds == _FULL:
    return {"chunk": task.length, "rounds": 1}
  return {"chunk": _CHUNK.value, "rounds": int(rounds)}


def _steps(rounds: str) -> int:
  return _STEPS.value or {_FULL: 600, "1": 1200}.get(rounds, 800)


def measure(rounds: str, seed: int) -> list[dict[str, Any]]:
  """Trains one model, and evaluates it in all ways."""
  task = duplication.Duplication(word=_WORD.value, symbols=_WORD.value)

  def model(rounds: str) -> Any:
    return task.make_model("reformer", _options(task, rounds), dtype="float32")

  trained = training.train(
    task,
    model(rounds),
    steps=_steps(rounds),
    batch_size=32,
    learning_rate=1e-3,
    warmup=200,
    seed=seed,
  )
  records = []
  for other in _EVALUATE.value:
    found = training.evaluate(
      task, model(other), trained.variables, rows=_ROWS.value, batch_size=32
    )
    records.append(
      {
        "train": rounds,
        "evaluate": other,
        "seed": seed,
        "steps": _steps(rounds),
        "train_seconds": round(trained.seconds, 1),
        "last_train_loss": trained.losses[-1],
        "word": _WORD.value,
        "chunk": _CHUNK.value,
        **found,
      }
    )
  return records


def table(records: list[dict[str, Any]]) -> str:
  """Accuracy by rounds in training and evaluation, the mean over seeds."""

  def cell(train: str, evaluate: str) -> str:
    found = [
      r["accuracy"]
      for r in records
      if (r["train"], r["evaluate"]) == (train, evaluate)
    ]
    mean, low, high = (
      f"{100 * f(found):.1f}" for f in (np.mean, np.min, np.max)
    )
    return mean if low == high else f"{mean} ({low} to {high})"

  rows = []
  for train in dict.fromkeys(r["train"] for r in records):
    first = next(r for r in records if r["train"] == train)
    row = {"trained with": train, "steps": str(first["steps"])}
    row |= {f"eval {e}": cell(train, e) for e in _EVALUATE.value}
    rows.append(row)
  return timing.markdown(rows)


def main(argv: list[str]) -> None:
  """Runs all trainings, writes and prints the results."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  for rounds in (*_TRAIN.value, *_EVALUATE.value):
    if rounds != _FULL and not rounds.isdigit():
      raise app.UsageError(f"rounds must be numbers or full, got {rounds!r}.")
  logging.set_verbosity(logging.WARNING)
  where, path = timing.environment(), pathlib.Path(_OUTPUT.value)
  records: list[dict[str, Any]] = []
  for rounds in _TRAIN.value:
    for seed in map(int, _SEEDS.value):
      records += measure(rounds, seed)
      print(f"trained with {rounds}, seed {seed}", flush=True)
      # Written each time, so that an interrupted run leaves what it has.
      timing.write_jsonl(path, [where | r for r in records])
  head = (
    f"`{where['command']}`, {where['date']}, {where['device']} with "
    f"{where['cores']} cores, jax {where['jax']}. Accuracy in percent on the "
    f"second word, {_ROWS.value} held-out rows; words of {_WORD.value} "
    f"symbols, chunks of {_CHUNK.value}, one reversible block. Mean over seeds "
    f"{', '.join(_SEEDS.value)} (lowest to highest). Rows: rounds in training; "
    "columns: in evaluation.\n\n"
  )
  text = head + table(records) + "\n"
  with files.whole(path.with_suffix(".md")) as part:
    part.write_text(text)
  print(f"\n{text}\nwritten to {path} (.md beside it)")


if __name__ == "__main__":
  app.run(main)
