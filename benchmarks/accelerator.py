"""Attention on a GPU against cuDNN, torch and FlexAttention, in one run.

  python -m benchmarks.accelerator
  python -m benchmarks.accelerator --lengths=16384 --cases=window --nopeers

Forward, and forward with backward, in bfloat16, batch 1, of a causal window of
4096, dense causal attention, BigBird's pattern, the strided pattern and causal
linear attention. Peers are `jax.nn` (cuDNN), torch's
`scaled_dot_product_attention` and FlexAttention with the same mask, as far as
they have the pattern; linear attention is timed by XLA too. Rates count the
products of the edges attended, 2 of the forward and 5 of the backward pass,
whatever a code computes beyond them; those "on tiles" count whole tiles of
128 x 128.
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app
from absl import flags
from absl import logging

import jaxattn
from benchmarks import accelerator_peers
from benchmarks import timing
from jaxattn import patterns
from jaxattn._src import layout

_LENGTHS = flags.DEFINE_list(
  "lengths", ["4096", "16384", "65536", "131072"], "Tokens."
)
_CASES = flags.DEFINE_list("cases", [], "Which; all without it.")
_HEADS = flags.DEFINE_integer("heads", 8, "Heads.", lower_bound=1)
_PEERS = flags.DEFINE_boolean("peers", True, "Whether to time others too.")
_PORTABLE = flags.DEFINE_boolean(
  "portable", False, "Whether to time our engine in XLA too."
)
_FLEX = flags.DEFINE_list(
  "flex_lengths", ["16384", "65536"], "Where FlexAttention is compiled."
)
_BUDGET = flags.DEFINE_float(
  "seconds", 0.12, "Of measuring each function.", lower_bound=0.01
)
_LIMIT = flags.DEFINE_float(
  "limit", 420.0, "Seconds after which no further case starts."
)
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/accelerator.jsonl", "Where results go."
)
_KEEP = flags.DEFINE_boolean(
  "keep", False, "Whether to keep what is there of other cases and lengths."
)


def _bigbird(length: int) -> patterns.Pattern:
  del length
  return (
    patterns.Window(192, 192)
    | patterns.Global(128)
    | patterns.RandomBlocks(3, 64)
  )


_PATTERNS: dict[str, tuple[int, Callable[[int], patterns.Pattern]]] = {
  "window": (128, lambda length: patterns.Window(4095, 0)),
  "causal": (128, lambda length: patterns.Causal()),
  "bigbird": (64, _bigbird),
  "strided": (
    64,
    lambda length: (
      (patterns.Strided(128) | patterns.Window(127, 0)) & patterns.Causal()
    ),
  ),
}


def _arrays(length: int, depth: int) -> tuple[jax.Array, ...]:
  rngs = jax.random.split(jax.random.key(0), 4)
  shape = (1, length, _HEADS.value, depth)
  return tuple(jax.random.normal(rng, shape, jnp.bfloat16) for rng in rngs)


def _ours(case: str, length: int) -> dict[str, Any]:
  if case == "linear":
    attend = functools.partial(jaxattn.linear_attention, mask=jaxattn.CAUSAL)
    return {
      f"jaxattn, {name}": functools.partial(attend, implementation=name)
      for name in ("pallas", "xla")
    }
  pattern = _PATTERNS[case][1](length)
  names = ["pallas"]
  if _PORTABLE.value and length <= 16384 and case != "causal":
    names.append("xla")
  attend = functools.partial(jaxattn.block_sparse, pattern=pattern)
  return {
    f"jaxattn, {name}": functools.partial(attend, implementation=name)
    for name in names
  }


def _work(case: str, length: int) -> tuple[int, float, float]:
  """Size of heads, and products of attended edges and of their tiles."""
  if case == "linear":
    return 64, 0.0, 0.0
  depth, make = _PATTERNS[case]
  pattern = make(length)
  pieces = layout.compile_pattern(pattern, length, length, 128, whole=True)
  unit = 2.0 * _HEADS.value * depth
  tiles = sum(p.layout.scores for p in pieces)
  edges = sum(
    int(p.layout.masks.sum((1, 2))[p.layout.table].sum()) for p in pieces
  )
  return depth, unit * edges, unit * tiles


def _time(
  attend: Callable[..., jax.Array], arrays: tuple[jax.Array, ...]
) -> dict[str, Any]:
  """Seconds and temporary bytes of both passes."""
  found: dict[str, Any] = {}
  for which in ("forward", "forward+backward"):
    try:
      compiled = timing.compile_pass(attend, which, arrays)
      found[which] = {
        "seconds": timing.back_to_back(compiled.call, _BUDGET.value),
        "temporary": compiled.temporary,
      }
    except Exception as error:  # What a peer cannot do is a result.
      found[which] = {"error": str(error).splitlines()[0][:200]}
  return found


def _records(
  case: str, length: int, environment: dict[str, Any]
) -> list[dict[str, Any]]:
  depth, edges, tiles = _work(case, length)
  arrays = _arrays(length, depth)
  makers: dict[str, Any] = dict(_ours(case, length))
  if _PEERS.value:
    makers.update(accelerator_peers.jax_peers(case))
  found = {name: _time(attend, arrays) for name, attend in makers.items()}
  if _PEERS.value:
    flex = str(length) in _FLEX.value
    found.update(
      accelerator_peers.torch_peers(
        case, length, _HEADS.value, depth, flex=flex, budget=_BUDGET.value
      )
    )
  records = []
  for name, passes in found.items():
    for which, result in passes.items():
      record = {"case": case, "length": length, "by": name, "pass": which}
      record |= {"heads": _HEADS.value, "depth": depth, **result, **environment}
      if "seconds" in result and edges:
        products = 2 if which == "forward" else 7
        record["tflops"] = products * edges / result["seconds"] / 1e12
        record["tflops_on_tiles"] = products * tiles / result["seconds"] / 1e12
      records.append(record)
      print(_line(record), flush=True)
  return records


def _line(record: dict[str, Any]) -> str:
  head = (
    f"{record['case']:8} {record['length']:7} {record['by']:16} "
    f"{record['pass']:16}"
  )
  if "error" in record:
    return f"{head} {record['error'][:70]}"
  text = f"{head} {1e3 * record['seconds']:9.3f} ms"
  if "tflops" in record:
    text += f" {record['tflops']:5.0f} TFLOP/s"
    text += f" ({record['tflops_on_tiles']:5.0f} on tiles)"
  return text


def _previous(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def _merged(
  kept: list[dict[str, Any]], records: list[dict[str, Any]]
) -> list[dict[str, Any]]:
  """All results in order, of what was measured again the new ones."""
  new = {(r["case"], r["length"]) for r in records}
  kept = [r for r in kept if (r["case"], r["length"]) not in new]
  order = [*_PATTERNS, "linear"]
  return sorted(
    kept + records, key=lambda r: (r["length"], order.index(r["case"]))
  )


def _dates(records: list[dict[str, Any]]) -> list[str]:
  return sorted({r["date"] for r in records})


def _runs(records: list[dict[str, Any]]) -> str:
  """What was measured when, and how, as the numbers in the table say."""
  lines = []
  for number, date in enumerate(_dates(records), 1):
    r = next(r for r in records if r["date"] == date)
    lines.append(
      f"{number}. `{r['command']}`, {date}, {r['device']}, jax {r['jax']}, "
      f"torch {r.get('torch')}, cuDNN {r.get('nvidia-cudnn-cu13')}"
    )
  return (
    f"bfloat16, batch 1, {_HEADS.value} heads. Rates count edges attended: 2 "
    "products forward, 7 with backward. Runs:\n\n" + "\n".join(lines) + "\n\n"
  )


def _table(records: list[dict[str, Any]]) -> str:
  rows, dates = [], _dates(records)
  for r in records:
    best = {
      x["by"]: x["seconds"]
      for x in records
      if "seconds" in x
      and all(x[k] == r[k] for k in ("case", "length", "pass"))
    }
    ours = best.get("jaxattn, pallas") or best.get("jaxattn")
    done = "seconds" in r
    memory = r.get("temporary")
    rows.append(
      {
        "run": dates.index(r["date"]) + 1,
        "case": r["case"],
        "length": r["length"],
        "by": r["by"],
        "pass": r["pass"],
        "ms": f"{1e3 * r['seconds']:.3f}" if done else "not run",
        "times ours": f"{r['seconds'] / ours:.2f}" if done and ours else "",
        "TFLOP/s": f"{r['tflops']:.0f}" if "tflops" in r else "",
        "on tiles": f"{r['tflops_on_tiles']:.0f}" if "tflops" in r else "",
        "temporary MiB": "" if memory is None else f"{memory / 2**20:.0f}",
      }
    )
  return timing.markdown(rows)


def main(argv: list[str]) -> None:
  """Times everything, and writes the results after every case."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}.")
  cases = _CASES.value or [*_PATTERNS, "linear"]
  unknown = set(cases) - {*_PATTERNS, "linear"}
  if unknown:
    raise app.UsageError(f"no cases {sorted(unknown)}.")
  environment = timing.environment() | accelerator_peers.versions()
  output = pathlib.Path(_OUTPUT.value)
  kept = _previous(output) if _KEEP.value else []
  records: list[dict[str, Any]] = []
  end = time.monotonic() + _LIMIT.value
  for length in map(int, _LENGTHS.value):
    for case in cases:
      if time.monotonic() > end:
        logging.warning("no time is left for %s at %d.", case, length)
        continue
      records += _records(case, length, environment)
      timing.write_jsonl(output, _merged(kept, records))
  records = _merged(kept, records)
  text = _runs(records) + _table(records) + "\n"
  output.with_suffix(".md").write_text(text)
  print(text)


if __name__ == "__main__":
  app.run(main)
