r"""Trains a model on a synthetic task, and writes a report.

  python -m experiments.synthetic.main
  python -m experiments.synthetic.main --workdir=runs/ring_only \
    --config=experiments/synthetic/configs/masked_summation.py:star_ring_only

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from experiments.synthetic import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "masked_summation.py",
    workdir="runs/synthetic",
  )
