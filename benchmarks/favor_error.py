"""How far random features are from softmax attention, by their number.

  python -m benchmarks.favor_error
  python -m benchmarks.favor_error --length=4096 --draws=5

Redraws the figures on approximation error of Choromanski et al., 2021: the
error of the attention matrix and of the output against the number m of random
rows, for every kind of projection and of features; and the error of a single
weight against the angle of query and key, measured beside the formulas. Each
draw has new inputs, of normal entries, and new projections. All is done for
short and for long vectors. The floor is what equal weights for all keys give.
Results go to a JSON Lines file, and beside it a table in Markdown and a figure.
"""

import functools
import math
import pathlib
import time
from typing import Any
from typing import get_args

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.ticker
import numpy as np
from absl import app
from absl import flags
from absl import logging

from benchmarks import timing
from experiments.common import files
from jaxattn._src import favor

_ROWS = flags.DEFINE_list(
  "rows", ["8", "16", "32", "64", "128", "256", "512"], "m."
)
_SCALES = flags.DEFINE_list(
  "scales",
  ["0.5", "1"],
  "Standard deviations of the entries of queries and keys; and the lengths of "
  "the two vectors of a single weight.",
)
_LENGTH = flags.DEFINE_integer("length", 512, "Tokens.", lower_bound=1)
_DEPTH = flags.DEFINE_integer("depth", 16, "Size of a head.", lower_bound=2)
_DRAWS = flags.DEFINE_integer("draws", 15, "Of inputs.", lower_bound=2)
_ANGLES = flags.DEFINE_integer("angles", 13, "From 0 to pi.", lower_bound=2)
_ANGLE_DRAWS = flags.DEFINE_integer(
  "angle_draws", 4000, "Projections for each angle.", lower_bound=2
)
_SEED = flags.DEFINE_integer("seed", 0, "Of all draws.")
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/favor_error.jsonl", "Where results go."
)

_KINDS = get_args(favor.ProjectionKind)
_MAPS = {
  "positive": favor.positive_features,
  "hyperbolic": favor.hyperbolic_features,
  "trigonometric": favor.trigonometric_features,
}
_UNIFORM = "equal weights"
_ANGLE_ROWS = 16
_PANELS = {
  "matrix": "attention matrix, entries of deviation {:g}",
  "output": "output, entries of deviation {:g}",
  "weight": "one weight, |x| = |y| = {:g}, m = 16",
}
Record = dict[str, Any]


@functools.partial(jax.jit, static_argnames=("kind", "rows", "shape"))
def relative_errors(
  rngs: jax.Array,
  scale: float,
  *,
  kind: Any,
  rows: int,
  shape: tuple[int, int],
) -> dict[str, jax.Array]:
  """Squared errors of matrix and output, relative to their squares.

  Args:
    rngs: `[draws]` keys.
    scale: standard deviation of the entries of queries and keys.
    kind: of the projection.
    rows: m.
    shape: tokens, and the size of a head.

  Returns:
    `[draws, 2]` for each kind of features, and for equal weights.
  """

  def error(found: jax.Array, want: jax.Array) -> jax.Array:
    return jnp.sum((found - want) ** 2) / jnp.sum(want**2)

  def one(rng: jax.Array) -> dict[str, jax.Array]:
    input_rng, projection_rng = jax.random.split(rng)
    q, k, v = jax.random.normal(input_rng, (3, *shape))
    q, k = q * scale, k * scale
    weights = jnp.exp(q @ k.T * shape[1] ** -0.5)
    out = weights @ v / weights.sum(-1, keepdims=True)
    w = favor.draw_projection(projection_rng, rows, shape[1], kind=kind)
    estimates = {
      name: features(w, q).whole() @ features(w, k).whole().T
      for name, features in _MAPS.items()
    }
    estimates[_UNIFORM] = jnp.full_like(weights, weights.mean())
    errors = {}
    for name, found in estimates.items():
      mixed = found @ v / found.sum(-1, keepdims=True)
      errors[name] = jnp.stack([error(found, weights), error(mixed, out)])
    return errors

  return jax.lax.map(one, rngs)


