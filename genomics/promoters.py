"""Promoters and what is set against them: windows, splits, negatives."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals

PIECES = 20
CHANGED = 12
PARTS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Region:
  """Places of a sequence that belong to one part of a split.

  Attributes:
    chrom: name of the sequence.
    start: the first place, from 0.
    end: one after the last; None: to the sequence's end.
  """

  chrom: str
  start: int = 0
  end: int | None = None


Split = Mapping[str, Sequence[Region]]


def split_windows(
  found: Sequence[intervals.Interval], split: Split
) -> dict[str, list[intervals.Interval]]:
  """The windows that lie whole inside a region of each part.

  What crosses the end of a region belongs to no part, so that no base is in
  two of them: this is the gap.

  Args:
    found: windows by the genome's names.
    split: part -> its regions.

  Returns:
    Part -> its windows.

  Raises:
    UserError: if regions of two parts overlap, or a part gets no window.

  Example:
    >>> split = {"train": [Region("c", 0, 9)], "test": [Region("c", 9)]}
    >>> at = [intervals.Interval("c", i, i + 4) for i in (0, 7, 9)]
    >>> {k: len(v) for k, v in split_windows(at, split).items()}
    {'train': 1, 'test': 1}

  Source: none.
  """
  regions = [(part, r) for part in split for r in split[part]]
  for i, (one, a) in enumerate(regions):
    for other, b in regions[:i]:
      if one != other and a.chrom == b.chrom and _meet(a, b):
        raise files.UserError(
          f"parts {other!r} and {one!r} of the split share bases of "
          f"{a.chrom!r}. Keep their regions apart."
        )
  parts = {}
  for part, wanted in split.items():
    parts[part] = [x for x in found if any(_holds(r, x) for r in wanted)]
    if not parts[part]:
      raise files.UserError(
        f"part {part!r} of the split holds none of {len(found)} windows. Give "
        "it other regions, or take shorter windows."
      )
  return parts


def _meet(a: Region, b: Region) -> bool:
  ends = [r.end if r.end is not None else float("inf") for r in (a, b)]
  return a.start < ends[1] and b.start < ends[0]


def _holds(region: Region, x: intervals.Interval) -> bool:
  return (
    region.chrom == x.chrom
    and region.start <= x.start
    and (region.end is None or x.end <= region.end)
  )


def promoter_windows(
  genome: genome_lib.Genome,
  starts: Sequence[intervals.Interval],
  *,
  upstream: int,
  downstream: int,
) -> list[intervals.Interval]:
  """Windows around where transcription starts that lie inside the genome.

  Args:
    genome: by whose names the starts go.
    starts: intervals of one base, with strands.
    upstream: bases before the start: 249 of 300, 5,000 of 8,000.
    downstream: bases from it on.

  Returns:
    The windows, without repeats of the same place and strand.

  Source: Oubounyt et al., 2019 (DeePromoter),
  https://doi.org/10.3389/fgene.2019.00286; Zaheer et al., 2020,
  https://arxiv.org/abs/2007.14062, appendix F.2.
  """
  found = {}
  for x in starts:
    window = intervals.around(
      x.chrom,
      x.start,
      upstream=upstream,
      downstream=downstream,
      strand=x.strand,
      name=x.name,
    )
    if window.start >= 0 and window.end <= genome.lengths[x.chrom]:
      found.setdefault((x.chrom, x.start, x.strand), window)
  return list(found.values())


def _edges(length: int) -> np.ndarray:
  return np.linspace(0, length, PIECES + 1).round().astype(int)


def _changed(
  codes: np.ndarray,
  rng: np.random.Generator,
  change: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
  """Cuts into 20 pieces and changes 12 of them."""
  edges, out = _edges(len(codes)), codes.copy()
  for i in rng.permutation(PIECES)[:CHANGED]:
    low, high = edges[i], edges[i + 1]
    out[low:high] = change(codes[low:high])
  return out


def substitute_uniform(
  codes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """A negative: 12 of the 20 pieces become bases drawn with equal chances.

  Counts of short words give it away: the composition of real DNA is not
  uniform. See docs/genomics.md before any figure on it is believed.

  Args:
    codes: of the promoter.
    rng: to draw from.

  Returns:
    Codes of the negative.

  Source: Oubounyt et al., 2019, https://doi.org/10.3389/fgene.2019.00286.
  """
  return _changed(
    codes, rng, lambda x: rng.integers(0, 4, len(x)).astype(np.uint8)
  )


def shuffle_bases(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A negative: bases are shuffled inside each of 12 of the 20 pieces.

  Args:
    codes: of the promoter.
    rng: to draw from.

  Returns:
    Codes of the negative.

  Source: as of `substitute_uniform`, which keeps no composition.
  """
  return _changed(codes, rng, rng.permutation)


