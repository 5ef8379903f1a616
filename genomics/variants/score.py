"""From a VCF file to a table of effects, a batch at a time."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping

import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import annotation
from genomics import genome as genome_lib
from genomics import intervals
from genomics import trained

_FIRST = ("chrom", "position", "name", "ref", "alt")


@dataclasses.dataclass(frozen=True)
class Options:
  """How variants are scored.

  Attributes:
    before: bases of a window before the variant; -1: half of the run's bases.
    both_strands: whether to take the mean over both; None: masked models do,
      classifiers if their run did.
    skip_mismatches: whether variants whose reference bases are not the genome's
      are left out, and counted; otherwise they are refused.
    pad: whether windows that stick out of their sequence are filled up with N;
      otherwise they are refused.
    batch_size: windows at once.
  """

  before: int = -1
  both_strands: bool | None = None
  skip_mismatches: bool = False
  pad: bool = False
  batch_size: int = 16


def window(
  genome: genome_lib.Genome,
  variant: annotation.Variant,
  bases: int,
  before: int,
  *,
  pad: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Codes around a variant with either allele, between the same neighbours.

  The longer one has `bases`. Unlike those of `mutagenesis.variant_windows`,
  alleles of two lengths give windows of two lengths.

  Args:
    genome: by whose names the variant goes.
    variant: whose `ref` the genome has.
    bases: in the longer window.
    before: the variant.
    pad: whether the window may stick out.

  Returns:
    Codes with the genome's allele, and with the other.

  Raises:
    UserError: if the alleles do not fit, or the window sticks out.

  Example:
    >>> genome = genome_lib.InMemory({"c": "AACGTT"})
    >>> change = annotation.Variant("c", 2, "CG", "C")
    >>> [alphabet.decode(x) for x in window(genome, change, 4, 1)]
    ['ACGT', 'ACT']

  Source: none.
  """
  longest = max(len(variant.ref), len(variant.alt))
  if before + longest > bases:
    raise files.UserError(
      f"{_shown(variant)}: alleles of up to {longest} bases do not fit into "
      f"windows of {bases} with {before} before them. Leave it out of the "
      "file, or score it by a run that learned from longer windows."
    )
  start = variant.start - before
  end = start + bases - longest + len(variant.ref)
  found = genome_lib.read(genome, intervals.Interval(variant.chrom, start, end))
  if not pad and not found.inside.all():
    size = genome.lengths[variant.chrom]
    raise files.UserError(
      f"{_shown(variant)}: its window, {start + 1} to {end}, sticks out of "
      f"{variant.chrom!r}, which has {size} bases. Leave it out of the file, "
      "or fill up with N (--pad)."
    )
  parts = (
    found.codes[:before],
    alphabet.encode(variant.alt, _shown(variant)),
    found.codes[before + len(variant.ref) :],
  )
  return found.codes, np.concatenate(parts)


def write(
  run: trained.Trained,
  genome: genome_lib.Genome,
  vcf: str | pathlib.Path,
  output: str | pathlib.Path,
  options: Options,
  *,
  aliases: Mapping[str, str] | None = None,
) -> tuple[int, int]:
  """Writes a table of effects, whole or not at all.

  The file is read twice: everything is checked before anything is scored.

  Args:
    run: as of `trained.names`.
    genome: of the variants.
    vcf: VCF or BCF, of any size.
    output: columns between tabs: chrom, position (from 1), name, ref, alt, and
      one for each score.
    options: how to score.
    aliases: as of `intervals.Names`.

  Returns:
    How many variants were scored, and how many left out because the genome has
    other bases.

  Raises:
    UserError: naming the first variant that cannot be scored, and the cure.

  Source: as of `trained.effects`.
  """
  columns = (*_FIRST, *trained.names(run))
  before = run.bases // 2 if options.before < 0 else options.before
  if options.batch_size < 1:
    raise files.UserError(
      f"--batch_size must be positive, got {options.batch_size}."
    )
  names = intervals.Names(genome.lengths, aliases)

  def pairs(x: annotation.Variant) -> tuple[np.ndarray, np.ndarray]:
    return window(genome, x, run.bases, before, pad=options.pad)

  skipped, kept = 0, 0
  for x in annotation.stream_vcf(vcf):
    x = dataclasses.replace(x, chrom=_named(names, x))
    if not _fits(genome, x, options.skip_mismatches):
      skipped += 1
      continue
    for codes in pairs(x):
      trained.check_fits(run, codes, _shown(x))
    kept += 1
  if not kept:
    raise files.UserError(
      f"{vcf} holds no variant to score ({skipped} do not fit the genome). Is "
      "it the right assembly?"
    )
  both = options.both_strands
  effects = trained.effects(
    run,
    both_strands=trained.reads_both(run) if both is None else both,
    batch_size=options.batch_size,
  )

  def good() -> Iterator[annotation.Variant]:
    for x in annotation.stream_vcf(vcf):
      x = dataclasses.replace(x, chrom=names(x.chrom))
      if _fits(genome, x, True):
        yield x

  with files.whole(pathlib.Path(output)) as part, part.open("w") as file:
    file.write("\t".join(columns) + "\n")
    for some in _batched(good(), options.batch_size):
      for x, row in zip(some, effects([*map(pairs, some)]), strict=True):
        first = (x.chrom, str(x.start + 1), x.name or ".", x.ref, x.alt)
        file.write("\t".join((*first, *(f"{v:.6g}" for v in row))) + "\n")
  return kept, skipped


def _named(names: intervals.Names, x: annotation.Variant) -> str:
  try:
    return names(x.chrom)
  except files.UserError as error:
    raise files.UserError(f"{_shown(x)}: {error} (--aliases)") from error


def _fits(
  genome: genome_lib.Genome, x: annotation.Variant, allowed: bool
) -> bool:
  """Whether the genome has the reference bases; if not, it may be an error."""
  place = intervals.Interval(x.chrom, x.start, x.start + len(x.ref))
  here = alphabet.decode(genome_lib.read(genome, place).codes)
  if here != x.ref and not allowed:
    raise files.UserError(
      f"{_shown(x)}: the genome has {here} there and not {x.ref}. Is it the "
      "right assembly? --skip_mismatches leaves such variants out."
    )
  return here == x.ref


def _shown(x: annotation.Variant) -> str:
  name = f" ({x.name})" if x.name else ""
  return f"{x.chrom}:{x.start + 1} {x.ref}>{x.alt}{name}"


def _batched(
  found: Iterable[annotation.Variant], size: int
) -> Iterator[list[annotation.Variant]]:
  rows = iter(found)
  while some := list(itertools.islice(rows, size)):
    yield some
