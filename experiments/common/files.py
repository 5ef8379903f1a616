"""Files that are written whole or not at all, and the error for users."""

import contextlib
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import tqdm
from jax.experimental import multihost_utils


class UserError(Exception):
  """Something the user can mend; `main` prints it as one line."""


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path` that replaces it at the end.

  If the block raises, or the process dies inside it, `path` keeps what it had.

  Args:
    path: the file to write; its folder is made.

  Yields:
    The path to write to, with the same suffix.

  Example:
    >>> import pathlib, tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp(), "a.txt")
    >>> with whole(target) as part:
    ...   _ = part.write_text("all of it")
    >>> target.read_text()
    'all of it'

  Source: POSIX rename replaces a file in one step.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f".{os.getpid()}.part.{path.name}")
  try:
    yield part
    with part.open("rb+") as file:
      os.fsync(file.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file, whole or not at all."""
  with whole(path) as part:
    part.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file, whole or not at all."""
  write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_bytes(path: str | pathlib.Path, cure: str = "") -> bytes:
  """Reads a file, or raises UserError saying what and how to mend it."""
  path = pathlib.Path(path)
  try:
    return path.read_bytes()
  except OSError as error:
    why = error.strerror or type(error).__name__
    raise UserError(
      f"cannot read {path}: {why}. {cure or 'Check the path.'}"
    ) from error


def sha256(path: pathlib.Path) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def first_process() -> bool:
  """Whether this is the process that writes, of one or several."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits for the other processes, if there are any."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def say(text: str) -> None:
  """Prints a line for the user, at once, above a progress bar if there is one.

  Only the first of several processes prints.
  """
  if first_process():
    tqdm.tqdm.write(text)
    sys.stdout.flush()
