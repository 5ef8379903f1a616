"""Reading Hugging Face folders: `config.json` and safetensors files."""

import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import safetensors

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads the configuration of a local checkpoint.

  Args:
    folder: a local folder, as Hugging Face's `save_pretrained` writes it.

  Returns:
    The fields of its `config.json`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is not a JSON object.

  Example:
    >>> from jaxattn.checkpoints import safetensors_io
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, "config.json")
    ...   _ = path.write_text('{"hidden_size": 8}')
    ...   safetensors_io.read_config(folder)
    {'hidden_size': 8}

  Source: https://huggingface.co/docs/transformers/main_classes/configuration.
  """
  path = pathlib.Path(folder, _CONFIG)
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} is missing: give the folder of a checkpoint, with {_CONFIG} and "
      f"{_SINGLE}."
    )
  return _json(path)


class TensorReader:
  """The tensors of a checkpoint, each to be taken once.

  Counts what was taken, so that nothing is left out or read in silence. Tensors
  are read when they are taken.

  Attributes:
    folder: where the checkpoint lies.
    names: the tensors that were not taken yet.

  Example:
    >>> from jaxattn.checkpoints import safetensors_io
    >>> import tempfile, pathlib
    >>> from safetensors import numpy as st
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   st.save_file({"w": np.ones((2, 3), np.float32)},
    ...                pathlib.Path(folder, "model.safetensors"))
    ...   reader = safetensors_io.TensorReader(folder)
    ...   x = reader.take("w", (2, 3))
    ...   reader.finish()
    >>> x.shape
    (2, 3)

  Source: https://github.com/huggingface/safetensors.
  """

  def __init__(self, folder: str | os.PathLike[str]) -> None:
    """Finds the files of a checkpoint.

    Args:
      folder: a local folder with `model.safetensors`, or with several files and
        `model.safetensors.index.json`.

    Raises:
      FileNotFoundError: if there are no such files.
      ValueError: if a file is no safetensors file, or two hold one tensor.
    """
    self.folder = pathlib.Path(folder)
    self._renames: dict[str, str] = {}
    self._files: dict[str, pathlib.Path] = {}
    for path in self._paths():
      try:
        with safetensors.safe_open(path, framework="np") as file:
          found = list(file.keys())
      except safetensors.SafetensorError as error:
        raise ValueError(
          f"{path} is no complete safetensors file ({error}); copy it again."
        ) from error
      for name in found:
        if name in self._files:
          raise ValueError(
            f"{path} holds the tensor {name!r} again, which stands in "
            f"{self._files[name]}; remove one of the files."
          )
        self._files[name] = path
    self.names = set(self._files)

  def _paths(self) -> list[pathlib.Path]:
    single, index = self.folder / _SINGLE, self.folder / _INDEX
    if single.is_file():
      return [single]
    if not index.is_file():
      raise FileNotFoundError(
        f"{single} is missing. A checkpoint that has pytorch_model.bin only "
        "must be converted once, where torch is installed: load it with "
        "transformers and call save_pretrained(folder)."
      )
    shards = sorted(set(_json(index).get("weight_map", {}).values()))
    paths = [self.folder / name for name in shards]
    for path in paths:
      if not path.is_file():
        raise FileNotFoundError(f"{path}, named by {index}, is missing.")
    return paths

  def rename(self, pattern: str, replacement: str) -> None:
    """Renames tensors, as `re.sub` does, before they are taken.

    Args:
      pattern: a regular expression.
      replacement: what stands in its place.

    Raises:
      ValueError: if two tensors would get one name.
    """
    for name in sorted(self.names):
      new = re.sub(pattern, replacement, name)
      if new == name:
        continue
      if new in self.names:
        raise ValueError(
          f"{self._files[name]} holds both {name!r} and {new!r}, which are one "
          "tensor; remove one of them."
        )
      self.names = (self.names - {name}) | {new}
      self._files[new] = self._files.pop(name)
      self._renames[new] = self._renames.pop(name, name)

  def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a tensor.

    Args:
      name: of the tensor.
      shape: the shape that it must have.

    Returns:
      The tensor, in the dtype of the file.

    Raises:
      ValueError: if it is missing, was taken before or has another shape.
    """
    if name not in self.names:
      known = "was taken before" if name in self._files else "is missing"
      raise ValueError(
        f"tensor {name!r} {known} in {self.folder}; is it a checkpoint of this "
        f"kind of model? Left are {_some(self.names)}."
      )
    path, stored = self._files[name], self._renames.get(name, name)
    with safetensors.safe_open(path, framework="np") as file:
      found = tuple(file.get_slice(stored).get_shape())
      if found != tuple(shape):
        raise ValueError(
          f"tensor {stored!r} in {path} must have shape {tuple(shape)}, got "
          f"{found}; make the configuration of the model from the "
          f"{_CONFIG} beside it."
        )
      value = file.get_tensor(stored)
    self.names.remove(name)
    return np.asarray(value)

  def drop(self, *patterns: str) -> tuple[str, ...]:
    """Leaves out the tensors whose whole names match.

    Args:
      *patterns: regular expressions.

    Returns:
      The names, in order.
    """
    dropped = sorted(
      n for n in self.names if any(re.fullmatch(p, n) for p in patterns)
    )
    self.names -= set(dropped)
    return tuple(dropped)

  def finish(self) -> None:
    """Checks that every tensor was taken or dropped.

    Raises:
      ValueError: naming those that were not.
    """
    if self.names:
      raise ValueError(
        f"unexpected tensors in {self.folder}: {_some(self.names)}. The model "
        "has no place for them: is it a checkpoint of this kind, with as many "
        "layers?"
      )


def _some(names: Iterable[str]) -> str:
  listed = sorted(names)
  more = f" and {len(listed) - 6} more" if len(listed) > 6 else ""
  return f"{listed[:6]}{more}"


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}.") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path} must hold a JSON object, got {type(found)}.")
  return found
