"""The genomes of packages, as this project uses them."""

import re
from collections.abc import Sequence

import numpy as np

from experiments.common import files
from experiments.common import packages
from genomics import annotation
from genomics import fetch
from genomics import genome as genome_lib
from genomics import intervals
from genomics import promoters

# Strains that are held out whole, one of each species.
HELD_OUT = ("DH1", "SJM180", "RF122", "O395")
_UPSTREAM = 2000


def parse_fasta(raw: bytes) -> dict[str, bytes]:
  """Sequences of a FASTA file that is in memory already.

  Args:
    raw: of the file.

  Returns:
    Name up to the first space -> letters.

  Example:
    >>> parse_fasta(b">a b" + bytes([10]) + b"AC" + bytes([10]) + b"GT")
    {'a': b'ACGT'}

  Source: none.
  """
  found = {}
  for record in raw.split(b">")[1:]:
    head, _, rest = record.partition(b"\n")
    found[head.split()[0].decode()] = rest.translate(None, b"\r\n \t")
  return found


def mapped(name: str) -> genome_lib.Genome:
  """A fetched genome as an array in the cache, built at the first use.

  Args:
    name: a key of `genomics.sources.GENOMES` that holds FASTA.

  Returns:
    The genome; files in folders give names such as `e_coli/DH1/NC_1`.

  Raises:
    UserError: if it was not fetched.
  """
  folder = packages.cache_folder() / "genomes" / name
  if not (folder / "index.json").exists():
    sequences = {}
    for path, raw in fetch.load(name):
      stem = path.rpartition(".")[0] + "/" if "/" in path else ""
      for chrom, letters in parse_fasta(raw).items():
        sequences[stem + chrom] = letters
    genome_lib.build(genome_lib.InMemory(sequences), folder)
  return genome_lib.Mapped(folder)


def fly_starts(
  genome: genome_lib.Genome, chrom: str = "chr2R"
) -> list[intervals.Interval]:
  """Where transcription starts on an arm of the fly, each place once.

  The place is the base after the 2,000 that `fly_upstream` holds, and these are
  compared with the genome.

  Args:
    genome: with the arm.
    chrom: the arm.

  Returns:
    Intervals of one base, by place.

  Raises:
    UserError: if it was not fetched, or does not fit the genome.
  """
  ((_, raw),) = fetch.load("fly_upstream")
  found = {}
  for record in raw.split(b">")[1:]:
    head, _, rest = record.partition(b"\n")
    name, region = head.decode().split()[:2]
    letters = rest.translate(None, b"\r\n")
    if not region.startswith(f"{chrom}:") or len(letters) != _UPSTREAM:
      continue
    before = intervals.parse_region(region)
    strand = "-" if re.search("_r$", name) else "+"
    place = before.end if strand == "+" else before.start - 1
    start = intervals.Interval(
      chrom, place, place + 1, strand, name.partition("_up_")[0]
    )
    if (place, strand) not in found:
      found[place, strand] = start
      window = intervals.Interval(chrom, before.start, before.end, strand)
      here = genome_lib.read(genome, window).codes
      if np.any(here != genome_lib.alphabet.encode(letters, name)):
        raise files.UserError(f"{name} of fly_upstream is not in the genome.")
  return [found[key] for key in sorted(found)]


def fly_split(test_from: int = 15_000_000) -> promoters.Split:
  """The arm 2R in three parts, apart by what crosses their borders.

  Args:
    test_from: the first base of the test part.

  Returns:
    `train`, `valid` (the two megabases before the test part) and `test`.

  Example:
    >>> sorted(fly_split())
    ['test', 'train', 'valid']

  Source: none.
  """
  border = test_from - 2_000_000
  return {
    "train": [promoters.Region("chr2R", 0, border)],
    "valid": [promoters.Region("chr2R", border, test_from)],
    "test": [promoters.Region("chr2R", test_from)],
  }


def leptospira() -> tuple[genome_lib.InMemory, list[annotation.Feature]]:
  """The contigs of Leptospira kirschneri and their coding stretches.

  Returns:
    The genome and its features.

  Raises:
    UserError: if it was not fetched.
  """
  folder = packages.cache_folder() / "genomes"
  path = folder / "leptospira.gbk"
  if not path.exists():
    ((_, raw),) = fetch.load("leptospira")
    with files.whole(path) as part:
      part.write_bytes(raw)
  return annotation.read_genbank(path)


def species(genome: genome_lib.Genome) -> tuple[str, ...]:
  """The species of the genome `bacteria`, in order.

  Args:
    genome: whose names are species/strain/sequence.

  Returns:
    Their names.

  Example:
    >>> species(genome_lib.InMemory({"b/x/1": "A", "a/y/1": "C"}))
    ('a', 'b')

  Source: none.
  """
  return tuple(sorted({name.split("/")[0] for name in genome.lengths}))


def strains(
  genome: genome_lib.Genome, held_out: Sequence[str] = HELD_OUT
) -> tuple[list[str], list[str]]:
  """Names of sequences to learn from, and those of strains held out whole.

  Args:
    genome: whose names are species/strain/sequence.
    held_out: strains.

  Returns:
    The two lists.

  Example:
    >>> strains(genome_lib.InMemory({"a/x/1": "A", "a/y/1": "C"}), ["y"])
    (['a/x/1'], ['a/y/1'])

  Source: none.
  """
  away = [name for name in genome.lengths if name.split("/")[1] in held_out]
  return [name for name in genome.lengths if name not in away], away
