r"""Seconds on a CPU: every part of a run, on made-up profiles.

Command:
  python -m genomics.chromatin.main --workdir=runs/smoke \
    --config=genomics/chromatin/configs/smoke.py
"""

from genomics.chromatin import train

_OPTIONS = {"sliding_window": {"window": 8}, "bigbird": {"block": 8}}


def get_config(method: str = "dense") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    data="synthetic",
    length=202,
    both_strands=True,
    positive_weight=8.0,
    least_positives=1,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=16,
    num_layers=1,
    num_heads=2,
    steps=10,
    batch_size=8,
    warmup_steps=2,
    log_every=5,
    eval_every=5,
    checkpoint_every=5,
  )
