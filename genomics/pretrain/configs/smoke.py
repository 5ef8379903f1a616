r"""Seconds on a CPU: every part of a run, on a small made-up genome.

Command:
  python -m genomics.pretrain.main --workdir=runs/smoke \
    --config=genomics/pretrain/configs/smoke.py
"""

from genomics.pretrain import train

_OPTIONS = {"sliding_window": {"window": 8}, "bigbird": {"block": 8}}


def get_config(method: str = "dense") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    genome="synthetic",
    train="chr1:1-80000",
    valid="chr1:80001-82000",
    test="chr1:100001-104000",
    bases=62,
    length=64,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    positions="rotary",
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
