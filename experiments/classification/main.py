r"""Trains an encoder to classify long documents, and writes a report.

  python -m experiments.common.fetch reviews
  python -m experiments.classification.main
  python -m experiments.classification.main --workdir=runs/newsgroups \
    --config.corpus=newsgroups

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.classification import train
from experiments.common import program

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "reviews.py",
    workdir="runs/classification",
  )
