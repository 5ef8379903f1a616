r"""Trains an encoder to find genes base by base, and writes a report.

  python -m genomics.fetch leptospira
  python -m genomics.genes.main

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from genomics.genes import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "leptospira.py",
    workdir="runs/genes",
  )
