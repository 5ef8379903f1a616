r"""Trains a decoder to draw images pixel by pixel, and writes a report.

  python -m experiments.images.main
  python -m experiments.images.main --workdir=runs/images_dense \
    --config=experiments/images/configs/digits.py:dense

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from experiments.images import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "digits.py",
    workdir="runs/images",
  )
