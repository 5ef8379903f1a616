"""The report of a run: one folder that a person can read."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax

import jaxattn
from experiments.common import files

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A Markdown table; floats get three decimals, numbers stand at the right.

  Args:
    columns: the heads.
    rows: one value a column each.

  Returns:
    The lines of the table, joined.

  Example:
    >>> print(table(("name", "bits"), [("gzip", 2.5)]))
    | name | bits |
    |:-----|-----:|
    | gzip | 2.500 |

  Source: GitHub's Markdown.
  """
  numeric = [
    bool(rows) and all(isinstance(row[i], int | float) for row in rows)
    for i in range(len(columns))
  ]
  rules = [
    "-" * (len(c) + 1) + ":" if right else ":" + "-" * (len(c) + 1)
    for c, right in zip(columns, numeric, strict=True)
  ]
  lines = [_row(columns), "|" + "|".join(rules) + "|"]
  lines += [_row([_cell(v) for v in row]) for row in rows]
  return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
  return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.3f}"
  if isinstance(value, int):
    return f"{value:,}"
  return str(value).replace("|", "\\|")


def environment() -> dict[str, Any]:
  """Versions and hardware, which a result depends on.

  Returns:
    A JSON-able dictionary.

  Example:
    >>> environment()["jaxattn"] == jaxattn.__version__
    True

  Source: the versions are those of the installed packages.
  """
  device = jax.devices()[0]
  found = {"jaxattn": jaxattn.__version__, "python": platform.python_version()}
  for name in _PACKAGES:
    found[name] = importlib.metadata.version(name)
  cores = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
  )
  return found | {
    "platform": platform.platform(),
    "devices": f"{jax.device_count()} x {device.device_kind}",
    "cores": cores or os.cpu_count() or 0,
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }


def write(
  folder: pathlib.Path,
  *,
  title: str,
  sections: Sequence[tuple[str, str]],
  results: dict[str, Any],
) -> pathlib.Path:
  """Writes `report.md` and `results.json`, each whole or not at all.

  `results.json` comes last: where it lies, the report is complete.

  Args:
    folder: of the report.
    title: its heading.
    sections: (heading, Markdown text) in order; an empty heading continues.
    results: JSON-able.

  Returns:
    The path of `report.md`.

  Example:
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> write(folder, title="A", sections=[("B", "c")], results={}).name
    'report.md'

  Source: Markdown.
  """
  parts = [f"# {title}"]
  for heading, text in sections:
    parts.append(f"## {heading}\n\n{text}" if heading else text)
  path = folder / "report.md"
  files.write_text(path, "\n\n".join(parts) + "\n")
  files.write_json(folder / "results.json", results)
  return path


def finished(
  workdir: pathlib.Path, identity: dict[str, Any]
) -> dict[str, Any] | None:
  """The results of a run if it has ended, or None.

  Args:
    workdir: of the run.
    identity: by which the run is known again, as its results hold it.

  Returns:
    What `results.json` holds.
  """
  path = workdir / "report" / "results.json"
  if not path.exists():
    return None
  results = json.loads(files.read_bytes(path))
  return results if results["identity"] == identity else None


def standing(
  value: float, floors: Mapping[str, float], *, lower_is_better: bool = True
) -> str:
  """Two lines: which floors still win against a result, and which do not.

  Args:
    value: the result.
    floors: name -> value.
    lower_is_better: whether a small one is good.

  Returns:
    The lines; equal ones win.

  Example:
    >>> print(standing(2.0, {"gzip": 2.5, "order 3": 1.5}))
    floors that still win: order 3 (1.500)
    floors beaten: gzip (2.500)

  Source: none.
  """
  sign = 1 if lower_is_better else -1
  ordered = sorted(floors.items(), key=lambda item: item[1])
  beaten = [item for item in ordered if sign * item[1] > sign * value]
  winning = [item for item in ordered if item not in beaten]

  def listed(items: list[tuple[str, float]]) -> str:
    return ", ".join(f"{name} ({v:.3f})" for name, v in items) or "none"

  return (
    f"floors that still win: {listed(winning)}\nfloors beaten: {listed(beaten)}"
  )


def code(text: str) -> str:
  """Text as an indented block, which no text can break out of.

  Args:
    text: anything; what cannot be printed is replaced.

  Returns:
    Markdown.

  Example:
    >>> code("a")
    '    a'

  Source: Markdown.
  """
  text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
  return "\n".join("    " + line for line in text.split("\n"))


def duration(seconds: float) -> str:
  """Seconds as a person says them.

  Args:
    seconds: a duration.

  Returns:
    For example `4 min 10 s`.

  Example:
    >>> duration(250.2)
    '4 min 10 s'

  Source: none.
  """
  whole = round(seconds)
  hours, minutes = whole // 3600, whole // 60 % 60
  parts = [(hours, "h"), (minutes, "min"), (whole % 60, "s")]
  return " ".join(f"{n} {unit}" for n, unit in parts if n) or "0 s"
