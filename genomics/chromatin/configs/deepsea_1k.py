r"""DeepSEA's 919 profiles of 1,000 bases, or 8,000 with a genome and bins.

Command:
  python -m genomics.chromatin.main --workdir=runs/chromatin_1k \
    --config=genomics/chromatin/configs/deepsea_1k.py:bigbird \
    --config.data=deepsea_train

and for BigBird's 8,000 bases, besides:
  --config.genome=hg19.fa --config.assembly=hg19 --config.bins=bins \
  --config.bases=8000 --config.length=8064

Hardware: one accelerator of 40 GiB or more.
"""

from genomics.chromatin import train

_OPTIONS = {
  "bigbird": {"block": 64, "num_random": 3},
  "sliding_window": {"window": 128, "right": 127},
}


def get_config(method: str = "bigbird") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    tokenizer="nucleotide",
    length=1024,
    both_strands=True,
    positive_weight=8.0,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    positions="rotary",
    width=512,
    num_layers=8,
    num_heads=8,
    dropout=0.1,
    dtype="bfloat16",
    steps=100_000,
    batch_size=256,
    learning_rate=1e-4,
    warmup_steps=2000,
    log_every=100,
    eval_every=5000,
    checkpoint_every=1000,
  )
