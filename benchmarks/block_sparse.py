"""Block-sparse attention against dense attention: time and memory by length.

  python -m benchmarks.block_sparse
  python -m benchmarks.block_sparse --lengths=1024,2048 --patterns=bigbird

Each length runs in rounds of one process: block-sparse attention, dense
`jax.nn.dot_product_attention` over all keys, and a square matrix product that
measures what the machine can do at that moment. The share of that rate counts
useful products over the attended tiles only: two forward, and five more
backward. Dense attention is left out where its temporary arrays, as XLA plans
them, would exceed `--max_gib`.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app
from absl import flags
from absl import logging

import jaxattn
from benchmarks import timing
from jaxattn import patterns

_LENGTHS = flags.DEFINE_list("lengths", ["4096", "16384"], "Tokens.")
_HEADS = flags.DEFINE_integer("heads", 8, "Heads.", lower_bound=1)
_DEPTH = flags.DEFINE_integer("depth", 64, "Size of a head.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 1, "Sequences.", lower_bound=1)
_WINDOW = flags.DEFINE_integer(
  "window", 512, "Keys of the window beside the query's own.", lower_bound=2
)
_PATTERNS = flags.DEFINE_multi_enum(
  "patterns", ["window"], ["window", "causal", "dilated", "bigbird"], "Which."
)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of all."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
_SECONDS = flags.DEFINE_float(
  "seconds", 60.0, "No further round of a length starts after so long."
)
_GEMM = flags.DEFINE_integer("gemm", 1536, "Size of the matrix product.")
_MAX_GIB = flags.DEFINE_float(
  "max_gib", 8.0, "Most temporary memory that dense attention may take, GiB."
)
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/block_sparse.jsonl", "Where results go."
)

# Makes a pattern from the window's size.
_MAKERS: dict[str, Callable[[int], patterns.Pattern]] = {
  "window": lambda w: patterns.Window(w // 2, w // 2),
  "causal": lambda w: patterns.Window(w, 0),
  "dilated": lambda w: patterns.dilated(w // 2, w // 2, dilation=4),
  "bigbird": lambda w: (
    patterns.Window(w // 2, w // 2)
    | patterns.Global(64)
    | patterns.RandomBlocks(3, 64)
  ),
}
_PRODUCTS = {"forward": 2, "forward+backward": 7}
_KEYS = ("pattern", "length", "pass")


def measure(name: str, length: int) -> list[dict[str, Any]]:
  """Measures one pattern at one length.

  Args:
    name: of the pattern.
    length: tokens.

  Returns:
    One record for each pass.
  """
  pattern, dtype = _MAKERS[name](_WINDOW.value), jnp.dtype(_DTYPE.value)
  shape = (_BATCH.value, length, _HEADS.value, _DEPTH.value)
  arrays = tuple(
    jax.random.normal(rng, shape, dtype)
    for rng in jax.random.split(jax.random.key(1), 4)
  )

  def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jaxattn.block_sparse(q, k, v, pattern=pattern)

  product, product_flops = timing.gemm(_GEMM.value, dtype)
  calls, passes = {"gemm": product}, {}
  for which in _PRODUCTS:
    passes[which] = (
      timing.compile_pass(ours, which, arrays),
      timing.compile_pass(jax.nn.dot_product_attention, which, arrays),
    )
    calls[f"ours {which}"] = passes[which][0].call
    if passes[which][1].temporary <= _MAX_GIB.value * 2**30:
      calls[f"dense {which}"] = passes[which][1].call
  times = timing.interleave(calls, rounds=_ROUNDS.value, seconds=_SECONDS.value)
  rate = product_flops / (1e-3 * times["gemm"].min_ms)
  flops = _BATCH.value * _forward_flops(pattern, length)
  setting = {
    "pattern": name,
    "length": length,
    "batch": _BATCH.value,
    "heads": _HEADS.value,
    "depth": _DEPTH.value,
    "window": _WINDOW.value,
    "dtype": _DTYPE.value,
    "gemm_gflops": rate / 1e9,
    "rounds": times["gemm"].rounds,
  }
  return [
    setting | _record(which, passes[which], times, flops=flops, rate=rate)
    for which in _PRODUCTS
  ]


def _record(
  which: str,
  compiled: tuple[timing.Compiled, timing.Compiled],
  times: dict[str, timing.Timed],
  *,
  flops: float,
  rate: float,
) -> dict[str, Any]:
  """What one pass took, beside dense attention where that ran."""
  ours, dense = compiled
  mine, other = times[f"ours {which}"], times.get(f"dense {which}")
  useful = flops * _PRODUCTS[which] / 2
  record = {
    "pass": which,
    "ms": mine.min_ms,
    "ms_median": mine.median_ms,
    "useful_gflop": useful / 1e9,
    "gemm_share": useful / (1e-3 * mine.min_ms) / rate,
    "temporary_bytes": ours.temporary,
    "dense_temporary_bytes": dense.temporary,
    "note": "",
  }
  if other is None:
    gib = dense.temporary / 2**30
    note = (
      f"dense not run: {gib:.1f} GiB of temporary arrays is more than "
      f"--max_gib={_MAX_GIB.value:g}"
    )
    return record | {"note": note}
  return record | {
    "dense_ms": other.min_ms,
    "dense_ms_median": other.median_ms,
    "speedup": other.min_ms / mine.min_ms,
    "speedup_median": other.median_ms / mine.median_ms,
  }


def _forward_flops(pattern: patterns.Pattern, length: int) -> float:
  """FLOPs of the two forward products over the attended tiles."""
  return jaxattn.explain(
    pattern, length, num_heads=_HEADS.value, head_dim=_DEPTH.value
  ).flops


def _row(record: dict[str, Any]) -> dict[str, str]:
  """The record as a row of the printed table."""

  def ms(name: str) -> str:
    if name not in record:
      return "not run"
    return f"{record[name]:.1f} ({record[f'{name}_median']:.1f})"

  def mib(name: str) -> str:
    return f"{record[name] / 2**20:.0f}"

  speedup = record.get("speedup")
  return {
    **{key: str(record[key]) for key in _KEYS},
    "ms, min (median)": ms("ms"),
    "dense ms": ms("dense_ms"),
    "speed-up": "" if speedup is None else f"{speedup:.1f}",
    "share of GEMM rate": f"{100 * record['gemm_share']:.0f}%",
    "temporary MiB": mib("temporary_bytes"),
    "dense MiB": mib("dense_temporary_bytes"),
  }


def main(argv: list[str]) -> None:
  """Measures all lengths and patterns, writes and prints the results."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  logging.set_verbosity(logging.WARNING)  # No word on absent backends.
  where = timing.environment()
  print(
    f"{where['device']} ({where['platform']}, {where['cores']} cores), "
    f"jax {where['jax']}, {_DTYPE.value}, {_HEADS.value} heads of "
    f"{_DEPTH.value}, window {_WINDOW.value}\n"
  )
  records = []
  for name in _PATTERNS.value:
    for length in map(int, _LENGTHS.value):
      records += measure(name, length)
      # Written each time, so that an interrupted run leaves what it has.
      timing.write_jsonl(
        pathlib.Path(_OUTPUT.value), [where | r for r in records]
      )
  print(timing.markdown([_row(record) for record in records]))
  for record in records:
    if record["note"]:
      print(f"{', '.join(str(record[k]) for k in _KEYS)}: {record['note']}.")
  print(f"\nwritten to {_OUTPUT.value}")


if __name__ == "__main__":
  app.run(main)
