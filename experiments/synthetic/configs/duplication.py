r"""The duplication task: a word of 31 of 31 symbols, and the same word again.

Command:
  python -m experiments.synthetic.main --workdir=runs/duplication \
    --config=experiments/synthetic/configs/duplication.py:reformer

Hardware: 2 cores of an AMD EPYC, shared with other work.
Time: three minutes (1 min 8 s dense, 3 min 5 s reformer).
Result: accuracy on 1,024 held-out rows, with 0.032 for any symbol, and nats a
symbol, with 3.434:
dense 1.0000, 0.0009 (600 steps);
reformer 0.9992, 0.0039;
sliding_window 0.0312, 3.4378: a window of 16 does not reach 31 tokens back.
"""

from experiments.synthetic import train

_OPTIONS = {
  "reformer": {"chunk": 8, "rounds": 2},
  "sliding_window": {"window": 16},
}
_STEPS = {"dense": 600}


def get_config(method: str = "reformer") -> train.Config:
  """The configuration, with the method that `method` names."""
  return train.Config(
    task="duplication",
    method=method,
    method_options=_OPTIONS.get(method, {}),
    steps=_STEPS.get(method, 1250),
    batch_size=32,
    learning_rate=1e-3,
    warmup_steps=200,
    final_learning_rate=1.0,  # It stays what it is after the warm-up.
    beta2=0.999,
    log_every=50,
    eval_every=250,
    checkpoint_every=250,
  )
