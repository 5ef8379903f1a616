"""Corpora: documents of genomes, windows, and what masked models guess."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals
from genomics import tokenizers


def bigbird_documents(
  genome: genome_lib.Genome,
  chroms: Sequence[str],
  *,
  passes: int = 10,
  seed: int = 0,
) -> Iterator[list[intervals.Interval]]:
  """BigBird's documents: 50 to 100 sentences of 500 to 1,000 bases each.

  Each pass over a sequence begins at a place drawn in [0, 5000], and cuts
  documents end to end. Passes overlap: what is held out must be held out as
  whole sequences, never as documents. Unknown bases stay in; the paper does not
  say otherwise.

  Args:
    genome: whose lengths count.
    chroms: names of sequences.
    passes: over each of them.
    seed: of all draws.

  Yields:
    The sentences of a document, end to end; the last one of a sequence may be
    shorter.

  Raises:
    UserError: if a sequence is not there.

  Example:
    >>> genome = genome_lib.InMemory({"c": "A" * 200_000})
    >>> first = next(bigbird_documents(genome, ["c"]))
    >>> 50 <= len(first) <= 100, first[0].end == first[1].start
    (True, True)

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062, appendix F.1.
  """
  rng, names = np.random.default_rng(seed), intervals.Names(genome.lengths)
  for chrom in map(names, chroms):
    size = genome.lengths[chrom]
    for _ in range(passes):
      at = int(rng.integers(0, 5001))
      while at < size:
        document = []
        for _ in range(int(rng.integers(50, 101))):
          end = min(at + int(rng.integers(500, 1001)), size)
          document.append(intervals.Interval(chrom, at, end))
          at = end
          if at >= size:
            break
        yield document


def windows(
  genome: genome_lib.Genome,
  regions: Sequence[intervals.Interval],
  length: int,
  *,
  stride: int = 0,
  max_unknown: float = 0.5,
) -> list[intervals.Interval]:
  """Whole windows inside regions.

  Args:
    genome: to look for unknown bases in.
    regions: by the genome's names.
    length: bases in a window.
    stride: from window to window; 0: `length`.
    max_unknown: share of unknown bases above which a window is dropped.

  Returns:
    The windows, in order.

  Raises:
    UserError: if none is left.

  Example:
    >>> genome = genome_lib.InMemory({"c": "ACGTNNNNACGT"})
    >>> found = windows(genome, [intervals.Interval("c", 0, 12)], 4)
    >>> [x.start for x in found]
    [0, 8]

  Source: the share is that of Schiff et al., 2024 (Caduceus),
  https://arxiv.org/abs/2403.03234.
  """
  found = []
  for region in regions:
    for low in range(region.start, region.end - length + 1, stride or length):
      codes = genome_lib.codes(genome, region.chrom, low, low + length)
      if np.mean(codes == alphabet.UNKNOWN) <= max_unknown:
        found.append(intervals.Interval(region.chrom, low, low + length))
  if not found:
    raise files.UserError(
      f"no window of {length} bases fits into the {len(regions)} regions. Take "
      "a smaller window, or longer sequences."
    )
  return found


@dataclasses.dataclass(frozen=True)
class Masking:
  """How bases are hidden from a masked model.

  Bases are drawn first, and every token that touches one is hidden, so that
  tokenizers can be compared at the same rate and span.

  Attributes:
    rate: share of bases, about.
    span: mean bases of a hidden run, drawn from a geometric law; 1 hides each
      base by itself.
    keep: share of hidden tokens that are shown as they are.
    swap: share that another token stands for.

  Raises:
    ValueError: if shares do not lie in [0, 1].

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, for 80, 10 and
  10 percent; Joshi et al., 2020 (SpanBERT), https://arxiv.org/abs/1907.10529.
  """

  rate: float = 0.15
  span: float = 1.0
  keep: float = 0.1
  swap: float = 0.1

  def __post_init__(self) -> None:
    if not 0 < self.rate < 1 or self.span < 1:
      raise ValueError(
        f"rate must lie in (0, 1) and span be 1 or more, got {self.rate} and "
        f"{self.span}."
      )
    if self.keep < 0 or self.swap < 0 or self.keep + self.swap > 1:
      raise ValueError(
        f"keep and swap are shares, got {self.keep} and {self.swap}."
      )


def hidden_bases(
  rng: np.random.Generator, length: int, masking: Masking
) -> np.ndarray:
  """Draws which bases are hidden.

  Args:
    rng: to draw from.
    length: bases.
    masking: rate and span.

  Returns:
    `[length]` bool.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> round(hidden_bases(rng, 99999, Masking()).mean(), 2).item()
    0.15

  Source: as of `Masking`.
  """
  if masking.span == 1:
    return rng.random(length) < masking.rate
  # Runs overlap: this many starts leave a share 1 - rate of bases uncovered.
  starts = rng.random(length) < -np.log1p(-masking.rate) / masking.span
  steps = np.zeros(length + 1, np.int64)
  for at in np.flatnonzero(starts):
    steps[at] += 1
    steps[min(at + rng.geometric(1 / masking.span), length)] -= 1
  return np.cumsum(steps[:-1]) > 0


def mask_tokens(
  rng: np.random.Generator,
  tokens: tokenizers.Tokens,
  vocab_size: int,
  masking: Masking,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Hides tokens; unknown ones are never scored.

  Args:
    rng: to draw from.
    tokens: of a sequence.
    vocab_size: to draw tokens from that stand for others.
    masking: the law.

  Returns:
    `[m]` ids to show; `[m]` bool, tokens to guess; `[m]` bool, those of them
    that [MASK] stands for.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> tokens = tokenizers.NucleotideTokenizer().encode(np.zeros(99, np.uint8))
    >>> shown, guess, _ = mask_tokens(rng, tokens, 9, Masking(keep=0, swap=0))
    >>> set(shown[guess].tolist()), set(shown[~guess].tolist())
    ({3}, {5})

  Source: as of `Masking`.
  """
  length = int(tokens.ends.max(initial=0))
  bases = hidden_bases(rng, length, masking)
  before = np.append(0, np.cumsum(bases))
  touched = before[tokens.ends] > before[tokens.starts]
  guess = touched & tokens.known
  draw = rng.random(len(guess))
  swapped = guess & (draw < masking.swap)
  kept = guess & ~swapped & (draw < masking.swap + masking.keep)
  replaced = guess & ~swapped & ~kept
  other = rng.integers(tokenizers.NUM_SPECIAL, vocab_size, len(guess))
  shown = np.where(replaced, tokenizers.MASK, tokens.ids)
  shown = np.where(swapped, other, shown)
  return shown.astype(np.int32), guess, replaced


def bits_per_base(
  bits: np.ndarray, tokens: tokenizers.Tokens, scored: np.ndarray
) -> float:
  """Bits of the scored tokens over the known bases that they spell.

  Over tokens that a causal model predicts this is the length of a code, which
  compares between tokenizers. Over the hidden tokens of a masked model it is
  not: compare at the same rate and span of hidden bases.

  Args:
    bits: `[m]`, -log2 of each token's probability.
    tokens: that were predicted.
    scored: `[m]` bool; unknown tokens are left out of it.

  Returns:
    Bits a base.

  Raises:
    ValueError: if no known base was scored.

  Example:
    >>> tokens = tokenizers.KmerTokenizer(2).encode(np.array([0, 1, 2, 3, 0]))
    >>> bits_per_base(np.array([4.0, 4.0, 2.0]), tokens, np.ones(3, bool))
    2.0

  Source: the sums over the same bases are what tokenizers share.
  """
  scored = scored & tokens.known
  bases = int(np.sum(tokenizers.covered(tokens, scored)))
  if not bases:
    raise ValueError("no known base was scored.")
  return float(np.sum(bits[scored])) / bases
