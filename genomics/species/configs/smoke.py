r"""Seconds on a CPU: every part of a run, on small made-up genomes.

Command:
  python -m genomics.species.main --workdir=runs/smoke \
    --config=genomics/species/configs/smoke.py
"""

from genomics.species import train

_OPTIONS = {"sliding_window": {"window": 8}, "bigbird": {"block": 8}}


def get_config(method: str = "dense") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    genome="synthetic",
    held_out="DH1",
    bases=48,
    length=50,
    train_windows=64,
    held_out_windows=20,
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
