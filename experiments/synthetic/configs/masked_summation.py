"""Masked summation, 10 of 200 vectors, with a small Star Transformer.

Command:
  python -m experiments.synthetic.main --workdir=runs/star \
    --config=experiments/synthetic/configs/masked_summation.py:star

Hardware: 2 cores of an AMD EPYC, shared with other jobs.
Time: 15 to 30 minutes; about 8 at 23,000 tokens a second, when less shared.
Result: squared error on 1,024 held-out rows, with 0.833 for always the mean:
star 0.0045;
star_radical_only 0.0040;
star_ring_only 0.1541.
After 600 steps:
star 0.0416;
star_radical_only 0.0482;
star_ring_only 0.2329.
"""

from experiments.synthetic import train

_OPTIONS = {
  "bigbird": {"block": 16, "num_random": 1},
  "etc": {"num_global": 1, "radius": 2},
  "longformer": {"window": 2, "num_global": 1},
  "sliding_window": {"window": 2, "right": 1},
  "sparse_transformer": {"stride": 14, "summary": 1},
}


def get_config(method: str = "star") -> train.Config:
  """The configuration, with the method that `method` names."""
  return train.Config(
    task="masked_summation",
    task_options={"n": 200, "k": 10},
    method=method,
    method_options=_OPTIONS.get(method, {}),
    steps=1500,
    batch_size=32,
    learning_rate=3e-3,
    warmup_steps=50,
    final_learning_rate=0.02,
    log_every=50,
    eval_every=100,
    checkpoint_every=100,
  )
