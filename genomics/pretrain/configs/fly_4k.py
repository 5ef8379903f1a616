r"""BigBird's form of pre-training on the fly's arm 2R: 4,096 tokens.

Pieces first:
  python -m genomics.tokens.main --genome=fly_chr2R --output=fly4096.model
and --config.tokenizer=fly4096.model --config.bases=20000; without, a base each.

Command:
  python -m genomics.pretrain.main --workdir=runs/pretrain_4k \
    --config=genomics/pretrain/configs/fly_4k.py:bigbird

Hardware: one accelerator of 40 GiB or more.
"""

from genomics.pretrain import train

_OPTIONS = {
  "bigbird": {"block": 64, "num_random": 3},
  "sliding_window": {"window": 256, "right": 255},
}


def get_config(method: str = "bigbird") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    method=method,
    method_options=_OPTIONS.get(method, {}),
    bases=4094,
    length=4096,
    positions="rotary",
    width=512,
    num_layers=8,
    num_heads=8,
    dropout=0.1,
    dtype="bfloat16",
    steps=10_000,
    batch_size=64,
    accumulate=4,
    learning_rate=5e-4,
    warmup_steps=500,
    log_every=20,
    eval_every=1000,
    checkpoint_every=500,
  )
