r"""Seconds on a CPU: every part of a run, too small to learn anything.

Command:
  python -m experiments.qa.main --workdir=runs/smoke \
    --config=experiments/qa/configs/smoke.py
"""

from experiments.qa import train

_OPTIONS = {
  "bigbird": {"block": 8, "num_random": 1},
  "longformer": {"window": 8},
  "sliding_window": {"window": 8, "right": 8},
}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="needle",
    needle_documents=12,
    needle_held_out=3,
    needle_characters=300,
    length=128,
    stride=64,
    max_answer=8,
    beyond=64,
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
  )
