r"""Sorting 64 of 64 symbols.

Command:
  python -m experiments.synthetic.main --workdir=runs/sorting \
    --config=experiments/synthetic/configs/sorting.py:sinkhorn

Hardware: 2 cores of an AMD EPYC.
Result: the table of `python -m benchmarks.sorting`, which trains in the same
way over several seeds, stands in benchmarks/results/sorting.md.
"""

from experiments.synthetic import train

_OPTIONS = {
  "sinkhorn": {"block": 16},
  "sliding_window": {"window": 16},
}


def get_config(method: str = "sinkhorn") -> train.Config:
  """The configuration, with the method that `method` names."""
  return train.Config(
    task="sorting",
    method=method,
    method_options=_OPTIONS.get(method, {}),
    steps=1000,
    batch_size=32,
    learning_rate=2e-3,
    warmup_steps=100,
    final_learning_rate=1.0,
    eval_rows=512,
    log_every=50,
    eval_every=250,
    checkpoint_every=250,
  )
