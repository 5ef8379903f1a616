r"""Trains a language model on local text, and writes a report.

  python -m experiments.lm.main
  python -m experiments.lm.main --workdir=runs/window \
    --config=experiments/lm/configs/quickstart.py:sliding_window
  python -m experiments.lm.main --workdir=runs/mine \
    --config.corpus=folder --config.path=my/texts --config.steps=2000

The same command again resumes a run that was stopped.
"""

import pathlib
import sys

import jax
from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from experiments.common import checkpoint
from experiments.common import files
from experiments.common import loop
from experiments.lm import train

_QUICKSTART = pathlib.Path(__file__).parent / "configs" / "quickstart.py"
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  str(_QUICKSTART),
  "Python file with get_config; 'file.py:sliding_window' picks the method.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/lm", "Folder for checkpoints, metrics and the report."
)
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Start again: removes what a run made in the workdir."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Join the other processes through jax.distributed.initialize(), which finds "
  "them by itself under Slurm, Open MPI, Kubernetes and on Cloud TPU.",
)


def _run() -> None:
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  if not isinstance(config, train.Config):
    raise files.UserError(
      f"--config must return an experiments.lm.train.Config, got {config!r}."
    )
  files.say(f"{jax.device_count()} x {jax.devices()[0].device_kind}: {workdir}")
  with loop.only_run(workdir):
    if _OVERWRITE.value:
      checkpoint.clear(workdir)
    train.run(config, workdir)


def main(argv: list[str]) -> None:
  """Runs the job; what a user can mend is one line and exit code 1."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  try:
    _run()
  except (files.UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print("\nstopped: the same command goes on from here", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)  # Orbax logs every file it writes.
  app.run(main)
