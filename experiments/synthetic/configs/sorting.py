r"""Sorting 32 of 32 symbols.

Command:
  python -m experiments.synthetic.main --workdir=runs/sorting \
    --config=experiments/synthetic/configs/sorting.py:sinkhorn

Hardware: 2 cores of an AMD EPYC.
Result: the table of `python -m benchmarks.sorting`, which trains in the same
way over several seeds, stands in benchmarks/results/sorting.md: 58.9% of the
symbols right, 45.4% with local attention, 99.1% with full attention.
"""

from experiments.synthetic import train

_OPTIONS = {
  "sinkhorn": {"block": 8},
  "sliding_window": {"window": 8},
}


def get_config(method: str = "sinkhorn") -> train.Config:
  """The configuration, with the method that `method` names."""
  return train.Config(
    task="sorting",
    method=method,
    method_options=_OPTIONS.get(method, {}),
    steps=1500,
    batch_size=32,
    learning_rate=2e-3,
    warmup_steps=100,
    final_learning_rate=1.0,
    eval_rows=512,
    log_every=50,
    eval_every=250,
    checkpoint_every=250,
  )
