"""Minutes on 2 CPU cores: what does this function of Python's library do?

Command:
  python -m experiments.summarization.main
"""

from experiments.summarization import train

_OPTIONS = {
  "bigbird": {"block": 32, "num_random": 1},
  "longformer": {"window": 64, "num_global": 1, "dilated_heads": 0},
}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="docstrings",
    vocab_size=4000,
    length=512,
    target_length=32,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=128,
    num_layers=2,
    decoder_layers=2,
    num_heads=4,
    dropout=0.1,
    steps=500,
    batch_size=8,
    learning_rate=2e-3,
    warmup_steps=50,
    final_learning_rate=0.02,
    beta2=0.98,
    log_every=20,
    eval_every=100,
    checkpoint_every=100,
  )
