"""Metrics as lines of JSON and as TensorBoard events."""

import json
import math
import pathlib
from typing import Any

import tensorboardX

from experiments.common import files

NAME = "metrics.jsonl"


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics file; a last line cut short is left out."""
  if not path.exists():
    return []
  found = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      found.append(json.loads(line))
    except json.JSONDecodeError:
      break  # Written when the process died; nothing comes after it.
  return found


def cut(path: pathlib.Path, step: int) -> None:
  """Keeps the lines up to `step`: the rest belongs to a run that died."""
  if path.exists():
    kept = [line for line in read(path) if line["step"] <= step]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


class Writer:
  """Appends metrics to `metrics.jsonl` and to TensorBoard.

  Lines after the step that a run resumes from are cut first, so the file reads
  as if the run had never stopped.

  Args:
    workdir: of the run.
    step: that the run starts or resumes from.
    active: False on all processes but the first, which write nothing.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int, active: bool = True):
    self._file = self._board = None
    if active:
      workdir.mkdir(parents=True, exist_ok=True)
      cut(workdir / NAME, step)
      self._file = (workdir / NAME).open("a", encoding="utf-8")
      self._board = tensorboardX.SummaryWriter(
        str(workdir / "tensorboard"), purge_step=step + 1
      )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one line; it is in the operating system's hands on return."""
    if self._file is None or self._board is None:
      return
    line = {"step": step, **values}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    for name, value in values.items():
      if math.isfinite(value):
        self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Closes both."""
    if self._file is not None and self._board is not None:
      self._file.close()
      self._board.close()
