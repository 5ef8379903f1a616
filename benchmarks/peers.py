"""Attention cores of other packages against ours on this CPU, in one run.

  pip install torch transformers performer-pytorch linformer reformer-pytorch \
    sinkhorn-transformer routing-transformer local-attention tokamax attnax \
    linear-attention-transformer pytorch-fast-transformers
  python -m benchmarks.peers
  python -m benchmarks.peers --only=jaxattn_window512,hf_longformer --rounds=1

Every case runs in a process of its own, so that no package's threads or memory
touch another's, and the whole list runs several times over. Float32, batch 1, 8
heads of 64. A case of ours is listed with the peers that do the same work, and
all with torch's dense attention. Memory is, in torch, how far the resident set
rose over that before the first call; in JAX, what XLA plans for temporary
arrays and results. A package that is missing is reported and left out.
"""

import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from absl import app
from absl import flags

from benchmarks import peer_cases
from benchmarks import peer_cases_jax as peer_cases_jax
from benchmarks import timing

_LENGTHS = flags.DEFINE_list("lengths", ["4096", "16384"], "Tokens.")
_ONLY = flags.DEFINE_list("only", [], "Cases; all without it.")
_PASSES = flags.DEFINE_list("passes", ["forward", "forward+backward"], "Which.")
_ROUNDS = flags.DEFINE_integer(
  "rounds", 2, "How often the list is run.", lower_bound=1
)
_CALLS = flags.DEFINE_integer("calls", 5, "In a case.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Of a case, after 3 calls.")
_TIMEOUT = flags.DEFINE_float("timeout", 150.0, "Seconds of a process.")
_MAX_GIB = flags.DEFINE_float("max_gib", 14.0, "Where a case is stopped.")
_HEADS = flags.DEFINE_integer("heads", 8, "Heads.", lower_bound=1)
_DEPTH = flags.DEFINE_integer("depth", 64, "Their size.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/peers.jsonl", "Where results go."
)
_CHILD = flags.DEFINE_string("child", "", "One case, as JSON; internal.")

_THREADS = 2


