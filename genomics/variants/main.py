r"""Scores the variants of a VCF file by a run that has been trained.

  python -m genomics.variants.main --workdir=runs/promoter \
    --vcf=variants.vcf.gz --fasta=genome.fa --output=effects.tsv

The genome is the assembly that the variants are of.
"""

import pathlib

from absl import app
from absl import flags

from experiments.common import files
from genomics import intervals
from genomics import places
from genomics import program
from genomics import trained
from genomics.variants import score

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.")
_VCF = flags.DEFINE_string("vcf", None, "VCF or BCF file.")
_FASTA = flags.DEFINE_string("fasta", None, "Genome; see genomics/places.py.")
_OUTPUT = flags.DEFINE_string("output", None, "Table to write, *.tsv.")
_ALIASES = flags.DEFINE_string("aliases", "", "Table of names of sequences.")
_BEFORE = flags.DEFINE_integer(
  "before", -1, "Bases of a window before the variant; -1: half of them."
)
_BOTH = flags.DEFINE_bool(
  "both_strands", None, "The mean over both; by default as the run has it."
)
_SKIP = flags.DEFINE_bool(
  "skip_mismatches", False, "Leave out what the genome has not."
)
_PAD = flags.DEFINE_bool("pad", False, "Fill up windows that stick out by N.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Windows at once.")


def job() -> None:
  """Scores, writes, and says what was left out."""
  aliases = (
    intervals.read_aliases(pathlib.Path(_ALIASES.value))
    if (_ALIASES.value)
    else None
  )
  options = score.Options(
    before=_BEFORE.value,
    both_strands=_BOTH.value,
    skip_mismatches=_SKIP.value,
    pad=_PAD.value,
    batch_size=_BATCH.value,
  )
  kept, skipped = score.write(
    trained.load(str(_WORKDIR.value)),
    places.genome(str(_FASTA.value)),
    str(_VCF.value),
    str(_OUTPUT.value),
    options,
    aliases=aliases,
  )
  left = f"; {skipped} left out that the genome has not" if skipped else ""
  files.say(f"{_OUTPUT.value}: effects of {kept:,} variants{left}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir", "vcf", "fasta", "output"])
  app.run(program.main_of(job))
