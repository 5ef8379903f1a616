r"""Seconds on a CPU, without a download: files of the standard library.

Command:
  python -m experiments.classification.main --workdir=runs/smoke \
    --config=experiments/classification/configs/smoke.py
"""

from experiments.classification import train

_OPTIONS = {"longformer": {"window": 8, "num_global": 1}}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="stdlib",
    length=64,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=16,
    num_layers=1,
    num_heads=2,
    steps=10,
    batch_size=8,
    warmup_steps=2,
    log_every=2,
    eval_every=5,
    checkpoint_every=5,
  )
