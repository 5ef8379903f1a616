r"""Trains an encoder to tell promoters, and writes a report.

  python -m genomics.promoter.main
  python -m genomics.promoter.main --workdir=runs/promoter_linear \
    --config=genomics/promoter/configs/fly_300.py:linear

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from genomics.promoter import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "fly_300.py",
    workdir="runs/promoter",
  )
