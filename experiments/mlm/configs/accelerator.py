"""BigBird's or Longformer's pretraining form on a GPU or TPU: 4096 tokens.

Command:
  python -m experiments.common.fetch wikipedia
  python -m experiments.mlm.main --workdir=runs/mlm4096 \
    --config=experiments/mlm/configs/accelerator.py:bigbird

Hardware: one accelerator with 80 GB.
Time: not measured.
Result: not run. BigBird's paper has 1.67 bits per character for its base form,
which starts from RoBERTa and reads 160 GB of text.
"""

from experiments.mlm import train

_OPTIONS = {
  "bigbird": {"block": 64, "num_random": 3},
  "longformer": {"window": 512},
}


def get_config(method: str = "bigbird") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="wikipedia",
    tokenizer="bpe",
    vocab_size=32_000,
    length=4096,
    eval_rows=64,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    norm="post",
    width=768,
    num_layers=12,
    num_heads=12,
    dropout=0.1,
    remat="dots",
    dtype="bfloat16",
    steps=100_000,
    batch_size=32,
    accumulate=4,
    learning_rate=1e-4,
    warmup_steps=10_000,
    log_every=100,
    eval_every=2000,
    checkpoint_every=2000,
  )