@functools.partial(jax.jit, static_argnames=("kind", "depth"))
def weight_errors(
  rngs: jax.Array, angles: jax.Array, norm: float, *, kind: Any, depth: int
) -> dict[str, jax.Array]:
  """Mean squared error of one weight, relative to its square.

  Args:
    rngs: `[draws]` keys, each of a projection.
    angles: `[n]`, between two vectors.
    norm: of both vectors, after the division by `H^(1/4)`.
    kind: of the projection.
    depth: size of the vectors.

  Returns:
    `[n]` for each kind of features.
  """
  size = norm * depth**0.25  # Features divide by it.
  x = jnp.zeros(depth).at[0].set(size)
  y = jnp.zeros((len(angles), depth))
  y = y.at[:, 0].set(size * jnp.cos(angles))
  y = y.at[:, 1].set(size * jnp.sin(angles))
  want = jnp.exp(norm**2 * jnp.cos(angles))

  def one(rng: jax.Array) -> dict[str, jax.Array]:
    w = favor.draw_projection(rng, _ANGLE_ROWS, depth, kind=kind)
    found = {
      name: features(w, y).whole() @ features(w, x).whole()
      for name, features in _MAPS.items()
    }
    return jax.tree.map(lambda x: (x / want - 1) ** 2, found)

  errors = jax.lax.map(one, rngs, batch_size=500)
  return jax.tree.map(lambda x: x.mean(0), errors)


def predicted(features: str, angles: np.ndarray, norm: float) -> np.ndarray:
  """The relative variance of `weight_errors` for independent rows."""
  product = norm**2 * np.cos(angles)
  z2, d2 = 2 * norm**2 + 2 * product, 2 * norm**2 - 2 * product
  if features == "trigonometric":
    error = np.exp(z2 - 4 * product) * (1 - np.exp(-d2)) ** 2 / 2
  else:
    error = np.exp(z2) * (1 - np.exp(-z2))
    if features == "hyperbolic":
      error = error * (1 - np.exp(-z2)) / 2
  return error / _ANGLE_ROWS


def measure_rows(kind: str, rows: int, scale: float) -> list[Record]:
  """Errors of matrix and output for one kind and number of rows."""
  rngs = jax.random.split(jax.random.key(_SEED.value), _DRAWS.value)
  shape = (_LENGTH.value, _DEPTH.value)
  found = relative_errors(rngs, scale, kind=kind, rows=rows, shape=shape)
  records = []
  for name, errors in found.items():
    for panel, column in zip(("matrix", "output"), errors.T, strict=True):
      column = np.asarray(column, np.float64)
      record = {
        "panel": panel,
        "size": scale,
        "projection": kind,
        "features": name,
        "rows": rows,
        "error": float(column.mean()),
        "error_median": float(np.median(column)),
        "error_std": float(column.std(ddof=1)),
      }
      records.append(record)
  return records


def measure_angles(kind: str, norm: float) -> list[Record]:
  """Errors of a weight by angle, for one kind."""
  angles = np.linspace(0, math.pi, _ANGLES.value)
  rngs = jax.random.split(jax.random.key(_SEED.value + 1), _ANGLE_DRAWS.value)
  found = weight_errors(
    rngs, jnp.asarray(angles, jnp.float32), norm, kind=kind, depth=_DEPTH.value
  )
  return [
    {
      "panel": "weight",
      "size": norm,
      "projection": kind,
      "features": name,
      "rows": _ANGLE_ROWS,
      "angle": float(angle),
      "error": float(error),
      "formula_iid": float(formula),
    }
    for name, errors in found.items()
    for angle, error, formula in zip(
      angles, errors, predicted(name, angles, norm), strict=True
    )
  ]


def slope(points: list[tuple[float, float]]) -> float:
  """Of a line through the logarithms of the points."""
  x, y = np.log(np.asarray(points)).T
  return float(np.polyfit(x, y, 1)[0])


def _curves(records: list[Record], panel: str, size: float) -> Any:
  """Features, projection and points of every curve of a panel."""
  by = "angle" if panel == "weight" else "rows"
  found: dict[tuple[str, str], Any] = {}
  for r in records:
    if (r["panel"], r["size"]) == (panel, size):
      # Equal weights know no projection: one curve.
      kind = "" if r["features"] == _UNIFORM else r["projection"]
      curve = found.setdefault((r["features"], kind), {})
      curve[r[by]] = r["error"]
  order = [*_MAPS, _UNIFORM]
  for name, kind in sorted(found, key=lambda key: order.index(key[0])):
    yield name, kind, list(found[name, kind].items())


