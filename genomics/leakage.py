"""What the parts of a split have in common, before any model is believed."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from genomics import alphabet
from genomics import intervals
from genomics import tokenizers


@dataclasses.dataclass(frozen=True)
class Leak:
  """What one part of a split has of another.

  Attributes:
    part: the part that is measured.
    other: the part that it is compared with.
    same_chroms: sequences that both have windows on.
    overlapping: windows of `part` that share bases with one of `other`.
    windows: of `part`.
    repeats: sequences of `part` that are, on either strand, in `other`.
    shared: share of the k-mers of `part` that `other` has, on either strand.
  """

  part: str
  other: str
  same_chroms: tuple[str, ...]
  overlapping: int
  windows: int
  repeats: int
  shared: float

  def __str__(self) -> str:
    return (
      f"{self.part} against {self.other}: {len(self.same_chroms)} sequences in "
      f"common, {self.overlapping} of {self.windows} windows overlap, "
      f"{self.repeats} repeated, {self.shared:.1%} of k-mers shared"
    )


def _kmers(rows: Sequence[np.ndarray], k: int) -> np.ndarray:
  found = [np.zeros(0, np.int64)]
  for codes in rows:
    forward, known = tokenizers.kmer_numbers(codes, k)
    other = alphabet.reverse_complement(codes)
    backward = tokenizers.kmer_numbers(other, k)[0][::-1]
    found.append(np.minimum(forward, backward)[known])
  return np.unique(np.concatenate(found))


def _canonical(codes: np.ndarray) -> bytes:
  return min(codes.tobytes(), alphabet.reverse_complement(codes).tobytes())


def report(
  codes: Mapping[str, Sequence[np.ndarray]],
  windows: Mapping[str, Sequence[intervals.Interval]] | None = None,
  *,
  k: int = 24,
) -> list[Leak]:
  """Compares each part of a split with the first one.

  Args:
    codes: part -> its sequences; what the model learns from comes first.
    windows: part -> where they are from, as far as known.
    k: bases in the k-mers that are compared, at most 31.

  Returns:
    One entry for each part but the first.

  Example:
    >>> rows = [alphabet.encode("ACGTTGCA" * 4)]
    >>> report({"train": rows, "test": rows})[0].repeats
    1

  Source: the need is shown by Whalen et al., 2022,
  https://doi.org/10.1038/s41576-021-00434-9.
  """
  windows = windows or {}
  first, *others = codes
  known = _kmers(codes[first], k)
  whole = {_canonical(x) for x in codes[first]}
  merged = intervals.merge(windows.get(first, ()))
  found = []
  for part in others:
    mine = _kmers(codes[part], k)
    both = np.isin(mine, known, assume_unique=True).sum()
    here = windows.get(part, ())
    chroms = {x.chrom for x in here} & {x.chrom for x in merged}
    found.append(
      Leak(
        part,
        first,
        tuple(sorted(chroms)),
        sum(_overlaps(x, merged) for x in here),
        len(here),
        sum(_canonical(x) in whole for x in codes[part]),
        float(both / max(len(mine), 1)),
      )
    )
  return found


def _overlaps(
  x: intervals.Interval, merged: Sequence[intervals.Interval]
) -> bool:
  return any(
    y.chrom == x.chrom and y.start < x.end and x.start < y.end for y in merged
  )
