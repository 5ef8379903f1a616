r"""Seconds on a CPU: every part of a run, on small made-up genes.

Command:
  python -m genomics.genes.main --workdir=runs/smoke \
    --config=genomics/genes/configs/smoke.py
"""

from genomics.genes import train

_OPTIONS = {"sliding_window": {"window": 8}, "bigbird": {"block": 8}}


def get_config(method: str = "dense") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    genome="synthetic",
    bases=100,
    length=102,
    both_strands=True,
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
