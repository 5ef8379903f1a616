r"""Trains a reader to answer questions, and writes a report.

  python -m experiments.qa.main
  python -m experiments.qa.main --workdir=runs/qa_dense \
    --config=experiments/qa/configs/needle.py:dense

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from experiments.qa import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "needle.py",
    workdir="runs/qa",
  )
