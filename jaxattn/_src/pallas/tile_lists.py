"""Flat lists of tiles for kernels that visit them one after the other."""

import functools
from typing import NamedTuple

import numpy as np

from jaxattn._src import layout as layout_lib

FIRST, LAST, PARTIAL, EMPTY = 1, 2, 4, 8


class Tiles(NamedTuple):
  """Tiles in the order of their rows, each row's full ones first.

  Attributes:
    row: `[T]` int32, the tile of rows, which repeats for all its columns.
    column: `[T]` int32.
    mask: `[T]` int32, which mask; full tiles repeat the one before them, so
      that nothing is copied for them.
    flags: `[T]` int32: `FIRST` and `LAST` of a row, `PARTIAL` if the mask
      counts, `EMPTY` for a row without tiles, which is visited once.
  """

  row: np.ndarray
  column: np.ndarray
  mask: np.ndarray
  flags: np.ndarray


@functools.lru_cache(maxsize=256)
def tiles(layout: layout_lib.Layout, *, transpose: bool = False) -> Tiles:
  """Lists the tiles of a layout.

  Args:
    layout: the tiles.
    transpose: whether rows are tiles of keys.

  Returns:
    The list.
  """
  row, column, num = layout.rows, layout.cols, layout.num_rows
  if transpose:
    row, column, num = column, row, layout.num_cols
  missing = np.setdiff1d(np.arange(num), row)
  none = np.zeros_like(missing)
  row = np.concatenate([row, missing])
  column = np.concatenate([column, none])
  table = np.concatenate([layout.table, none - 1])
  order = np.lexsort((column, table > 0, row))
  row, column, table = row[order], column[order], table[order]
  change = row[1:] != row[:-1]
  flags = FIRST * np.concatenate([[True], change])
  flags = flags + LAST * np.concatenate([change, [True]])
  flags = flags + PARTIAL * (table > 0) + EMPTY * (table < 0)
  at = np.where(table > 0, np.arange(len(table)), -1)
  at = np.maximum.accumulate(at)
  mask = np.where(at >= 0, table[np.maximum(at, 0)], 0)
  return Tiles(*(x.astype(np.int32) for x in (row, column, mask, flags)))
