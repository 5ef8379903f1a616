r"""Bases of the fly's arm 2R from their neighbours: minutes on 2 CPU cores.

Command:
  python -m genomics.fetch fly_chr2R
  python -m genomics.pretrain.main

Hardware: 2 cores of an Intel Xeon, shared with much other work.
Time: 12 minutes.
Result: bits a base on 800 windows of the last tenth of chr2R, where counts of
two neighbours a side have 1.952 and of four, the best floor, 1.926:
dense 1.946.
"""

from genomics.pretrain import train

_OPTIONS = {"sliding_window": {"window": 32, "right": 31}}


def get_config(method: str = "dense") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    method=method,
    method_options=_OPTIONS.get(method, {}),
    bases=126,
    length=128,
    positions="rotary",
    width=96,
    num_layers=3,
    num_heads=4,
    eval_windows=800,
    steps=800,
    batch_size=32,
    learning_rate=2e-3,
    warmup_steps=50,
    beta2=0.98,
    log_every=25,
    eval_every=400,
    checkpoint_every=100,
  )
