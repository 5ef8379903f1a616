"""A small genome with planted motifs, for runs of seconds and for tests."""

import numpy as np

from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals

MOTIF = "TATAAAAGG"
AHEAD = 30  # Bases from the motif's first one to the start.


def chain(length: int, rng: np.random.Generator) -> np.ndarray:
  """Bases of a Markov chain of order 1 that is the same for all seeds.

  Args:
    length: bases.
    rng: to draw from.

  Returns:
    `[length]` uint8.

  Example:
    >>> chain(5, np.random.default_rng(0)).dtype
    dtype('uint8')

  Source: none.
  """
  edges = np.random.default_rng(0).dirichlet(np.full(4, 6.0), 4).cumsum(1)
  draws, base, found = rng.random(length), 0, []
  for draw in draws:
    base = min(int(np.searchsorted(edges[base], draw)), 3)
    found.append(base)
  return np.array(found, np.uint8)


def genome(
  size: int = 120_000, *, count: int = 150, seed: int = 0
) -> tuple[genome_lib.InMemory, list[intervals.Interval]]:
  """One sequence, and where transcription starts on it.

  Args:
    size: bases.
    count: of starts.
    seed: of everything.

  Returns:
    The genome, with `MOTIF` ahead of each start, and the starts.

  Example:
    >>> found, starts = genome(5000, count=3)
    >>> place = next(x.start for x in starts if x.strand == "+")
    >>> found.letters("chr1", place - 30, place - 21).decode()
    'TATAAAAGG'

  Source: the TATA box lies about 30 bases ahead of the start.
  """
  rng = np.random.default_rng(seed)
  codes, motif, starts = chain(size, rng), alphabet.encode(MOTIF), []
  places = (np.arange(count) + 0.5) * size / count
  for i, place in enumerate(places.astype(int)):
    strand = intervals.STRANDS[i % 2]
    start = int(place)
    if strand == "+":
      codes[start - AHEAD : start - AHEAD + len(motif)] = motif
    else:
      end = start + AHEAD + 1
      codes[end - len(motif) : end] = alphabet.reverse_complement(motif)
    starts.append(intervals.Interval("chr1", start, start + 1, strand, f"g{i}"))
  return genome_lib.InMemory({"chr1": alphabet.decode(codes)}), starts


def profiles(
  count: int, *, length: int = 200, outputs: int = 6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Sequences and which of several motifs each holds, on either strand.

  Args:
    count: of sequences.
    length: bases.
    outputs: motifs of 8 bases, the same for all seeds.
    seed: of the rest.

  Returns:
    `[count, length]` uint8 and `[count, outputs]` uint8.

  Example:
    >>> profiles(3)[1].shape
    (3, 6)

  Source: none.
  """
  motifs = np.random.default_rng(1).integers(0, 4, (outputs, 8))
  rng = np.random.default_rng([seed, 7])
  codes = rng.integers(0, 4, (count, length)).astype(np.uint8)
  labels = (rng.random((count, outputs)) < 0.2).astype(np.uint8)
  room = length // outputs
  for row, wanted in zip(codes, labels, strict=True):
    for slot, output in enumerate(rng.permutation(outputs)):
      if wanted[output]:
        at = slot * room + int(rng.integers(room - 7))
        motif = motifs[output].astype(np.uint8)
        if rng.random() < 0.5:
          motif = alphabet.reverse_complement(motif)
        row[at : at + 8] = motif
  return codes, labels
