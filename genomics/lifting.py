"""Places of one assembly on another, by a chain file."""

import dataclasses
import pathlib
from collections.abc import Sequence

from experiments.common import files
from genomics import genome as genome_lib
from genomics import intervals


def lift(
  found: Sequence[intervals.Interval], chain: str | pathlib.Path
) -> tuple[list[intervals.Interval], int]:
  """Single bases on the other assembly, such as starts of hg38 on hg19.

  Args:
    found: intervals of one base.
    chain: path of a chain file, such as UCSC's `hg38ToHg19.over.chain.gz`.

  Returns:
    Those that have exactly one place there, and how many had not.

  Raises:
    UserError: if an interval is longer, the chain cannot be read, or no base
      has a place, which means another assembly.

  Source: liftover, https://github.com/jeremymcrae/liftover.
  """
  library, kept = genome_lib.need("liftover"), []
  files.read_bytes(chain)
  try:
    table = library.ChainFile(str(chain), one_based=False)
  except (ValueError, RuntimeError, OSError) as error:
    raise files.UserError(f"{chain} is no chain file: {error}") from error
  for x in found:
    if x.length != 1:
      raise files.UserError(f"{x} has more than one base.")
    there = table.convert_coordinate(x.chrom, x.start)
    if len(there) != 1:
      continue
    chrom, place, strand = there[0][:3]
    turned = {"+": "-", "-": "+"}[x.strand] if strand == "-" else x.strand
    kept.append(
      dataclasses.replace(
        x, chrom=chrom, start=place, end=place + 1, strand=turned
      )
    )
  if found and not kept:
    raise files.UserError(
      f"{chain} has no place for any of {len(found)} bases. Is it from the "
      "assembly that they are on?"
    )
  return kept, len(found) - len(kept)
