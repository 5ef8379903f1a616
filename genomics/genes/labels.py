"""What each base of a genome is to its genes, and a floor: open frames."""

from collections.abc import Sequence

import numpy as np

from genomics import alphabet
from genomics import annotation
from genomics import tokenizers

# On +; those of - are `MINUS` more. To CODON comes the place in it, 0 to 2.
NONE, CODON, START, STOP, MINUS = 0, 1, 4, 5, 5
CLASSES = 11
# Labels on the other strand.
TURN = np.array([0, *range(6, 11), *range(1, 6)])
_STARTS = ("ATG", "GTG", "TTG")
_STOPS = ("TAA", "TAG", "TGA")
_ALLOWED = 60  # Bases that two open frames may share.


def _number(codon: str) -> int:
  return int(tokenizers.kmer_numbers(alphabet.encode(codon), 3)[0][0])


def of_features(
  length: int, chrom: str, features: Sequence[annotation.Feature]
) -> np.ndarray:
  """Labels of a sequence by its annotated coding stretches.

  Args:
    length: of the sequence.
    chrom: its name.
    features: coding stretches, each with its phase; of two on one base the
      later one counts. The first codon of a gene is `START`, the last `STOP`.

  Returns:
    `[length]` int32: 0 outside genes; on + strand 1 to 3 by the place in the
    codon, 4 in the start and 5 in the stop codon; 5 more on the - strand.

  Example:
    >>> place = annotation.intervals.Interval("c", 1, 10)
    >>> of_features(12, "c", [annotation.Feature(place, "CDS")]).tolist()
    [0, 4, 4, 4, 1, 2, 3, 5, 5, 5, 0, 0]

  Source: the task of Marin et al., 2024 (BEND),
  https://arxiv.org/abs/2311.12570, with places in codons added.
  """
  labels = np.zeros(length, np.int32)
  genes: dict[tuple[str, int], list[annotation.Feature]] = {}
  for index, x in enumerate(features):
    if x.interval.chrom == chrom:
      name = x.interval.name
      genes.setdefault((name, 0) if name else ("", index), []).append(x)
  for parts in genes.values():
    places, numbers = [], []
    for x in parts:
      place = x.interval
      bases = np.arange(place.start, place.end)
      bases = bases if place.strand == "+" else bases[::-1]
      places.append(bases)
      numbers.append((np.arange(len(bases)) - x.phase) % 3)
    shift = MINUS if parts[0].interval.strand == "-" else 0
    bases = np.concatenate(places)
    found = CODON + np.concatenate(numbers)
    if len(bases) >= 6:
      found[:3], found[-3:] = START, STOP
    labels[bases] = found + shift
  return labels


def of_open_frames(codes: np.ndarray, *, least: int = 200) -> np.ndarray:
  """Labels by the longest open reading frames, which nothing was taught.

  From the first start codon after a stop to the next stop, in all six frames;
  long ones come first, and a frame that shares more than 60 bases with them is
  none.

  Args:
    codes: of the sequence.
    least: bases that a frame must have.

  Returns:
    Labels as of `of_features`.

  Example:
    >>> codes = alphabet.encode("CC" + "ATG" + "GCA" * 4 + "TAA" + "C")
    >>> of_open_frames(codes, least=9)[2:8].tolist()
    [4, 4, 4, 1, 2, 3]

  Source: the usual first look at a bacterial genome.
  """
  found = []
  for strand in (0, 1):
    strand_codes = alphabet.reverse_complement(codes) if strand else codes
    for start, end in _frames(strand_codes, least):
      low = len(codes) - end if strand else start
      found.append((end - start, low, strand))
  labels = np.zeros(len(codes), np.int32)
  for size, low, strand in sorted(found, reverse=True):
    here = labels[low : low + size]
    if np.sum(here > 0) > _ALLOWED:
      continue
    row = CODON + np.arange(size, dtype=np.int32) % 3
    row[:3], row[-3:] = START, STOP
    row = row[::-1] + MINUS if strand else row
    labels[low : low + size] = np.where(here > 0, here, row)
  return labels


def _frames(codes: np.ndarray, least: int) -> list[tuple[int, int]]:
  """Open reading frames of one strand: first base, and one after the last."""
  starts, stops = ([_number(x) for x in y] for y in (_STARTS, _STOPS))
  number, known = tokenizers.kmer_numbers(codes, 3)
  number = np.where(known, number, _number("TAA"))  # Nothing goes over N.
  found = []
  for frame in range(3):
    codons = number[frame::3]
    begin = np.flatnonzero(np.isin(codons, starts))
    ends = np.flatnonzero(np.isin(codons, stops))
    before = np.append(-1, ends)[: len(ends)]
    first = np.searchsorted(begin, before + 1)
    for at, end in zip(first, ends, strict=True):
      if at < len(begin) and begin[at] < end:
        size = 3 * int(end - begin[at] + 1)
        if size >= least:
          low = frame + 3 * int(begin[at])
          found.append((low, low + size))
  return found


def strand_of(labels: np.ndarray) -> np.ndarray:
  """0 outside genes, 1 in those of +, 2 in those of -.

  Args:
    labels: as of `of_features`.

  Returns:
    The same shape.

  Example:
    >>> strand_of(np.array([0, 3, 8])).tolist()
    [0, 1, 2]

  Source: none.
  """
  return (labels > 0).astype(np.int32) + (labels > MINUS)
