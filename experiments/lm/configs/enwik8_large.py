"""Enwik8 with the large model of the papers: 24 layers of width 1024.

The sizes are those of the 24-layer Transformer-XL (Dai et al., 2019,
https://arxiv.org/abs/1901.02860): 8 heads of 128, feed-forward 3072, about 252
million parameters with tied embeddings. There is no memory of layer inputs
here, so its result (0.99 bits per byte) is not what to expect.

Command:
  python -m experiments.lm.main --workdir=runs/enwik8_large \
    --config=experiments/lm/configs/enwik8_large.py:sliding_window \
    --config.path=data/enwik8 --config.mesh=data=1,fsdp=-1

Hardware: meant for 8 accelerators of 80 GB; with fewer, raise accumulate.
Time: not measured. Result: not run.
"""

from experiments.lm import train

_OPTIONS = {"sliding_window": {"window": 768}}


def get_config(method: str = "sliding_window") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="enwik8",
    path="data/enwik8",
    length=3072,
    eval_stride=768,
    eval_windows=64,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=1024,
    num_layers=24,
    num_heads=8,
    mlp_width=3072,
    dropout=0.15,
    remat="full",
    dtype="bfloat16",
    steps=150_000,
    batch_size=32,
    learning_rate=2.5e-4,
    warmup_steps=4_000,
    final_learning_rate=0.05,
    log_every=50,
    eval_every=2_000,
    checkpoint_every=1_000,
    sample_tokens=1024,
  )
