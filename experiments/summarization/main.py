r"""Trains an encoder-decoder to write summaries, and writes a report.

  python -m experiments.summarization.main
  python -m experiments.summarization.main --workdir=runs/papers \
    --config.corpus=papers --config.length=2048 --config.target_length=200

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from experiments.summarization import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "quickstart.py",
    workdir="runs/summarization",
  )
