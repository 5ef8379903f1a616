"""Paragraph retrieval: 8 paragraphs of 8 tokens, one or two hops.

Command:
  python -m experiments.synthetic.main --workdir=runs/retrieval \
    --config=experiments/synthetic/configs/paragraph_retrieval.py:etc

Hardware: 2 CPU cores.
"""

from experiments.synthetic import train

_OPTIONS = {
  "bigbird": {"block": 8, "num_random": 1, "num_global": 1},
  "longformer": {"window": 8, "num_global": 1},
  "sliding_window": {"window": 5, "right": 4},
}


def get_config(method: str = "etc") -> train.Config:
  """The configuration, with the method that `method` names."""
  options = {
    "paragraphs": 8,
    "tokens": 8,
    "names": 8,
    "hops": 2,
    "layers": 4,
    "read": 0,
  }
  if method == "cut_off":
    options, method = {**options, "read": 32}, "dense"
  return train.Config(
    task="paragraph_retrieval",
    task_options=options,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    steps=3000,
    batch_size=64,
    learning_rate=2e-3,
    warmup_steps=100,
    final_learning_rate=0.02,
    log_every=50,
    eval_every=250,
    checkpoint_every=250,
  )
