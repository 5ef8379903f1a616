"""Genomes and regions as configurations name them."""

import pathlib

from experiments.common import files
from genomics import annotation
from genomics import data
from genomics import genome as genome_lib
from genomics import intervals
from genomics import lifting
from genomics import promoters
from genomics import synthetic
from genomics.sources import GENOMES


def genome(name: str) -> genome_lib.Genome:
  """A genome by name.

  Args:
    name: `synthetic`, a key of `genomics.sources.GENOMES`, or the path of a
      FASTA file, a 2bit file or a folder of `genomics.genome.build`.

  Returns:
    The genome.

  Raises:
    UserError: if it is not here.

  Example:
    >>> list(genome("synthetic").lengths)
    ['chr1']

  Source: none.
  """
  if name == "synthetic":
    return synthetic.genome()[0]
  return data.mapped(name) if name in GENOMES else genome_lib.load(name)


def starts(
  name: str, found: genome_lib.Genome, chain: str = ""
) -> list[intervals.Interval]:
  """Where transcription starts, by the genome's names.

  Args:
    name: `synthetic`, `fly` (of the fetched fly_upstream), or the path of
      EPDnew's BED file (`*epd*.bed`) or of a BED file of single bases.
    found: the genome.
    chain: path of a chain file, from the assembly of a BED file to the genome.

  Returns:
    Intervals of one base.

  Raises:
    UserError: if they are not here, or not of this genome.

  Example:
    >>> len(starts("synthetic", genome("synthetic")))
    150

  Source: none.
  """
  if name == "synthetic":
    return synthetic.genome()[1]
  if name == "fly":
    return data.fly_starts(found)
  if "epd" in pathlib.Path(name).name.lower():
    rows = annotation.read_epd(name)
  else:
    rows = annotation.read_bed(name)
    if any(x.length != 1 for x in rows):
      raise files.UserError(
        f"{name}: wanted intervals of one base. EPDnew's own files, which have "
        "60, must have 'epd' in their name."
      )
  if chain:
    rows, lost = lifting.lift(rows, chain)
    files.say(f"{lost} of {lost + len(rows)} starts have no place here")
  return intervals.Names(found.lengths).rename(rows, name)


def regions(text: str, found: genome_lib.Genome) -> list[promoters.Region]:
  """Regions from text such as `chr2L,chr2R:1-13000000`, counted from 1.

  Args:
    text: names of sequences, or regions as of `intervals.parse_region`.
    found: the genome.

  Returns:
    The regions.

  Raises:
    UserError: for a name that the genome does not have.

  Example:
    >>> regions("1:1-10", genome_lib.InMemory({"chr1": "A" * 20}))
    [Region(chrom='chr1', start=0, end=10)]

  Source: none.
  """
  names, done = intervals.Names(found.lengths), []
  for item in filter(None, (x.strip() for x in text.split(","))):
    if item in names:
      chrom = names(item)
      done.append(promoters.Region(chrom, 0, found.lengths[chrom]))
    elif ":" not in item:
      names(item)
    else:
      place = intervals.parse_region(item)
      chrom = names(place.chrom)
      end = min(place.end, found.lengths[chrom])
      if place.start >= end:
        raise files.UserError(
          f"{item} lies beyond the end of {chrom!r}, {found.lengths[chrom]}."
        )
      done.append(promoters.Region(chrom, place.start, end))
  if not done:
    raise files.UserError(f"no region is named in {text!r}.")
  return done
