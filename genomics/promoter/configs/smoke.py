r"""Seconds on a CPU: every part of a run, on a small made-up genome.

Command:
  python -m genomics.promoter.main --workdir=runs/smoke \
    --config=genomics/promoter/configs/smoke.py
"""

from genomics.promoter import train

_OPTIONS = {"sliding_window": {"window": 8}, "bigbird": {"block": 8}}


def get_config(method: str = "dense") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    genome="synthetic",
    starts="synthetic",
    upstream=40,
    downstream=20,
    length=62,
    distance=100,
    train="chr1:1-80000",
    valid="chr1:80001-100000",
    test="chr1:100001-120000",
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
