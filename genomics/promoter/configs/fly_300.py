r"""Promoters of the fly, 300 bases, against windows of the genome.

Command:
  python -m genomics.fetch fly_chr2R
  python -m genomics.fetch fly_upstream
  python -m genomics.promoter.main

Hardware: 2 cores of an Intel Xeon, shared with other work.
Time: five minutes.
Result: F1 on 2,074 windows beyond 15 Mb, where the best floor, logistic
regression upon words of five bases, has 0.754:
dense 0.774, 95 % 0.756 to 0.793; bigbird 0.748, 0.729 to 0.768.
"""

from genomics.promoter import train

_OPTIONS = {
  "bigbird": {"block": 32, "num_random": 2},
  "sliding_window": {"window": 64, "right": 63},
}


def get_config(method: str = "dense") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    upstream=249,
    downstream=51,
    negatives="genomic",
    tokenizer="overlapping_kmer:4",
    length=299,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    positions="rotary",
    width=64,
    num_layers=2,
    num_heads=4,
    dropout=0.2,
    steps=600,
    batch_size=32,
    learning_rate=1e-3,
    warmup_steps=50,
    log_every=25,
    eval_every=100,
    checkpoint_every=100,
  )
