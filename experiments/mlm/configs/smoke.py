"""The smallest setting: whether everything runs, in well under a minute.

Command:
  python -m experiments.mlm.main --config=experiments/mlm/configs/smoke.py

Hardware: any.
Time: 20 seconds on 2 CPU cores.
Result: nothing to speak of: 20 steps beat no floor.
"""

from experiments.mlm import train


def get_config() -> train.Config:
  """The configuration."""
  return train.Config(
    corpus="stdlib",
    train_bytes=200_000,
    held_out_bytes=20_000,
    length=64,
    width=32,
    num_layers=1,
    num_heads=2,
    steps=20,
    batch_size=4,
    warmup_steps=5,
    log_every=10,
    eval_every=10,
    eval_rows=8,
    checkpoint_every=10,
  )