def permute_pieces(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A negative: 12 of the 20 pieces change places among themselves.

  Every base and nearly every short word stays; only the order is lost.

  Args:
    codes: of the promoter.
    rng: to draw from.

  Returns:
    Codes of the negative.

  Example:
    >>> codes = np.arange(40).astype(np.uint8) % 4
    >>> other = permute_pieces(codes, np.random.default_rng(0))
    >>> sorted(other.tolist()) == sorted(codes.tolist())
    True

  Source: Fishman et al., 2025 (GENA-LM), https://doi.org/10.1093/nar/gkae1310.
  """
  edges = _edges(len(codes))
  pieces = [codes[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
  moved = rng.permutation(PIECES)[:CHANGED]
  places = list(range(PIECES))
  for slot, piece in zip(sorted(moved), moved, strict=True):
    places[slot] = int(piece)
  return np.concatenate([pieces[i] for i in places])


def dinucleotide_shuffle(
  codes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """A negative with the same counts of pairs, by a random Eulerian path.

  Args:
    codes: of the promoter.
    rng: to draw from.

  Returns:
    Codes of the negative, with the same first and last base.

  Source: Altschul and Erickson, 1985,
  https://doi.org/10.1093/oxfordjournals.molbev.a040370.
  """
  after = [codes[1:][codes[:-1] == base] for base in range(5)]
  last = int(codes[-1])
  while True:  # A last edge a base, drawn until all lead to the end.
    final = {
      base: int(rng.integers(len(after[base])))
      for base in range(5)
      if len(after[base]) and base != last
    }
    if all(_arrives(base, last, final, after) for base in final):
      break
  order = []
  for base in range(5):
    rest = np.arange(len(after[base]))
    if base in final:
      rest = np.append(
        rng.permutation(np.delete(rest, final[base])), final[base]
      )
    else:
      rest = rng.permutation(rest)
    order.append(iter(after[base][rest.astype(int)]))
  out = [int(codes[0])]
  for _ in range(len(codes) - 1):
    out.append(int(next(order[out[-1]])))
  return np.array(out, np.uint8)


def _arrives(
  base: int, last: int, final: Mapping[int, int], after: list[np.ndarray]
) -> bool:
  for _ in range(6):
    if base == last:
      return True
    base = int(after[base][final[base]])
  return base == last


# From a promoter to a negative, piece by piece.
DERIVED: dict[str, Callable[..., np.ndarray]] = {
  "permute_pieces": permute_pieces,
  "substitute_uniform": substitute_uniform,
  "shuffle_bases": shuffle_bases,
  "dinucleotide_shuffle": dinucleotide_shuffle,
}
# Elsewhere on the genome.
SAMPLED = ("genomic", "gc_matched_genomic")
NEGATIVES = ("permute_pieces", "genomic", *tuple(DERIVED)[1:], SAMPLED[1])


def genomic_windows(
  genome: genome_lib.Genome,
  regions: Sequence[Region],
  starts: Sequence[intervals.Interval],
  count: int,
  rng: np.random.Generator,
  *,
  upstream: int,
  downstream: int,
  distance: int = 1000,
  shares: Sequence[float] = (),
) -> list[intervals.Interval]:
  """Negatives elsewhere on the genome, around places that start nothing.

  The place around which a window lies is further than `distance` from every
  known start; the rest of a long window may well hold one, as it does around a
  promoter. Windows that hold none lie where genes are rare, and that is easier
  to see.

  Args:
    genome: to read.
    regions: where to draw from, those of the positives' part.
    starts: everywhere that transcription is known to start.
    count: of windows.
    rng: to draw from.
    upstream: bases before the place.
    downstream: bases from it on.
    distance: in bases.
    shares: of G and C to match to within 0.02, one a window; none: any.

  Returns:
    The windows, on either strand; they may overlap each other.

  Raises:
    UserError: if there is no room for them.

  Source: the negatives of Umarov and Solovyev, 2017 (CNNProm),
  https://doi.org/10.1371/journal.pone.0171410, taken from the same sequences.
  """
  length, sizes = upstream + downstream, genome.lengths
  ends = [sizes[r.chrom] if r.end is None else r.end for r in regions]
  room = [
    max(end - r.start - length, 0) for end, r in zip(ends, regions, strict=True)
  ]
  if not sum(room):
    raise files.UserError(f"no window of {length} bases fits into the regions.")
  chance = np.array(room) / sum(room)
  known = {
    r.chrom: np.sort([x.start for x in starts if x.chrom == r.chrom])
    for r in regions
  }
  found: list[intervals.Interval] = []
  for _ in range(1000 * count):
    if len(found) == count:
      return found
    index = int(rng.choice(len(regions), p=chance))
    low = regions[index].start + int(rng.integers(room[index] + 1))
    chrom, strand = regions[index].chrom, intervals.STRANDS[rng.integers(2)]
    window = intervals.Interval(chrom, low, low + length, strand)
    place = low + (upstream if strand == "+" else downstream - 1)
    near = (place - distance, place + distance + 1)
    if np.diff(np.searchsorted(known[chrom], near))[0]:
      continue
    codes = genome_lib.read(genome, window).codes
    share = shares[len(found)] if len(shares) else gc_share(codes)
    clean = not np.any(codes == alphabet.UNKNOWN)
    if clean and abs(gc_share(codes) - share) <= 0.02:
      found.append(window)
  raise files.UserError(
    f"found only {len(found)} of {count} windows of {length} bases around "
    f"places further than {distance} from every start. Take a smaller distance "
    "or shorter windows."
  )


def gc_share(codes: np.ndarray) -> float:
  """The share of G and C among the known bases.

  Args:
    codes: `[n]` ints in [0, 4].

  Returns:
    A number in [0, 1].

  Example:
    >>> gc_share(np.array([0, 1, 2, 3, 4]))
    0.5

  Source: none.
  """
  strong = np.sum((codes == 1) | (codes == 2))
  return float(strong / max(np.sum(codes != alphabet.UNKNOWN), 1))


@dataclasses.dataclass(frozen=True)
class Examples:
  """Promoters and negatives of one part.

  Attributes:
    codes: `[n, length]` uint8.
    labels: `[n]` int32, 1 for promoters, which come first.
    groups: `[n]` int32, what belongs together: a promoter and its negative.
    windows: of the promoters, and of negatives that are windows.
  """

  codes: np.ndarray
  labels: np.ndarray
  groups: np.ndarray
  windows: list[intervals.Interval]


def examples(
  genome: genome_lib.Genome,
  starts: Sequence[intervals.Interval],
  split: Split,
  *,
  upstream: int,
  downstream: int,
  negatives: str = "permute_pieces",
  distance: int = 1000,
  seed: int = 0,
) -> dict[str, Examples]:
  """Promoters of each part, each with a negative made inside that part.

  The parts are cut first, with gaps between them; negatives come after, drawn
  once from the seed, so that they are the same in every run.

  Args:
    genome: to read.
    starts: where transcription starts, by the genome's names.
    split: part -> its regions.
    upstream: as of `promoter_windows`.
    downstream: the same.
    negatives: one of `NEGATIVES`.
    distance: as of `genomic_windows`.
    seed: of the negatives.

  Returns:
    Part -> promoters, then as many negatives.

  Raises:
    UserError: for an unknown kind of negatives, or a split that does not work.

  Source: none.
  """
  if negatives not in NEGATIVES:
    raise files.UserError(
      f"unknown negatives {negatives!r}; known: {', '.join(NEGATIVES)}."
    )
  found = promoter_windows(
    genome, starts, upstream=upstream, downstream=downstream
  )
  parts = {}
  for number, (part, kept) in enumerate(split_windows(found, split).items()):
    rng = np.random.default_rng([seed, number])
    positive = [genome_lib.read(genome, x).codes for x in kept]
    places = list(kept)
    if negatives in DERIVED:
      other = [DERIVED[negatives](x, rng) for x in positive]
    else:
      matched = negatives == "gc_matched_genomic"
      away = genomic_windows(
        genome,
        split[part],
        starts,
        len(kept),
        rng,
        upstream=upstream,
        downstream=downstream,
        distance=distance,
        shares=[gc_share(x) for x in positive] if matched else (),
      )
      places += away
      other = [genome_lib.read(genome, x).codes for x in away]
    half = np.arange(len(kept), dtype=np.int32)
    parts[part] = Examples(
      np.stack([*positive, *other]),
      np.repeat(np.array([1, 0], np.int32), len(kept)),
      np.concatenate([half, half]),
      places,
    )
  return parts
