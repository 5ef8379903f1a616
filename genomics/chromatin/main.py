r"""Trains an encoder on chromatin profiles, and writes a report.

  python -m genomics.chromatin.main \
    --config=genomics/chromatin/configs/deepsea_1k.py \
    --config.data=deepsea_train --workdir=runs/chromatin_1k

Without --config it learns made-up profiles. The same command again resumes a
run that was stopped.
"""

import pathlib

from experiments.common import program
from genomics.chromatin import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "motifs.py",
    workdir="runs/chromatin",
  )
