r"""Pretrains an encoder on local text by what it makes of hidden words.

  python -m experiments.mlm.main
  python -m experiments.mlm.main --workdir=runs/bigbird \
    --config=experiments/mlm/configs/quickstart.py:bigbird
  python -m experiments.mlm.main --workdir=runs/longer \
    --config.initial=runs/mlm --config.length=1024

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from experiments.mlm import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "quickstart.py",
    workdir="runs/mlm",
  )
