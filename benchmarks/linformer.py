"""Linformer against full attention: time and memory by length and k, as ratios.

  python -m benchmarks.linformer
  python -m benchmarks.linformer --lengths=512,1024 --k=128,256

The table of the paper: how many times faster than full attention, and how many
times less temporary memory, as XLA plans it. One matrix projects keys and
values, as with layerwise sharing, and is differentiated too. Each length runs
in rounds of one process: every k below it, full attention that materialises
its scores, `jax.nn.dot_product_attention`, and full attention by tiles
(`jaxattn.dense()`), whose memory is linear. A full one is left out where its
temporary arrays would exceed `--max_gib`; its plan is counted all the same.
Results go to a JSON Lines file, and beside it tables in Markdown and a figure.
Flags that are not here are those of `benchmarks.against_dense`.
"""

import functools
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.ticker
from absl import app
from absl import flags
from absl import logging

import jaxattn
from benchmarks import against_dense
from benchmarks import timing
from experiments.common import files

_K = flags.DEFINE_list(
  "k", ["128", "256", "512", "1024", "2048"], "Tokens made of the keys."
)
_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
_PASSES = ("forward", "forward+backward")
_FULL = {
  "naive": against_dense.naive,
  "jax.nn": jax.nn.dot_product_attention,
  "tiles": functools.partial(
    jaxattn.block_sparse, pattern=jaxattn.patterns.Full()
  ),
}


def _linformer(
  query: jax.Array,
  key_and_matrix: tuple[jax.Array, jax.Array],
  value: jax.Array,
) -> jax.Array:
  """Attention of which the matrix, for keys and values, is trained too."""
  key, matrix = key_and_matrix
  return jaxattn.linformer_attention(query, key, value, matrix, matrix)


def measure(length: int, sizes: list[int]) -> list[dict[str, Any]]:
  """Measures Linformer of several k, and full attention, at one length."""
  asked = flags.FLAGS
  shape = (1, length, asked.heads, asked.depth)
  dtype = jnp.dtype(asked.dtype)
  query, key, value, cotangent = (
    jax.random.normal(rng, shape, dtype)
    for rng in jax.random.split(jax.random.key(1), 4)
  )
  compiled: dict[tuple[Any, str], timing.Compiled] = {}
  for which in _PASSES:
    for name, attend in _FULL.items():
      compiled[name, which] = timing.compile_pass(
        attend, which, (query, key, value, cotangent)
      )
    for k in sizes:
      matrix = jaxattn.draw_token_projection(
        jax.random.key(2), (k, length), dtype=dtype
      )
      compiled[k, which] = timing.compile_pass(
        _linformer, which, (query, (key, matrix), value, cotangent)
      )
  calls = {
    f"{name}|{which}": one.call
    for (name, which), one in compiled.items()
    if one.temporary <= asked.max_gib * 2**30
  }
  times = timing.interleave(calls, rounds=asked.rounds, seconds=asked.seconds)
  records = []
  for (name, which), one in compiled.items():
    record = {
      "method": name if name in _FULL else "linformer",
      "k": None if name in _FULL else name,
      "length": length,
      "pass": which,
      "heads": asked.heads,
      "depth": asked.depth,
      "dtype": asked.dtype,
      "temporary_bytes": one.temporary,
    }
    took = times.get(f"{name}|{which}")
    if took is not None:
      record |= {
        "ms": took.min_ms,
        "ms_median": took.median_ms,
        "rounds": took.rounds,
      }
    for full in _FULL if name not in _FULL else ():
      other = compiled[full, which]
      record[f"memory_{full}"] = other.temporary / max(1, one.temporary)
      base = times.get(f"{full}|{which}")
      if took is not None and base is not None:
        record[f"speed_{full}"] = base.min_ms / took.min_ms
    records.append(record)
  return records


