"""Minutes on 2 CPU cores: what does this function of Python's library do?

Command:
  python -m experiments.summarization.main

Hardware: 2 CPU cores, shared with other work.
Time: about 4 minutes in all.
Result: ROUGE-1 / 2 / Lsum 11.3 / 2.1 / 10.9 on 100 held-out functions, below
lead-1 (19.1 / 2.4 / 17.1) and the oracle (30.6 / 9.7 / 27.7). Seed 0.
"""

from experiments.summarization import train

_OPTIONS = {
  "bigbird": {"block": 32, "num_random": 1},
  "longformer": {"window": 32, "num_global": 1, "dilated_heads": 0},
}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="docstrings",
    vocab_size=2000,
    length=128,
    target_length=32,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=128,
    num_layers=1,
    decoder_layers=2,
    num_heads=4,
    steps=400,
    batch_size=32,
    learning_rate=3e-3,
    warmup_steps=40,
    final_learning_rate=0.02,
    beta2=0.98,
    log_every=20,
    eval_every=100,
    checkpoint_every=100,
  )
