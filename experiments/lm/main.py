r"""Trains a language model on local text, and writes a report.

  python -m experiments.lm.main
  python -m experiments.lm.main --workdir=runs/window \
    --config=experiments/lm/configs/quickstart.py:sliding_window
  python -m experiments.lm.main --workdir=runs/mine \
    --config.corpus=folder --config.path=my/texts --config.steps=2000

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from experiments.lm import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "quickstart.py",
    workdir="runs/lm",
  )
