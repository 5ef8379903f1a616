r"""Genes of Leptospira kirschneri: minutes on 2 CPU cores.

Command:
  python -m genomics.fetch leptospira
  python -m genomics.genes.main

Hardware: 2 cores of an Intel Xeon, shared with other work.
Time: four and a half minutes.
Result: MCC of eleven labels on 980,948 bases of 15 contigs, where open reading
frames of whole contigs have 0.909 and win by far:
dense 0.410, 95 % 0.388 to 0.419.
"""

from genomics.genes import train

_OPTIONS = {"sliding_window": {"window": 64, "right": 63}}


def get_config(method: str = "dense") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    bases=254,
    length=256,
    both_strands=True,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    positions="rotary",
    width=64,
    num_layers=3,
    num_heads=4,
    steps=600,
    batch_size=16,
    learning_rate=2e-3,
    warmup_steps=50,
    log_every=25,
    eval_every=300,
    checkpoint_every=100,
  )
