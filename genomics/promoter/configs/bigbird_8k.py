r"""BigBird's task on real promoters: 8,000 bases around the start.

Pieces first: python -m genomics.tokens.main --genome=... --output=fly.model;
without them, six bases a token.

Command:
  python -m genomics.promoter.main --workdir=runs/promoter_8k \
    --config=genomics/promoter/configs/bigbird_8k.py:bigbird

Hardware: one accelerator of 16 GiB or more.
"""

from genomics.promoter import train

_OPTIONS = {
  "bigbird": {"block": 64, "num_random": 3},
  "sliding_window": {"window": 256, "right": 255},
}


def get_config(method: str = "bigbird") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    upstream=5000,
    downstream=3000,
    negatives="permute_pieces",
    tokenizer="kmer:6",
    length=1408,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    positions="learned",
    pooling="first",
    width=256,
    num_layers=6,
    num_heads=8,
    dropout=0.1,
    dtype="bfloat16",
    steps=2000,
    batch_size=64,
    learning_rate=1e-4,
    warmup_steps=200,
    log_every=20,
    eval_every=200,
    checkpoint_every=200,
  )
