"""Seconds on a CPU: every part of a run, too small to learn anything.

Command:
  python -m experiments.lm.main --workdir=runs/smoke \
    --config=experiments/lm/configs/smoke.py
"""

from experiments.lm import train

_OPTIONS = {
  "longformer": {"window": 16},
  "sliding_window": {"window": 16},
  "sparse_transformer": {"stride": 8},
}


def get_config(method: str = "sliding_window") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="stdlib",
    train_bytes=200_000,
    held_out_bytes=20_000,
    length=64,
    eval_stride=64,
    eval_windows=32,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=32,
    num_layers=2,
    num_heads=2,
    steps=20,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=5,
    log_every=5,
    eval_every=10,
    checkpoint_every=5,
    sample_tokens=32,
  )
