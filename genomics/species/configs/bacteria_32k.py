r"""Four species of bacteria by 32,000 bases, with linear cost in length.

Command:
  python -m genomics.species.main --workdir=runs/species_32k \
    --config=genomics/species/configs/bacteria_32k.py:linear

Hardware: one accelerator of 16 GiB or more.
"""

from genomics.species import train

_OPTIONS = {
  "bigbird": {"block": 64, "num_random": 3},
  "sliding_window": {"window": 256, "right": 255},
}


def get_config(method: str = "linear") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    bases=32_000,
    train_windows=20_000,
    tokenizer="nucleotide",
    length=32_002,
    both_strands=True,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    positions="rotary",
    width=256,
    num_layers=6,
    num_heads=8,
    remat="full",
    dtype="bfloat16",
    steps=2000,
    batch_size=16,
    accumulate=4,
    learning_rate=3e-4,
    warmup_steps=200,
    log_every=20,
    eval_every=500,
    checkpoint_every=200,
  )
