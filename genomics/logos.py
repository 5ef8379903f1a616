"""Sequence logos of what a model finds important."""

import pathlib

import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib


def information(codes: np.ndarray) -> np.ndarray:
  """The height of each base in a logo of aligned sequences, in bits.

  Args:
    codes: `[n, L]`; unknown bases count nowhere.

  Returns:
    `[L, 4]`: the share of each base times 2 less the entropy of the place.

  Example:
    >>> information(np.array([[0], [0]])).tolist()
    [[2.0, 0.0, 0.0, 0.0]]

  Source: Schneider and Stephens, 1990, https://doi.org/10.1093/nar/18.20.6097.
  """
  counts = alphabet.one_hot(codes).sum(0)
  share = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
  logs = np.log2(np.where(share > 0, share, 1))
  bits = 2 + np.sum(share * logs, -1, keepdims=True)
  return share * bits


def draw(
  path: pathlib.Path,
  heights: np.ndarray,
  *,
  title: str = "",
  label: str = "",
  first: int = 0,
) -> None:
  """Writes a logo as an image.

  Args:
    path: of the image, by its suffix.
    heights: `[L, 4]`; negative ones stand below the line.
    title: above it.
    label: of the vertical axis.
    first: the place of the first column.

  Raises:
    UserError: if logomaker is not here.

  Source: Tareen and Kinney, 2020, https://doi.org/10.1093/bioinformatics/btz921.
  """
  logomaker = genome_lib.need("logomaker")
  pandas = genome_lib.need("pandas")
  figures = genome_lib.need("matplotlib.figure", "matplotlib")
  figure = figures.Figure(figsize=(max(4.0, 0.16 * len(heights)), 2.5))
  axes = figure.subplots()
  places = np.arange(first, first + len(heights))
  table = pandas.DataFrame(
    np.asarray(heights, float), index=places, columns=list(alphabet.BASES)
  )
  logomaker.Logo(table, ax=axes, color_scheme="classic")
  axes.set_title(title)
  axes.set_ylabel(label)
  figure.tight_layout()
  with files.whole(path) as part:
    figure.savefig(part, dpi=120)
