"""Numbers and intervals along a genome, from bigWig and bigBed files."""

from typing import Any

import numpy as np

from experiments.common import files
from genomics import genome as genome_lib
from genomics import intervals


class BigWig(genome_lib.Opened):
  """A bigWig file, opened at the first read.

  Args:
    path: of the file.

  Raises:
    UserError: if it is not there or damaged.

  Source: Kent et al., 2010, https://doi.org/10.1093/bioinformatics/btq351;
  pybigtools, https://github.com/jackh726/bigtools.
  """

  def _open(self) -> object:
    return genome_lib.need("pybigtools").open(str(self.path))

  def _lengths(self) -> dict[str, int]:
    return dict(self.handle.chroms())

  def values(
    self, place: intervals.Interval, *, fill: float = 0.0
  ) -> np.ndarray:
    """One number a base, along the interval's strand.

    Args:
      place: by the file's names; it may stick out.
      fill: where the file says nothing.

    Returns:
      `[length]` float32.

    Raises:
      UserError: if the file has no such sequence.
    """
    size = self.lengths.get(place.chrom)
    if size is None:
      names = ", ".join(list(self.lengths)[:5])
      raise files.UserError(
        f"{self.path} has no sequence {place.chrom!r}; it has {names}."
      )
    found = np.full(place.length, fill, np.float32)
    low, high = max(place.start, 0), min(place.end, size)
    if low < high:
      inside = self.handle.values(place.chrom, low, high, fillna=fill)
      found[low - place.start : high - place.start] = inside
    return found[::-1] if place.strand == "-" else found


class BigBed(genome_lib.Opened):
  """A bigBed file, opened at the first read.

  Args:
    path: of the file.

  Raises:
    UserError: if it is not there, damaged, or a bigWig file.

  Source: as of `BigWig`.
  """

  def _open(self) -> Any:
    found = genome_lib.need("pybigtools").open(str(self.path))
    if not found.is_bigbed:
      raise files.UserError(f"{self.path} is bigWig: read it with BigWig.")
    return found

  def _lengths(self) -> dict[str, int]:
    return dict(self.handle.chroms())

  def overlapping(self, place: intervals.Interval) -> list[intervals.Interval]:
    """What overlaps an interval by a base or more, in the file's order.

    Args:
      place: by the file's names; it may stick out, and its strand is of no
        account.

    Returns:
      Intervals with names and strands, if the file has these columns; a strand
      that is neither + nor - counts as +.

    Raises:
      UserError: if the file has no such sequence.
    """
    size = self.lengths.get(place.chrom)
    if size is None:
      names = ", ".join(list(self.lengths)[:5])
      raise files.UserError(
        f"{self.path} has no sequence {place.chrom!r}; it has {names}."
      )
    low, high = max(place.start, 0), min(place.end, size)
    found = []
    if low < high:
      for start, end, *more in self.handle.records(place.chrom, low, high):
        if start < high and end > low:  # Neighbours that only touch come, too.
          name = str(more[0]) if more else ""
          strand = "-" if len(more) > 2 and more[2] == "-" else "+"
          form = (place.chrom, start, end, strand, name)
          found.append(intervals.Interval(*form))
    return found


def binned(values: np.ndarray, width: int) -> np.ndarray:
  """Means over bins; a last bin that is not whole is left out.

  Args:
    values: `[n]`.
    width: of a bin.

  Returns:
    `[n // width]`.

  Example:
    >>> binned(np.array([1.0, 3.0, 5.0]), 2).tolist()
    [2.0]

  Source: none.
  """
  count = len(values) // width
  return values[: count * width].reshape(count, width).mean(1)
