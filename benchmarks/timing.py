"""Timing functions side by side, and keeping the results.

Machines are shared and their clocks drift, so what is to be compared runs in
turns: every round calls every function once. Of the rounds the minimum says
what the code can do, the median what one gets.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timed:
  """Wall times of one function, in milliseconds.

  Attributes:
    min_ms: the shortest.
    median_ms: the median.
    rounds: how many there were.
  """

  min_ms: float
  median_ms: float
  rounds: int


def interleave(
  functions: Mapping[str, Callable[[], Any]],
  *,
  rounds: int,
  seconds: float,
) -> dict[str, Timed]:
  """Times functions in turns.

  Args:
    functions: what to call, by name; results are waited for.
    rounds: turns after a first one that does not count, at least 1.
    seconds: no further round starts after so long.

  Returns:
    The times, by the same names.
  """
  order = list(functions)
  times: dict[str, list[float]] = {name: [] for name in order}
  for function in functions.values():
    jax.block_until_ready(function())
  end = time.perf_counter() + seconds
  for turn in range(rounds):
    # Each round starts with another one: no function always follows the same.
    shift = turn % len(order)
    for name in order[shift:] + order[:shift]:
      start = time.perf_counter()
      jax.block_until_ready(functions[name]())
      times[name].append(1e3 * (time.perf_counter() - start))
    if time.perf_counter() > end:
      break
  return {
    name: Timed(min(ms), statistics.median(ms), len(ms))
    for name, ms in times.items()
  }


def back_to_back(function: Callable[[], Any], budget: float) -> float:
  """Seconds a call, of the fastest of three batches of calls on a device.

  A call is not waited for before the next is issued, so that what a device
  does, and not how long it takes to ask it, is measured.

  Args:
    function: what to call.
    budget: seconds of measuring, about.

  Returns:
    Seconds.
  """
  jax.block_until_ready(function())

  def batch(count: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready([function() for _ in range(count)][-1])
    return (time.perf_counter() - start) / count

  count = max(1, int(budget / 3 / max(batch(2), 1e-6)))
  return min(batch(count) for _ in range(3))


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled function with its arguments.

  Attributes:
    call: runs it.
    temporary: bytes that XLA plans beyond arguments and results.
  """

  call: Callable[[], Any]
  temporary: int


def compile_pass(
  attend: Callable[..., jax.Array], which: str, arrays: tuple[Any, ...]
) -> Compiled:
  """Compiles one pass of an attention function.

  Args:
    attend: of query, key and value.
    which: `forward`, or `forward+backward` for output and gradients.
    arrays: query, key, value, and the cotangent of the output.

  Returns:
    The compiled pass.
  """

  def both(q: Any, k: Any, v: Any, ct: Any) -> Any:
    out, vjp = jax.vjp(attend, q, k, v)
    return out, vjp(ct)

  function = both if which != "forward" else lambda q, k, v, _: attend(q, k, v)
  # Arguments that the forward pass leaves unused would be dropped otherwise.
  jitted = jax.jit(function, keep_unused=True)
  compiled = jitted.lower(*arrays).compile()
  memory = compiled.memory_analysis()
  if memory is None:
    raise RuntimeError("this backend does not tell its temporary memory.")
  return Compiled(lambda: compiled(*arrays), memory.temp_size_in_bytes)


def gemm(size: int, dtype: Any) -> tuple[Callable[[], Any], float]:
  """A square matrix product to measure the machine by, and its FLOPs.

  Args:
    size: rows and columns; large enough to run at full rate.
    dtype: of both operands and the result.

  Returns:
    A function of no arguments, and `2 * size^3`.
  """
  rngs = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(rng, (size, size), dtype) for rng in rngs)
  product = jax.jit(jnp.matmul).lower(a, b).compile()
  return lambda: product(a, b), 2.0 * size**3


def environment() -> dict[str, Any]:
  """When, where and with what a measurement was made."""
  device = jax.devices()[0]
  now = datetime.datetime.now(datetime.UTC)
  return {
    "date": now.isoformat(timespec="seconds"),
    "command": " ".join([*_program(), *sys.argv[1:]]),
    "device": device.device_kind,
    "platform": device.platform,
    "cores": len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count(),
    "python": sys.version.split()[0],
    "jax": jax.__version__,
    "jaxlib": jaxlib.__version__,
    "numpy": np.__version__,
  }


def _program() -> list[str]:
  """How this process was started, without the folders of this machine."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  if spec is None or not spec.name:
    return ["python", pathlib.Path(sys.argv[0]).name]
  return ["python", "-m", spec.name]


def write_jsonl(
  path: pathlib.Path, records: Sequence[Mapping[str, Any]]
) -> None:
  """Writes one JSON object a line; the file appears whole or not at all.

  Args:
    path: replaced if it is there; its folder is made.
    records: the objects.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
  try:
    with os.fdopen(descriptor, "w") as file:
      for record in records:
        file.write(json.dumps(record, sort_keys=True) + "\n")
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """A table in Markdown, one column a key of the first row.

  Args:
    rows: cells by column name; all rows have the columns of the first.

  Returns:
    The lines, numbers to the right.
  """
  columns = list(rows[0])
  cells = [[str(row[name]) for name in columns] for row in rows]
  widths = [
    max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))
  ]
  lines = [columns, ["-" * (width - 1) + ":" for width in widths], *cells]
  return "\n".join(
    "| "
    + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True))
    + " |"
    for line in lines
  )
