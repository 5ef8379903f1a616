"""Methods of attention against dense attention, by length.

Each length runs in rounds of one process: every method, dense attention that
materialises its scores (`softmax(q k^T) v`, as most codes write it), and
`jax.nn.dot_product_attention`. Both are left out where their temporary arrays,
as XLA plans them, would exceed `--max_gib`. Results go to a JSON Lines file,
and beside it a table in Markdown and a figure.

A benchmark of its own is a table of methods and a call of `run`.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.ticker
from absl import app
from absl import flags
from absl import logging

import jaxattn
from benchmarks import timing
from experiments.common import files

_LENGTHS = flags.DEFINE_list("lengths", [], "Tokens; without it, the usual.")
_HEADS = flags.DEFINE_integer("heads", 8, "Heads.", lower_bound=1)
_DEPTH = flags.DEFINE_integer("depth", 64, "Size of a head.", lower_bound=1)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of all."
)
_METHODS = flags.DEFINE_list("methods", [], "Which; all without it.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
_SECONDS = flags.DEFINE_float(
  "seconds", 90.0, "No further round of a length starts after so long."
)
_MAX_GIB = flags.DEFINE_float(
  "max_gib", 8.0, "Most temporary memory that dense attention may take, GiB."
)
_OUTPUT = flags.DEFINE_string("output", "", "Where results go, if elsewhere.")

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Maker = Callable[[int], Attend]  # Of the number of tokens.
Makers = dict[str, Maker]
_PASSES = ("forward", "forward+backward")
_DENSE = ("dense, naive", "dense, jax.nn")


def method(
  of_length: Callable[[int], jaxattn.AttentionMethod], *, causal: bool = False
) -> Callable[[int], Attend]:
  """How a method attends, with parameters drawn from the key 0.

  Args:
    of_length: makes the method for a number of tokens.
    causal: whether the mask is.

  Returns:
    A maker for the table of `run`.
  """

  def make(length: int) -> Attend:
    one = of_length(length)
    shapes = jaxattn.AttentionShapes(
      num_heads=_HEADS.value, head_dim=_DEPTH.value
    )
    params, state = one.init(jax.random.key(0), shapes)
    mask = jaxattn.Mask(causal=causal)
    return lambda q, k, v: one.apply(params, state, q, k, v, mask=mask)[0]

  return make


def naive(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Dense attention with all scores in memory."""
  scores = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
  return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v)


_DENSE_MAKERS: Makers = {
  _DENSE[0]: lambda length: naive,
  _DENSE[1]: lambda length: jax.nn.dot_product_attention,
}


def measure(makers: Makers, length: int) -> list[dict[str, Any]]:
  """Measures methods, and dense attention, at one length."""
  shape = (1, length, _HEADS.value, _DEPTH.value)
  arrays = tuple(
    jax.random.normal(rng, shape, jnp.dtype(_DTYPE.value))
    for rng in jax.random.split(jax.random.key(1), 4)
  )
  compiled, calls, records = {}, {}, []
  for name, maker in (makers | _DENSE_MAKERS).items():
    attend = maker(length)
    for which in _PASSES:
      one = timing.compile_pass(attend, which, arrays)
      compiled[name, which] = one
      if name not in _DENSE or one.temporary <= _MAX_GIB.value * 2**30:
        calls[f"{name}|{which}"] = one.call
  times = timing.interleave(calls, rounds=_ROUNDS.value, seconds=_SECONDS.value)
  for (name, which), one in compiled.items():
    took = times.get(f"{name}|{which}")
    record = {
      "method": name,
      "length": length,
      "pass": which,
      "heads": _HEADS.value,
      "depth": _DEPTH.value,
      "dtype": _DTYPE.value,
      "temporary_bytes": one.temporary,
    }
    if took is not None:
      record |= {
        "ms": took.min_ms,
        "ms_median": took.median_ms,
        "rounds": took.rounds,
      }
      for other in _DENSE:
        base = times.get(f"{other}|{which}")
        if base is not None and name not in _DENSE:
          key = f"speedup_{other.rpartition(' ')[2]}"
          record[key] = base.min_ms / took.min_ms
    records.append(record)
  return records


