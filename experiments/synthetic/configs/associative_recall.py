r"""Associative recall in rows of 512 tokens, by heads of equal cost.

Command:
  python -m experiments.synthetic.main --workdir=runs/recall \
    --config=experiments/synthetic/configs/associative_recall.py:routing

Hardware: 2 cores of an AMD EPYC.
Result: the table of `python -m benchmarks.associative_recall`, which trains in
the same way over several seeds, stands in
benchmarks/results/associative_recall.md: 93.3% of the values recalled, 81.4% by
local heads alone.
"""

from experiments.synthetic import train

_OPTIONS = {
  "routing": {
    "num_clusters": 8,
    "window": 64,
    "local_heads": 2,
    "local_window": 64,
    "decay": 0.99,
  },
  "sliding_window": {"window": 64},
}


def get_config(method: str = "routing") -> train.Config:
  """The configuration, with the method that `method` names."""
  return train.Config(
    task="associative_recall",
    method=method,
    method_options=_OPTIONS.get(method, {}),
    steps=1500,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=100,
    final_learning_rate=1.0,
    eval_rows=128,
    log_every=50,
    eval_every=250,
    checkpoint_every=250,
  )
