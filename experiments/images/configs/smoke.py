r"""Seconds on a CPU: every part of a run, too small to learn anything.

Command:
  python -m experiments.images.main --workdir=runs/smoke \
    --config=experiments/images/configs/smoke.py
"""

from experiments.images import train

_OPTIONS = {"sliding_window": {"window": 8}}


def get_config(method: str = "linear") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    dataset="digits",
    train_images=64,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=16,
    num_layers=1,
    num_heads=2,
    steps=10,
    batch_size=8,
    warmup_steps=2,
    log_every=2,
    eval_every=5,
    checkpoint_every=5,
    samples=4,
    completions=2,
  )
