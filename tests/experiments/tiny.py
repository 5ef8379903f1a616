"""A corpus and a configuration small enough for tests."""

from typing import Any

import numpy as np

from experiments.lm import train


def write_corpus(folder, *, count=60, size=300):
  """Text files with a little structure, the same at every call."""
  rng = np.random.default_rng(0)
  words = ["alpha ", "beta ", "gamma(x)\n", "delta: "]
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(count):
    text = "".join(rng.choice(words, size // 4))
    (folder / f"{i:03d}.txt").write_text(text[:size])
  return folder


def config(folder, **changes):
  """A configuration on `write_corpus(folder)`."""
  fields: dict[str, Any] = dict(
    corpus="folder",
    path=str(folder),
    length=16,
    eval_stride=8,
    eval_windows=16,
    method="sliding_window",
    method_options={"window": 4},
    width=16,
    num_layers=1,
    num_heads=2,
    steps=10,
    batch_size=16,
    learning_rate=1e-2,
    warmup_steps=2,
    log_every=1,
    eval_every=5,
    checkpoint_every=2,
    sample_tokens=8,
    mesh="data=1",
  )
  return train.Config(**(fields | changes))