def _status(field: str) -> float:
  """MiB of a line of this process's status, on Linux."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field):
      return int(line.split()[1]) / 1024
  return float("nan")


def _watch(limit: float) -> None:
  """Ends the process, with that as its result, before it fills the machine."""

  def watch() -> None:
    while True:
      size = _status("VmRSS:") / 1024
      if size > limit:
        print("ROW " + json.dumps({"error": f"over {limit} GiB"}), flush=True)
        os._exit(3)
      time.sleep(0.05)

  threading.Thread(target=watch, daemon=True).start()


def _torch_step(function: Any, inputs: list[Any], train: bool) -> Any:
  import torch

  torch.set_num_threads(_THREADS)
  if not train:

    def forward() -> Any:
      with torch.no_grad():
        return function(*inputs)

    return forward
  for x in inputs:
    x.requires_grad_(True)
  cotangent: list[Any] = []

  def both() -> Any:
    out = function(*inputs)
    if not cotangent:
      cotangent.append(torch.randn_like(out))
    return torch.autograd.grad(out, inputs, cotangent[0])

  return both


def _jax_step(function: Any, inputs: list[Any], train: bool) -> Any:
  import jax

  def both(cotangent: Any, *x: Any) -> Any:
    return jax.vjp(function, *x)[1](cotangent)

  if train:
    shape = jax.eval_shape(function, *inputs).shape
    inputs = [jax.random.normal(jax.random.key(1), shape), *inputs]
  compiled = jax.jit(both if train else function).lower(*inputs).compile()
  memory: Any = compiled.memory_analysis()
  planned = memory.temp_size_in_bytes + memory.output_size_in_bytes
  return lambda: jax.block_until_ready(compiled(*inputs)), planned / 2**20


def measure(task: dict[str, Any]) -> dict[str, Any]:
  """Times one case in this process.

  Args:
    task: `name`, `length`, `pass`, `calls` and `seconds`.

  Returns:
    Milliseconds and MiB, or an error.
  """
  one = peer_cases.CASES[task["name"]]
  train = task["pass"] != "forward"
  found: dict[str, Any] = {"version": importlib.metadata.version(one.package)}
  function, inputs = one.build(task["length"], task["heads"], task["depth"])
  before = _status("VmRSS:")
  if one.backend == "jax":
    step, found["mib"] = _jax_step(function, inputs, train)
  else:
    step = _torch_step(function, inputs, train)
  step()
  step()
  if one.backend == "torch":
    found["mib"] = _status("VmHWM:") - before
  walls, end = [], time.perf_counter() + task["seconds"]
  while len(walls) < task["calls"]:
    start = time.perf_counter()
    step()
    walls.append(1e3 * (time.perf_counter() - start))
    if len(walls) >= 3 and time.perf_counter() > end:
      break
  return found | {"ms": walls}


def _run(task: dict[str, Any]) -> dict[str, Any]:
  """Measures a case in a process of its own."""
  environment = os.environ | {
    "OMP_NUM_THREADS": str(_THREADS),
    "MKL_NUM_THREADS": str(_THREADS),
    "OMP_WAIT_POLICY": "PASSIVE",
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
  }
  command = [sys.executable, "-m", "benchmarks.peers"]
  command += [f"--child={json.dumps(task)}", f"--max_gib={_MAX_GIB.value}"]
  try:
    done = subprocess.run(
      command,
      env=environment,
      capture_output=True,
      text=True,
      timeout=_TIMEOUT.value,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return {"error": f"over {_TIMEOUT.value:.0f} s"}
  rows = [x for x in done.stdout.splitlines() if x.startswith("ROW ")]
  if rows:
    return json.loads(rows[-1][4:])
  last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
  return {"error": last[0][:200]}


def _tasks() -> list[dict[str, Any]]:
  unknown = set(_ONLY.value) - set(peer_cases.CASES)
  if unknown:
    raise app.UsageError(f"no cases {sorted(unknown)}.")
  chosen = _ONLY.value or list(peer_cases.CASES)
  sizes = {"heads": _HEADS.value, "depth": _DEPTH.value}
  how = {"calls": _CALLS.value, "seconds": _SECONDS.value}
  return [
    {"name": name, "length": length, "pass": which, **sizes, **how}
    for length in map(int, _LENGTHS.value)
    for which in _PASSES.value
    for name in chosen
    if length <= peer_cases.CASES[name].longest
    and (which == "forward" or peer_cases.CASES[name].trains)
  ]


def _joined(tasks: list[Any], results: dict[int, list[Any]]) -> list[Any]:
  """One record a task, over all rounds."""
  records = []
  for at, task in enumerate(tasks):
    one, rows = peer_cases.CASES[task["name"]], results[at]
    walls = [ms for row in rows for ms in row.get("ms", [])]
    record = {k: task[k] for k in ("name", "length", "pass", "heads", "depth")}
    record |= {"package": one.package, "what": one.what, "like": one.like}
    record["version"] = rows[0].get("version")
    if walls:
      record |= {"ms": min(walls), "median_ms": statistics.median(walls)}
      record |= {
        "all_ms": walls,
        "mib": min(r["mib"] for r in rows if "ms" in r),
      }
    else:
      record["error"] = rows[0]["error"]
    records.append(record)
  return records


def _table(records: list[Any]) -> str:
  """Ours beside every peer of the same work, and dense attention of torch."""
  by = {(r["name"], r["length"], r["pass"]): r for r in records}
  rows = []
  for r in records:
    if not r["like"] or "ms" not in r:
      continue
    for name in (*r["like"], "torch_sdpa"):
      other = by.get((name, r["length"], r["pass"]))
      if other is None or (name == "torch_sdpa" and name in r["like"][1:]):
        continue
      there = "ms" in other
      rows.append(
        {
          "ours": r["name"].removeprefix("jaxattn_"),
          "peer": name,
          "length": r["length"],
          "pass": r["pass"],
          "our ms": f"{r['ms']:.1f}",
          "peer ms": f"{other['ms']:.1f}" if there else other["error"],
          "times as fast": f"{other['ms'] / r['ms']:.2f}" if there else "",
          "our MiB": f"{r['mib']:.0f}",
          "peer MiB": f"{other['mib']:.0f}" if there else "",
        }
      )
  unique = {tuple(row.items()): row for row in rows}
  return timing.markdown(list(unique.values())) if rows else "nothing ran"


def main(argv: list[str]) -> None:
  """Runs all cases, and writes what there is after every round."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}.")
  if _CHILD.value:
    task = json.loads(_CHILD.value)
    sys.argv = sys.argv[:1]  # A package that reads flags of its own.
    _watch(_MAX_GIB.value)
    try:
      row = measure(task)
    except Exception as error:  # A peer that cannot run is a result.
      row = {"error": f"{type(error).__name__}: {str(error)[:160]}"}
    print("ROW " + json.dumps(row), flush=True)
    return
  tasks, environment = _tasks(), timing.environment()
  environment["threads"] = _THREADS
  results: dict[int, list[Any]] = {at: [] for at in range(len(tasks))}
  output = pathlib.Path(_OUTPUT.value)
  records: list[Any] = []
  for turn in range(_ROUNDS.value):
    for at, task in enumerate(tasks):
      if turn and "error" in results[at][0]:
        continue
      results[at].append(_run(task))
      print(task["name"], task["length"], task["pass"], _brief(results[at][-1]))
      sys.stdout.flush()
    records = [r | environment for r in _joined(tasks, results)]
    timing.write_jsonl(output, records)
  head = (
    f"`{environment['command']}`, {environment['date']}, "
    f"{environment['device']} with {environment['cores']} cores, jax "
    f"{environment['jax']}; float32, batch 1, {_HEADS.value} heads of "
    f"{_DEPTH.value}, {_THREADS} threads; fastest call of {_ROUNDS.value} "
    f"processes of {_CALLS.value}.\n\n"
  )
  output.with_suffix(".md").write_text(head + _table(records) + "\n")
  print(f"written to {output} (.md beside it)")


def _brief(row: dict[str, Any]) -> str:
  if "ms" not in row:
    return row["error"]
  return f"{min(row['ms']):.1f} ms, {row['mib']:.0f} MiB"


if __name__ == "__main__":
  app.run(main)
