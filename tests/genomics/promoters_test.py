"""Promoters: negatives, splits and leaks."""

import numpy as np
import pytest

from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals
from genomics import leakage
from genomics import promoters

_SIZE = 60_000


@pytest.fixture(scope="module")
def genome():
  rng = np.random.default_rng(0)
  text = {c: alphabet.decode(rng.integers(0, 4, _SIZE)) for c in "ab"}
  return genome_lib.InMemory(text)


def _starts():
  rng = np.random.default_rng(1)
  found = []
  for chrom in "ab":
    for i, place in enumerate(np.sort(rng.integers(0, _SIZE, 25))):
      strand = "+-"[i % 2]
      start = int(place)
      found.append(intervals.Interval(chrom, start, start + 1, strand))
  return found


_SPLIT = {
  "train": [promoters.Region("a", 0, 40_000), promoters.Region("b")],
  "test": [promoters.Region("a", 40_000)],
}


@pytest.mark.parametrize("length", [300, 8000, 251])
def test_kinds_of_negatives(length):
  rng = np.random.default_rng(0)
  codes = rng.integers(0, 4, length).astype(np.uint8)
  edges = np.linspace(0, length, 21).round().astype(int)

  def same(other):
    pairs = zip(edges[:-1], edges[1:], strict=True)
    return sum(np.array_equal(other[a:b], codes[a:b]) for a, b in pairs)

  # A piece of 12 random bases is the one before once in 16 million times.
  uniform = promoters.substitute_uniform(codes, rng)
  assert same(uniform) == 8
  shuffled = promoters.shuffle_bases(codes, rng)
  assert same(shuffled) == 8
  for a, b in zip(edges[:-1], edges[1:], strict=True):
    assert sorted(shuffled[a:b]) == sorted(codes[a:b])
  permuted = promoters.permute_pieces(codes, rng)
  assert sorted(permuted) == sorted(codes)
  if length % 20 == 0:  # Otherwise what follows a longer piece moves.
    assert same(permuted) >= 8
    pieces = [x.tobytes() for x in np.split(codes, 20)]
    assert sorted(x.tobytes() for x in np.split(permuted, 20)) == sorted(pieces)
  pairs = promoters.dinucleotide_shuffle(codes, rng)
  assert not np.array_equal(pairs, codes)
  count = [
    np.bincount(x[:-1].astype(int) * 5 + x[1:], minlength=25)
    for x in (codes, pairs)
  ]
  assert np.array_equal(*count)


@pytest.mark.parametrize("negatives", promoters.NEGATIVES)
def test_pairs_stay_in_their_part(genome, negatives):
  form = {"upstream": 200, "downstream": 100, "negatives": negatives}
  starts = _starts()
  parts = promoters.examples(genome, starts, _SPLIT, **form)
  for part, found in parts.items():
    half = len(found.labels) // 2
    assert found.labels.tolist() == [1] * half + [0] * half
    assert np.array_equal(found.groups[:half], found.groups[half:])
    assert found.codes.shape == (2 * half, 300)
    for window in found.windows:
      assert any(
        r.chrom == window.chrom
        and r.start <= window.start
        and window.end <= (r.end or _SIZE)
        for r in _SPLIT[part]
      )
    if negatives in promoters.SAMPLED:
      for x in found.windows[half:]:
        places = [s.start for s in starts if s.chrom == x.chrom]
        here = x.start + 200 if x.strand == "+" else x.end - 201
        assert min(abs(here - p) for p in places) > 1000
  again = promoters.examples(genome, starts, _SPLIT, **form)
  other = promoters.examples(genome, starts, _SPLIT, seed=1, **form)
  assert np.array_equal(again["test"].codes, parts["test"].codes)
  assert not np.array_equal(other["test"].codes, parts["test"].codes)
  if negatives == "gc_matched_genomic":
    found = parts["train"].codes
    shares = np.array([promoters.gc_share(x) for x in found])
    half = len(found) // 2
    assert np.abs(shares[:half] - shares[half:]).max() <= 0.02


def test_promoters_are_read_along_their_strand(genome):
  starts = _starts()
  parts = promoters.examples(
    genome, starts, _SPLIT, upstream=249, downstream=51
  )
  found = parts["test"]
  for codes, window in zip(found.codes, found.windows, strict=False):
    (start,) = [
      x
      for x in starts
      if x.chrom == window.chrom
      and window.start <= x.start < window.end
      and x.strand == window.strand
      and window.length == 300
      and (
        x.start - window.start if x.strand == "+" else window.end - 1 - x.start
      )
      == 249
    ]
    letter = genome.letters(start.chrom, start.start, start.start + 1)
    base = alphabet.encode(letter)[0]
    assert codes[249] == (base if start.strand == "+" else 3 - base)


def test_splits_that_do_not_work(genome):
  windows = [intervals.Interval("a", 0, 10)]
  shared = {
    "train": [promoters.Region("a")],
    "test": [promoters.Region("a", 100)],
  }
  with pytest.raises(files.UserError, match="share bases of 'a'"):
    promoters.split_windows(windows, shared)
  with pytest.raises(files.UserError, match="'test'.*holds none"):
    promoters.split_windows(windows, _SPLIT | {"train": _SPLIT["train"][:1]})
  with pytest.raises(files.UserError, match="unknown negatives 'none'"):
    promoters.examples(
      genome, _starts(), _SPLIT, upstream=9, downstream=9, negatives="none"
    )
  with pytest.raises(files.UserError, match="found only 0 of 1"):
    promoters.genomic_windows(
      genome,
      [promoters.Region("a")],
      _starts(),
      1,
      np.random.default_rng(0),
      upstream=200,
      downstream=100,
      distance=_SIZE,
    )


def test_leaks_are_found(genome):
  parts = promoters.examples(
    genome, _starts(), _SPLIT, upstream=200, downstream=100
  )
  codes = {k: list(v.codes) for k, v in parts.items()}
  windows = {k: v.windows for k, v in parts.items()}
  (clean,) = leakage.report(codes, windows)
  assert clean.overlapping == clean.repeats == 0
  assert clean.shared == 0 and clean.same_chroms == ("a",)
  codes["test"][0] = alphabet.reverse_complement(codes["train"][3])
  one = parts["train"].windows[3]
  windows["test"] = [intervals.Interval(one.chrom, one.end - 1, one.end + 1)]
  (leak,) = leakage.report(codes, windows)
  assert leak.repeats == 1 and leak.overlapping == 1
  assert leak.shared == pytest.approx(1 / len(codes["test"]), rel=0.3)
  assert "1 repeated" in str(leak)