def _row(record: dict[str, Any]) -> dict[str, str]:
  """The record as a row of the table."""

  def ratio(name: str) -> str:
    return f"{record[name]:.1f}" if name in record else ""

  took = "not run"
  if "ms" in record:
    took = f"{record['ms']:.1f} ({record['ms_median']:.1f})"
  return {
    "method": record["method"],
    "length": str(record["length"]),
    "pass": record["pass"],
    "ms, min (median)": took,
    "times naive": ratio("speedup_naive"),
    "times jax.nn": ratio("speedup_jax.nn"),
    "temporary MiB": f"{record['temporary_bytes'] / 2**20:.1f}",
  }


def draw(records: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Time and temporary memory against length, both passes."""
  figure = matplotlib.figure.Figure(figsize=(11, 8), layout="constrained")
  axes = figure.subplots(2, 2, sharex=True)
  for column, which in enumerate(_PASSES):
    for row, (key, unit, label) in enumerate(
      [("ms", 1, "ms"), ("temporary_bytes", 2**20, "temporary MiB")]
    ):
      at = axes[row][column]
      for name in dict.fromkeys(r["method"] for r in records):
        points = [
          (r["length"], r[key] / unit)
          for r in records
          if (r["method"], r["pass"]) == (name, which) and key in r
        ]
        if points:
          style = "k--" if name in _DENSE else "-"
          x, y = zip(*points, strict=True)
          at.plot(x, y, style, marker="o", markersize=3, label=name)
      at.set(xscale="log", yscale="log", ylabel=label, title=which)
      at.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
      at.set_xticks(sorted({r["length"] for r in records}))
      at.minorticks_off()
      at.grid(alpha=0.3)
  axes[1][0].set_xlabel("tokens")
  axes[1][1].set_xlabel("tokens")
  axes[0][0].legend(fontsize=7)
  with files.whole(path) as part:
    figure.savefig(part, dpi=110, format="png")


def run(
  argv: list[str], makers: Makers, lengths: list[int], output: str
) -> None:
  """Measures all lengths, writes and prints the results.

  Args:
    argv: of the program, which takes flags only.
    makers: method by name.
    lengths: the usual numbers of tokens.
    output: the usual JSON Lines file.
  """
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  for name in _METHODS.value:
    if name not in makers:
      raise app.UsageError(
        f"--methods: unknown {name!r}; known: {', '.join(makers)}."
      )
  chosen = {n: makers[n] for n in _METHODS.value or makers}
  logging.set_verbosity(logging.WARNING)  # No word on absent backends.
  where, path = timing.environment(), pathlib.Path(_OUTPUT.value or output)
  records: list[dict[str, Any]] = []
  for length in map(int, _LENGTHS.value or lengths):
    records += measure(chosen, length)
    print(f"measured {length:,} tokens", flush=True)
    # Written each time, so that an interrupted run leaves what it has.
    timing.write_jsonl(path, [where | r for r in records])
    draw(records, path.with_suffix(".png"))
  table = timing.markdown([_row(record) for record in records])
  head = (
    f"`{where['command']}`, {where['date']}, {where['device']} with "
    f"{where['cores']} cores, jax {where['jax']}, {_DTYPE.value}, batch 1, "
    f"{_HEADS.value} heads of {_DEPTH.value}. Dense attention was not run "
    f"where it needs more than {_MAX_GIB.value:g} GiB of temporary memory.\n\n"
  )
  with files.whole(path.with_suffix(".md")) as part:
    part.write_text(head + table + "\n")
  print(f"\n{table}\n\nwritten to {path} (.md, .png beside it)")