def tables(records: list[dict[str, Any]]) -> str:
  """A table for each pass and full attention: length by k, speed and memory."""
  made = {
    (r["pass"], r["length"], r["k"]): r
    for r in records
    if r["method"] == "linformer"
  }
  lengths, sizes = (sorted({key[i] for key in made}) for i in (1, 2))

  def cell(key: tuple[str, int, int], ratio: str) -> str:
    found = made.get(key, {}).get(ratio)
    if found is None:
      return ""
    return f"{found:.1f}" if found < 10 else f"{found:.0f}"

  parts = []
  for which, full in itertools.product(reversed(_PASSES), _FULL):
    rows = []
    for length in lengths:
      row = {"length": str(length)}
      for quantity, k in itertools.product(("speed", "memory"), sizes):
        ratio = f"{quantity}_{full}"
        row[f"{quantity}, k={k}"] = cell((which, length, k), ratio)
      rows.append(row)
    title = f"## {which}, against full attention, {full}"
    parts.append(f"{title}\n\n{timing.markdown(rows)}\n")
  return "\n".join(parts)


def draw(records: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Ratios against length: full lines for naive, dashed ones for tiles."""
  made = [r for r in records if r["method"] == "linformer"]
  figure = matplotlib.figure.Figure(figsize=(11, 8), layout="constrained")
  axes = figure.subplots(2, 2, sharex=True)
  for column, which in enumerate(_PASSES):
    for row, (quantity, label) in enumerate(
      [("speed", "times faster"), ("memory", "times less temporary memory")]
    ):
      at = axes[row][column]
      for color, k in enumerate(sorted({r["k"] for r in made})):
        for full, style in (("naive", "-"), ("tiles", "--")):
          key = f"{quantity}_{full}"
          points = [
            (r["length"], r[key])
            for r in made
            if (r["k"], r["pass"]) == (k, which) and key in r
          ]
          if points:
            x, y = zip(*points, strict=True)
            form = {"color": f"C{color}", "marker": "o", "markersize": 3}
            at.plot(x, y, style, label=f"k={k}, {full}", **form)
      at.axhline(1.0, color="k", linewidth=0.8)
      at.set(xscale="log", title=which, ylabel=label)
      at.set_yscale("log", base=2)
      for axis in (at.xaxis, at.yaxis):
        axis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
      at.set_xticks(sorted({r["length"] for r in made}))
      at.minorticks_off()
      at.grid(alpha=0.3)
  for column in range(2):
    axes[1][column].set_xlabel("tokens")
  axes[0][0].legend(fontsize=7)
  with files.whole(path) as part:
    figure.savefig(part, dpi=110, format="png")


def main(argv: list[str]) -> None:
  """Measures all lengths, writes and prints the results."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  asked = flags.FLAGS
  logging.set_verbosity(logging.WARNING)  # No word on absent backends.
  where = timing.environment()
  output = pathlib.Path(asked.output or "benchmarks/results/linformer.jsonl")
  records: list[dict[str, Any]] = []
  for length in map(int, asked.lengths or _LENGTHS):
    sizes = [k for k in map(int, _K.value) if k < length]
    if not sizes:
      raise app.UsageError(f"--k: none is below the length {length}.")
    records += measure(length, sizes)
    print(f"measured {length:,} tokens", flush=True)
    # Written each time, so that an interrupted run leaves what it has.
    timing.write_jsonl(output, [where | r for r in records])
  draw(records, output.with_suffix(".png"))
  head = (
    f"`{where['command']}`, {where['date']}, {where['device']} with "
    f"{where['cores']} cores, jax {where['jax']}, {asked.dtype}, batch 1, "
    f"{asked.heads} heads of {asked.depth}. Times faster (of the shortest of "
    f"up to {asked.rounds} rounds), and times less temporary memory. Full "
    f"attention was not run where it needs more than {asked.max_gib:g} GiB.\n\n"
  )
  found = tables(records)
  with files.whole(output.with_suffix(".md")) as part:
    part.write_text(head + found)
  print(f"\n{found}\nwritten to {output} (.md, .png beside it)")


if __name__ == "__main__":
  flags.FLAGS.set_default("seconds", 20.0)
  app.run(main)
