r"""Trains a model on a synthetic task, and writes a report.

  python -m experiments.synthetic.main
  python -m experiments.synthetic.main --workdir=runs/ring_only \
    --config=experiments/synthetic/configs/masked_summation.py:star_ring_only

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
from experiments.synthetic import train

_DEFAULT = pathlib.Path(__file__).parent / "configs" / "masked_summation.py"
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Python file with get_config; 'file.py:star_ring_only' picks the method. "
  "Without it, masked_summation.py.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/synthetic", "Folder for checkpoints, metrics and the report."
)
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Start again: removes what a run made in the workdir."
)


def _run() -> None:
  config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  name = name.partition(":")[0]
  files.read_bytes(name, "Check --config.")
  if not isinstance(config, train.Config):
    raise files.UserError(
      f"{name} must return an experiments.synthetic.train.Config, got "
      f"{type(config)}."
    )
  files.say(f"{jax.device_count()} x {jax.devices()[0].device_kind}: {workdir}")
  with loop.only_run(workdir):
    if _OVERWRITE.value and files.first_process():
      checkpoint.clear(workdir)
    train.run(config, workdir)


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; an override that does not fit is one line as well."""
  # As a default of the flag it would be loaded even if another one is given.
  if not any(a.lstrip("-").partition("=")[0] == "config" for a in argv):
    argv = [argv[0], f"--config={_DEFAULT}", *argv[1:]]
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    text = " ".join(str(error.args[0] if error.args else error).split())
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)


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
  app.run(main, flags_parser=_parse)
