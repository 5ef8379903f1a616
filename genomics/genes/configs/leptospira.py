r"""Genes of Leptospira kirschneri: minutes on 2 CPU cores.

Command:
  python -m genomics.fetch leptospira
  python -m genomics.genes.main

Hardware: 2 cores.
"""

from genomics.genes import train

_OPTIONS = {"sliding_window": {"window": 64, "right": 63}}


def get_config(method: str = "sliding_window") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    bases=510,
    length=512,
    both_strands=True,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    positions="rotary",
    width=96,
    num_layers=4,
    num_heads=4,
    steps=500,
    batch_size=16,
    learning_rate=2e-3,
    warmup_steps=50,
    log_every=25,
    eval_every=250,
    checkpoint_every=100,
  )
