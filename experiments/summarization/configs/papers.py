r"""Abstracts of 250 papers of the ACL Anthology: minutes on 2 CPU cores.

So few are too few to learn to write from nothing, see docs/summarization.md.

Command:
  python -m experiments.common.fetch papers
  python -m experiments.summarization.main --workdir=runs/papers \
    --config=experiments/summarization/configs/papers.py

Hardware: 2 CPU cores, shared with other work.
Time: 6 min 55 s in all.
Result: ROUGE-1 / 2 / Lsum 15.7 / 2.8 / 14.4 on 100 held-out papers, below
lead-6 (35.5 / 9.5 / 32.0) and the oracle (63.5 / 34.9 / 58.9). Seed 0.
"""

from experiments.summarization import train

_OPTIONS = {
  "bigbird": {"block": 32, "num_random": 1},
  "longformer": {"window": 32, "num_global": 1, "dilated_heads": 0},
}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="papers",
    vocab_size=2000,
    length=1024,
    target_length=160,
    min_length=40,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=128,
    num_layers=1,
    decoder_layers=2,
    num_heads=4,
    dropout=0.1,
    steps=250,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=30,
    final_learning_rate=0.02,
    beta2=0.98,
    log_every=25,
    eval_every=125,
    checkpoint_every=125,
  )
