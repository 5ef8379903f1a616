r"""Genes of Leptospira kirschneri by 8,190 bases: operons as a whole.

Command:
  python -m genomics.genes.main --workdir=runs/genes_8k \
    --config=genomics/genes/configs/leptospira_8k.py:bigbird

Hardware: one accelerator of 16 GiB or more.
"""

from genomics.genes import train

_OPTIONS = {
  "bigbird": {"block": 64, "num_random": 3},
  "sliding_window": {"window": 256, "right": 255},
}


def get_config(method: str = "bigbird") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    bases=8190,
    stride=2048,
    length=8192,
    both_strands=True,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    positions="rotary",
    width=256,
    num_layers=6,
    num_heads=8,
    dropout=0.1,
    dtype="bfloat16",
    steps=3000,
    batch_size=16,
    learning_rate=5e-4,
    warmup_steps=200,
    log_every=20,
    eval_every=500,
    checkpoint_every=200,
  )
