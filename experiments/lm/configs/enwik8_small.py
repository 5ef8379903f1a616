"""Enwik8 with the small model of the papers: 12 layers of width 512.

The sizes are those of the 12-layer Transformer-XL (Dai et al., 2019,
https://arxiv.org/abs/1901.02860) and of Longformer-small (Beltagy et al., 2020,
https://arxiv.org/abs/2004.05150): 8 heads of 64, feed-forward 2048, about 38
million parameters with tied embeddings. The training is not theirs: one phase
with one window of 512 tokens in rows of 4096, where Longformer has five phases
of growing windows and lengths, and Transformer-XL a memory of layer inputs. So
their results (1.06 and 1.00 bits per byte) are not what to expect.

Command:
  python -m experiments.lm.main --workdir=runs/enwik8_small \
    --config=experiments/lm/configs/enwik8_small.py:sliding_window \
    --config.path=data/enwik8

Hardware: meant for one accelerator of 80 GB, or several with the same batch.
Time: not measured. Result: not run.
"""

from experiments.lm import train

_OPTIONS = {"sliding_window": {"window": 512}}


def get_config(method: str = "sliding_window") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="enwik8",
    path="data/enwik8",
    length=4096,
    eval_stride=512,
    eval_windows=64,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=512,
    num_layers=12,
    num_heads=8,
    mlp_width=2048,
    dropout=0.1,
    remat="dots",
    dtype="bfloat16",
    steps=100_000,
    batch_size=16,
    learning_rate=5e-4,
    warmup_steps=2_000,
    final_learning_rate=0.05,
    log_every=50,
    eval_every=2_000,
    checkpoint_every=1_000,
    sample_tokens=1024,
  )
