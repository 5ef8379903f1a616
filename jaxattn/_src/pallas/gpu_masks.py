"""Which scores of a tile count, inside a Mosaic GPU kernel."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxattn._src import layout as layout_lib
from jaxattn._src.pallas import mosaic
from jaxattn._src.pallas import row_tables


@dataclasses.dataclass(frozen=True)
class Masking:
  """How the masks of a piece are made.

  Attributes:
    band: closed form of all masks, or None for a table of them.
    by_key: whether rows of a tile are keys.
    segments: whether ids of queries and keys must be equal.
    positions: whether positions of keys must not exceed those of queries.
  """

  band: row_tables.Band | None
  by_key: bool
  segments: bool
  positions: bool

  @property
  def dynamic(self) -> bool:
    """Whether full tiles have masks too, made at run time."""
    return self.segments or self.positions

  def apply(
    self,
    scores: jax.Array,
    refs: dict[str, Any],
    place: "Place",
    *,
    partial: bool,
  ) -> jax.Array:
    """Puts `-inf` where there is no edge.

    Args:
      scores: `[rows, columns]` of a part of a tile.
      refs: what the kernel was given, by name.
      place: where the part lies.
      partial: whether the tile is one of those with a static mask.
    """
    if partial:
      scores = self._static(scores, refs, place)
    for name, wanted in (
      ("segment", self.segments),
      ("position", self.positions),
    ):
      if not wanted:
        continue
      sides = ("key", "query") if self.by_key else ("query", "key")
      starts = (place.row, place.column)
      row, column = (
        mosaic.spread(
          mosaic.load(
            refs[f"{side}_{name}"].at[
              refs["batch"] if refs[f"{side}_{name}"].shape[0] > 1 else 0,
              pl.ds(start, size),
            ],
            layout,
          ),
          scores.shape,
          axis,
        )
        for side, start, size, layout, axis in zip(
          sides,
          starts,
          scores.shape,
          (mosaic.BY_ROW, mosaic.BY_COLUMN),
          (0, 1),
          strict=True,
        )
      )
      if name == "segment":
        keep = row == column
      else:
        keep = row <= column if self.by_key else row >= column
      scores = jnp.where(keep, scores, -jnp.inf)
    return scores

  def _static(
    self, scores: jax.Array, refs: dict[str, Any], place: "Place"
  ) -> jax.Array:
    if self.band is None:
      mask = mosaic.load(
        refs["masks"].at[
          place.table,
          pl.ds(place.row_inside, scores.shape[0]),
          pl.ds(place.column_inside, scores.shape[1]),
        ],
        plgpu.Layout.WGMMA,
      )
      return jnp.where(mask.astype(jnp.float32) > 0, scores, -jnp.inf)
    row, column = (
      plgpu.broadcasted_iota(
        jnp.int32, scores.shape, axis, layout=plgpu.Layout.WGMMA
      )
      for axis in (0, 1)
    )
    distance = column - row + (place.column - place.row)
    low, high = self.band.low, self.band.high
    if self.by_key:
      low, high = (None if x is None else -x for x in (high, low))
    if low is not None:
      scores = jnp.where(distance >= low, scores, -jnp.inf)
    if high is not None:
      scores = jnp.where(distance <= high, scores, -jnp.inf)
    if self.band.end is not None:
      at, start = (row, place.row) if self.by_key else (column, place.column)
      scores = jnp.where(at < self.band.end - start, scores, -jnp.inf)
    return scores


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a part of a tile lies.

  Attributes:
    table: which mask its tile has.
    row: first row, in tokens.
    column: first column, in tokens.
    row_inside: first row, counted from the start of the tile.
    column_inside: first column, likewise.
  """

  table: Any
  row: Any
  column: Any
  row_inside: Any
  column_inside: Any


def table(layout: layout_lib.Layout, *, by_key: bool) -> np.ndarray:
  """`[1 + U, rows, columns]` int8 masks."""
  masks = layout.masks.transpose(0, 2, 1) if by_key else layout.masks
  return np.ascontiguousarray(masks, np.int8)
