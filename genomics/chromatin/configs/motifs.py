r"""Made-up profiles, six motifs on either strand: minutes on 2 CPU cores.

Command:
  python -m genomics.chromatin.main

Hardware: 2 cores of an Intel Xeon, shared with other work.
Time: two and a half minutes.
Result: median AUROC on 400 sequences, where the best floor, ridge regression
upon words of four bases, has 0.854:
dense 0.987.
"""

from genomics.chromatin import train

_OPTIONS = {"sliding_window": {"window": 32, "right": 31}}


def get_config(method: str = "dense") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    data="synthetic",
    tokenizer="overlapping_kmer:4",
    length=199,
    both_strands=True,
    positive_weight=8.0,
    least_positives=10,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    positions="rotary",
    width=64,
    num_layers=2,
    num_heads=4,
    steps=400,
    batch_size=32,
    learning_rate=2e-3,
    warmup_steps=50,
    log_every=25,
    eval_every=100,
    checkpoint_every=100,
  )
