"""The command line of an experiment: flags, and mistakes in one line."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from experiments.common import checkpoint
from experiments.common import files
from experiments.common import loop

flags.disclaim_key_flags()  # `--help` shows them as those of the program.


def start(
  config_type: type,
  run: Callable[[Any, pathlib.Path], Any],
  *,
  default: pathlib.Path,
  workdir: str,
) -> None:
  """Defines the flags of a program and runs it.

  Args:
    config_type: what `get_config` of a configuration must return.
    run: `(config, workdir)`, the job.
    default: configuration without `--config`.
    workdir: without `--workdir`.
  """
  config = config_flags.DEFINE_config_file(
    "config",
    None,
    "Python file with get_config; 'file.py:dense' picks the method. Without "
    f"it, {default.name}.",
  )
  folder = flags.DEFINE_string(
    "workdir", workdir, "Folder for checkpoints, metrics and the report."
  )
  overwrite = flags.DEFINE_bool(
    "overwrite", False, "Start again: removes what a run made in the workdir."
  )
  distributed = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the other processes through jax.distributed.initialize(), which "
    "finds them by itself under Slurm, Open MPI, Kubernetes and on Cloud TPU.",
  )

  def job() -> None:
    if distributed.value:
      jax.distributed.initialize()
    where = pathlib.Path(folder.value)
    _check_type(config.value, config_type)
    files.say(f"{jax.device_count()} x {jax.devices()[0].device_kind}: {where}")
    with loop.only_run(where):
      if overwrite.value and files.first_process():
        checkpoint.clear(where)
      files.barrier("cleared")
      run(config.value, where)

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    _in_one_line(job)

  logging.set_verbosity(logging.WARNING)  # Orbax logs every file it writes.
  app.run(main, flags_parser=lambda argv: _parse(argv, default))


def _check_type(config: Any, wanted: type) -> None:
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  name = name.partition(":")[0]
  files.read_bytes(name, "Check --config.")
  if not isinstance(config, wanted):
    raise files.UserError(
      f"{name} must return an {wanted.__module__}.{wanted.__name__}, got "
      f"{type(config)}."
    )


def _parse(argv: list[str], default: pathlib.Path) -> list[str]:
  """Parses flags; an override that does not fit is one line as well."""
  # As a default of the flag it would be loaded even if another one is given.
  if not any(a.lstrip("-").partition("=")[0] == "config" for a in argv):
    argv = [argv[0], f"--config={default}", *argv[1:]]
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    text = " ".join(str(error.args[0] if error.args else error).split())
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)


def _in_one_line(job: Callable[[], None]) -> None:
  """Runs the job; what a user can mend is one line and exit code 1."""
  try:
    job()
  except (files.UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print("\nstopped: the same command goes on from here", file=sys.stderr)
    sys.exit(130)
