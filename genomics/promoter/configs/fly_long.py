r"""Promoters of the fly with 2,000 or 8,000 bases, by BigBird.

Command:
  python -m genomics.fetch fly_chr2R
  python -m genomics.fetch fly_upstream
  python -m genomics.promoter.main --workdir=runs/promoter_2k \
    --config=genomics/promoter/configs/fly_long.py:2k

and `:8k`.

Hardware: 2 cores of an Intel Xeon, shared with other work.
"""

from experiments.common import files
from genomics.promoter import train

# Bases before and after the start, tokenizer, tokens, rows a batch, steps.
_SIZES = {
  "2k": (1000, 1000, "overlapping_kmer:4", 2048, 16, 500),
  "8k": (5000, 3000, "kmer:6", 1344, 16, 700),
}


def get_config(size: str = "2k") -> train.Config:
  """The configuration of promoters of so many bases."""
  if size not in _SIZES:
    raise files.UserError(f"sizes are {', '.join(_SIZES)}, got {size!r}.")
  upstream, downstream, tokenizer, length, rows, steps = _SIZES[size]
  return train.Config(
    upstream=upstream,
    downstream=downstream,
    negatives="genomic",
    tokenizer=tokenizer,
    length=length,
    method="bigbird",
    method_options={"block": 32, "num_random": 2},
    positions="rotary",
    width=64,
    num_layers=2,
    num_heads=4,
    dropout=0.2,
    steps=steps,
    batch_size=rows,
    learning_rate=1e-3,
    warmup_steps=50,
    log_every=25,
    eval_every=250,
    checkpoint_every=100,
  )
