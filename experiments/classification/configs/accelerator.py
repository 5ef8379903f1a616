r"""IMDB at 4096 tokens, the form of BigBird and Longformer, on a GPU or TPU.

Command:
  python -m experiments.classification.main --workdir=runs/imdb \
    --config=experiments/classification/configs/accelerator.py:bigbird \
    --config.path=aclImdb

Hardware: one accelerator with 80 GB.
Time: not measured.
Result: not run. The papers have 0.952 (BigBird) and 0.957 (Longformer), from
pretrained parameters; `--config.initial` starts from those of a run of ours
that has the same parts.
"""

from experiments.classification import train

_OPTIONS = {
  "bigbird": {"block": 64, "num_random": 3, "num_global": 128},
  "longformer": {"window": 512, "num_global": 1},
}


def get_config(method: str = "bigbird") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="folder",
    path="aclImdb",
    tokenizer="bpe",
    vocab_size=32_000,
    length=4096,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    norm="post",
    width=768,
    num_layers=12,
    num_heads=12,
    dropout=0.1,
    remat="dots",
    dtype="bfloat16",
    steps=12_000,
    batch_size=32,
    accumulate=4,
    learning_rate=3e-5,
    warmup_steps=1200,
    weight_decay=0.01,
    log_every=100,
    eval_every=1000,
    checkpoint_every=1000,
  )
