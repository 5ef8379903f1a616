r"""Trains an encoder to tell species by stretches of DNA, and writes a report.

  python -m genomics.fetch bacteria
  python -m genomics.species.main

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from genomics.species import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "bacteria.py",
    workdir="runs/species",
  )
