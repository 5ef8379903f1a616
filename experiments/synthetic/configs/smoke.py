"""Seconds on a CPU: every part of a run, too small to learn anything.

Command:
  python -m experiments.synthetic.main --workdir=runs/smoke \
    --config=experiments/synthetic/configs/smoke.py
"""

from experiments.synthetic import train

_STAR = {"width": 16, "num_heads": 2, "head_dim": 8}


def get_config(method: str = "star") -> train.Config:
  """The configuration, with the method that `method` names."""
  return train.Config(
    task="masked_summation",
    task_options={"n": 12, "k": 3},
    method=method,
    method_options=_STAR if method.startswith("star") else {},
    eval_rows=24,
    steps=10,
    batch_size=8,
    warmup_steps=2,
    log_every=2,
    eval_every=5,
    checkpoint_every=5,
  )