def _sizes(records: list[Record]) -> list[float]:
  return sorted({r["size"] for r in records})


def draw(records: list[Record], path: pathlib.Path) -> None:
  """A column for each of matrix, output and weight, a row for each size."""
  sizes = _sizes(records)
  figure = matplotlib.figure.Figure(
    figsize=(15, 4.5 * len(sizes)), layout="constrained"
  )
  axes = figure.subplots(len(sizes), len(_PANELS), squeeze=False)
  for row, size in zip(axes, sizes, strict=True):
    for at, panel in zip(row, _PANELS, strict=True):
      _draw_panel(at, panel, size, records)
  axes[0][0].legend(fontsize=7)
  with files.whole(path) as part:
    figure.savefig(part, dpi=100, format="png")


def _draw_panel(
  at: Any, panel: str, size: float, records: list[Record]
) -> None:
  colours = dict(zip([*_MAPS, _UNIFORM], ("C0", "C2", "C3", "C7"), strict=True))
  styles = dict(zip([*_KINDS, ""], ("-", "--", ":", "-"), strict=True))
  for name, kind, points in _curves(records, panel, size):
    at.plot(
      *zip(*points, strict=True),
      styles[kind],
      color=colours[name],
      marker="o",
      markersize=3,
      label=", ".join(filter(None, (name, kind))),
    )
  at.set(
    yscale="log",
    title=_PANELS[panel].format(size),
    ylabel="relative squared error",
  )
  at.grid(alpha=0.3)
  if panel == "weight":
    angles = np.linspace(0, math.pi, 200)[1:-1]
    for i, name in enumerate(_MAPS):
      label = None if i else "formula, iid"
      formula = predicted(name, angles, size)
      at.plot(angles, formula, color="k", linewidth=0.6, label=label)
    at.set(xlabel="angle, radians", ylim=(1e-6, None))
    at.legend(handles=at.lines[-len(_MAPS) :][:1], fontsize=7)
    return
  at.set(xscale="log", xlabel="rows m")
  at.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
  at.set_xticks(sorted({r["rows"] for r in records if r["panel"] == panel}))
  at.minorticks_off()


def tables(records: list[Record]) -> str:
  """A table for each of matrix and output, with the slopes."""
  parts = []
  for panel in ("matrix", "output"):
    for size in _sizes(records):
      rows = [
        {"features": name, "projection": kind}
        | {f"m={m}": f"{error:.2g}" for m, error in points}
        | {"slope": f"{slope(points):.2f}"}
        for name, kind, points in _curves(records, panel, size)
      ]
      title = _PANELS[panel].format(size)
      parts.append(f"{title}:\n\n{timing.markdown(rows)}")
  return "\n\n".join(parts)


def main(argv: list[str]) -> None:
  """Measures, writes and prints."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  logging.set_verbosity(logging.WARNING)  # No word on absent backends.
  where, output = timing.environment(), pathlib.Path(_OUTPUT.value)
  start, records = time.perf_counter(), []
  for kind in _KINDS:
    for size in map(float, _SCALES.value):
      for rows in map(int, _ROWS.value):
        records += measure_rows(kind, rows, size)
      records += measure_angles(kind, size)
    print(f"measured {kind} projections", flush=True)
  sizes = {
    "length": _LENGTH.value,
    "depth": _DEPTH.value,
    "draws": _DRAWS.value,
    "seed": _SEED.value,
  }
  timing.write_jsonl(output, [where | sizes | r for r in records])
  draw(records, output.with_suffix(".png"))
  table = tables(records)
  head = (
    f"`{where['command']}`, {where['date']}, {where['device']} with "
    f"{where['cores']} cores, jax {where['jax']}. "
    f"{_LENGTH.value} tokens, heads of {_DEPTH.value}, mean of {_DRAWS.value} "
    f"draws from seed {_SEED.value}: squared error relative to the square of "
    "the exact array. Slopes are those of a line through the logarithms.\n\n"
  )
  with files.whole(output.with_suffix(".md")) as part:
    part.write_text(head + table + "\n")
  took = time.perf_counter() - start
  print(f"\n{table}\n\n{took:.0f} s; written to {output} (.md, .png beside it)")


if __name__ == "__main__":
  app.run(main)
