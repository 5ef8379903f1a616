"""What readers of published files share: JSON, fields, places of answers."""

import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

from experiments.common import files
from experiments.qa import squad


def read_bytes(path: pathlib.Path, what: str) -> bytes:
  """A file's bytes, unpacked where its name ends in `.gz`.

  Args:
    path: of the file.
    what: it should be, in words, for errors.

  Returns:
    The bytes.

  Raises:
    UserError: if there is no such file, or it is not gzip.
  """
  data = files.read_bytes(path, f"It should be {what}.")
  if path.suffix != ".gz":
    return data
  try:
    return gzip.decompress(data)
  except (OSError, EOFError, zlib.error) as error:
    raise files.UserError(
      f"cannot unpack {path}: {error}. It should be {what}; is it whole?"
    ) from error


def parse(data: bytes, where: str) -> Any:
  """The value of a JSON text.

  Args:
    data: UTF-8.
    where: file, and line where it is one of many, for errors.

  Returns:
    The value.

  Raises:
    UserError: naming the place that is not JSON.

  Example:
    >>> parse(b"[1]", "a.json")
    [1]

  Source: RFC 8259.
  """
  try:
    return json.loads(data)
  except UnicodeDecodeError as error:
    raise files.UserError(f"{where}: not UTF-8: {error}") from error
  except json.JSONDecodeError as error:
    raise files.UserError(
      f"{where}: not JSON: {error.msg} at line {error.lineno}, column "
      f"{error.colno}."
    ) from error


def lines(data: bytes, path: str) -> Iterator[tuple[dict[str, Any], str]]:
  """The objects of a file with one a line, and where each stands.

  Args:
    data: JSON Lines; empty lines are skipped.
    path: for errors.

  Yields:
    An object, and `path:line`.

  Raises:
    UserError: naming the line that is not an object.

  Example:
    >>> list(lines(b'{"a": 1}', "x.jsonl"))
    [({'a': 1}, 'x.jsonl:1')]

  Source: https://jsonlines.org
  """
  for number, line in enumerate(data.split(b"\n"), 1):
    if not line.strip():
      continue
    where = f"{path}:{number}"
    value = parse(line, where)
    if not isinstance(value, dict):
      raise files.UserError(f"{where}: not an object, one a line is wanted.")
    yield value, where


def field(item: Any, name: str, kind: type, where: str, what: str) -> Any:
  """A field of an object.

  Args:
    item: the object.
    name: of the field.
    kind: its type.
    where: the object stands, for errors.
    what: the file should be, for errors.

  Returns:
    The value.

  Raises:
    UserError: if it is missing or of another type.

  Example:
    >>> field({"a": 1}, "a", int, "x.json", "a file")
    1

  Source: none.
  """
  value = item.get(name) if isinstance(item, dict) else None
  if not isinstance(value, kind) or (
    isinstance(value, bool) and kind is not bool
  ):
    raise files.UserError(
      f"{where}: needs a field {name!r} of type {kind.__name__}; is it {what}?"
    )
  return value


def strings(item: Any, name: str, where: str, what: str) -> list[str]:
  """A field that is a list of strings; see `field`."""
  values = field(item, name, list, where, what)
  if not all(isinstance(value, str) for value in values):
    raise files.UserError(
      f"{where}: field {name!r} must be a list of strings; is it {what}?"
    )
  return values


def places(text: str, answer: str, limit: int = 8) -> list[squad.Answer]:
  """Where an answer stands in a text as whole words, whatever its case.

  Args:
    text: to look in.
    answer: to find.
    limit: of places, the first ones.

  Returns:
    The places with the answer as it is written there; one without a place, if
    it stands nowhere.

  Example:
    >>> places("Ann, and ann; Anna", "Ann")
    [Answer(start=0, text='Ann'), Answer(start=9, text='ann')]
    >>> places("Bo", "Al")
    [Answer(start=-1, text='Al')]

  Source: distant supervision, as in Joshi et al., 2017,
  https://arxiv.org/abs/1705.03551, section 3.
  """
  found: list[squad.Answer] = []
  if answer.strip():
    pattern = rf"(?<!\w){re.escape(answer.strip())}(?!\w)"
    for match in re.finditer(pattern, text, re.IGNORECASE):
      found.append(squad.Answer(match.start(), match.group()))
      if len(found) == limit:
        break
  return found or [squad.Answer(-1, answer)]
