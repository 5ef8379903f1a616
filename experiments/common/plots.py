"""Figures, drawn without a display."""

import pathlib
from collections.abc import Mapping
from collections.abc import Sequence

import matplotlib.figure
import matplotlib.image
import numpy as np

from experiments.common import files

Curve = Sequence[tuple[float, float]]


def curves(
  path: pathlib.Path,
  lines: Mapping[str, Curve],
  *,
  levels: Mapping[str, float] | None = None,
  title: str,
  x_label: str,
  y_label: str,
) -> None:
  r"""Draws curves, and horizontal lines for what they are compared with.

  Args:
    path: of the PNG, written whole or not at all.
    lines: name -> points `(x, y)`.
    levels: name -> height of a dashed line.
    title: above the axes.
    x_label: with its unit.
    y_label: with its unit.

  Example:
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.png")
    >>> curves(path, {"loss": [(0, 2.0), (1, 1.0)]}, title="a", x_label="step",
    ...        y_label="bits")
    >>> path.read_bytes()[:4]
    b'\x89PNG'

  Source: matplotlib; a bare Figure leaves its global state alone.
  """
  figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
  axes = figure.add_subplot()
  for name, points in lines.items():
    if points:
      x, y = zip(*points, strict=True)
      marker = "o" if len(points) < 40 else None
      axes.plot(x, y, label=name, marker=marker, markersize=3)
  ordered = sorted((levels or {}).items(), key=lambda item: item[1])
  for i, (name, height) in enumerate(ordered):
    axes.axhline(height, linestyle="--", linewidth=0.8, color="0.4")
    axes.annotate(
      name,
      (0.99 - 0.15 * (i % 6), height),  # Staggered: some are nearly equal.
      xycoords=axes.get_yaxis_transform(),
      ha="right",
      va="bottom",
      fontsize=7,
    )
  axes.set(title=title, xlabel=x_label, ylabel=y_label)
  axes.grid(alpha=0.3)
  axes.legend()
  with files.whole(path) as part:
    figure.savefig(part, dpi=120, format="png")


def images(
  path: pathlib.Path,
  rows: Sequence[Sequence[np.ndarray]],
  *,
  levels: int,
  height: int = 64,
) -> None:
  r"""Draws grey images in a grid, black for level 0.

  Args:
    path: of the PNG, written whole or not at all.
    rows: of the grid, from above, the longest first; images `[h, w]`, all of
      one size, of integers in `[0, levels)`.
    levels: grey levels.
    height: about that many pixels of the PNG for an image.

  Example:
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.png")
    >>> images(path, [[np.eye(8, dtype=int)] * 3], levels=2)
    >>> matplotlib.image.imread(path).shape
    (72, 208, 4)

  Source: matplotlib.
  """
  h, w = rows[0][0].shape
  scale = max(height // h, 1)
  gap = 4
  size = (
    len(rows) * (h * scale + gap) + gap,
    len(rows[0]) * (w * scale + gap) + gap,
  )
  canvas = np.full(size, (levels - 1) / 2)
  for i, row in enumerate(rows):
    for j, image in enumerate(row):
      top, left = i * (h * scale + gap) + gap, j * (w * scale + gap) + gap
      canvas[top : top + h * scale, left : left + w * scale] = np.kron(
        image, np.ones((scale, scale))
      )
  with files.whole(path) as part:
    matplotlib.image.imsave(
      part, canvas, cmap="gray", vmin=0, vmax=levels - 1, format="png"
    )
