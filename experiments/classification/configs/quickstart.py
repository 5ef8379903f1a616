"""Minutes on 2 CPU cores: 1,500 whole film reviews, or newsgroups.

Command:
  python -m experiments.common.fetch reviews
  python -m experiments.classification.main
"""

from experiments.classification import train

_OPTIONS = {
  "bigbird": {"block": 32, "num_random": 2},
  "longformer": {"window": 64, "num_global": 1, "dilated_heads": 0},
}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="reviews",
    tokenizer="bpe",
    vocab_size=4000,
    length=1024,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=64,
    num_layers=2,
    num_heads=4,
    dropout=0.1,
    steps=400,
    batch_size=16,
    learning_rate=1e-3,
    warmup_steps=40,
    weight_decay=0.1,
    log_every=20,
    eval_every=50,
    checkpoint_every=50,
  )
