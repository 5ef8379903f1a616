r"""Trains a language model of DNA, and writes a report.

  python -m genomics.fetch fly_chr2R
  python -m genomics.pretrain.main
  python -m genomics.pretrain.main --workdir=runs/pretrain_causal \
    --config=genomics/pretrain/configs/fly.py:linear \
    --config.objective=causal

The same command again resumes a run that was stopped.
"""

import pathlib

from experiments.common import program
from genomics.pretrain import train

if __name__ == "__main__":
  program.start(
    train.Config,
    train.run,
    default=pathlib.Path(__file__).parent / "configs" / "fly.py",
    workdir="runs/pretrain",
  )
