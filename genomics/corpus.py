"""Corpora: documents of genomes, windows, and what masked models guess."""

import dataclasses
import math
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
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


def hidden_bases(key: jax.Array, length: int, masking: Masking) -> jax.Array:
  """Draws which bases are hidden.

  Args:
    key: to draw from.
    length: bases.
    masking: rate and span.

  Returns:
    `[length]` bool.

  Example:
    >>> found = hidden_bases(jax.random.key(0), 9999, Masking())
    >>> 0.13 < found.mean().item() < 0.17
    True

  Source: as of `Masking`.
  """
  first, second = jax.random.split(key)
  if masking.span == 1:
    return jax.random.bernoulli(first, masking.rate, (length,))
  # Runs overlap: this many starts leave a share 1 - rate of bases uncovered.
  chance = -math.log1p(-masking.rate) / masking.span
  starts = jax.random.bernoulli(first, min(chance, 1.0), (length,))
  sizes = jax.random.geometric(second, 1 / masking.span, (length,))
  at = jnp.arange(length)
  return covered(at, at + sizes, starts, length)


def covered(
  starts: jax.Array, ends: jax.Array, chosen: jax.Array, length: int
) -> jax.Array:
  """Which of `length` places lie in chosen runs; as `tokenizers.covered`."""
  count = chosen.astype(jnp.int32)
  steps = jnp.zeros(length + 1, jnp.int32).at[starts].add(count)
  steps = steps.at[jnp.minimum(ends, length)].add(-count)
  return jnp.cumsum(steps[:-1]) > 0


class Hidden(NamedTuple):
  """A row with hidden tokens.

  Attributes:
    shown: `[m]` ids to show.
    guess: `[m]` bool, tokens to guess.
    replaced: `[m]` bool, those of them that [MASK] stands for.
    bases: how many bases the tokens to guess spell, each counted once.
  """

  shown: jax.Array
  guess: jax.Array
  replaced: jax.Array
  bases: jax.Array


def mask_tokens(
  key: jax.Array,
  ids: jax.Array,
  starts: jax.Array,
  ends: jax.Array,
  known: jax.Array,
  *,
  vocab_size: int,
  length: int,
  masking: Masking,
) -> Hidden:
  """Hides tokens of a row; unknown ones are never to be guessed.

  Args:
    key: to draw from.
    ids: `[m]`, as of `tokenizers.Tokens`, special tokens being unknown ones
      that spell nothing.
    starts: `[m]`.
    ends: `[m]`.
    known: `[m]` bool.
    vocab_size: to draw tokens from that stand for others.
    length: bases, at least.
    masking: the law.

  Returns:
    The row with hidden tokens.

  Example:
    >>> at, ids = jnp.arange(99), jnp.full(99, 5)
    >>> found = mask_tokens(
    ...     jax.random.key(0), ids, at, at + 1, ids > 0, vocab_size=9,
    ...     length=99, masking=Masking(keep=0, swap=0))
    >>> set(found.shown[found.guess].tolist())
    {3}

  Source: as of `Masking`.
  """
  keys = jax.random.split(key, 3)
  bases = hidden_bases(keys[0], length, masking).astype(jnp.int32)
  before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(bases)])
  guess = (before[ends] > before[starts]) & known
  draw = jax.random.uniform(keys[1], guess.shape)
  swapped = guess & (draw < masking.swap)
  kept = guess & ~swapped & (draw < masking.swap + masking.keep)
  replaced = guess & ~swapped & ~kept
  other = jax.random.randint(
    keys[2], guess.shape, tokenizers.NUM_SPECIAL, vocab_size, ids.dtype
  )
  shown = jnp.where(replaced, tokenizers.MASK, jnp.where(swapped, other, ids))
  spelled = jnp.sum(covered(starts, ends, guess, length))
  return Hidden(shown.astype(ids.dtype), guess, replaced, spelled)


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
