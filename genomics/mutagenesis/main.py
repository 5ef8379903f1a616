r"""Replaces every base of a region, and draws what each base adds.

python -m genomics.mutagenesis.main --workdir=runs/promoter \
    --fasta=genome.fa --region=chr2R:15000001-15000300 --strand=- \
    --output=region.npz --figure=region.svg
"""

import dataclasses

from absl import app
from absl import flags

from experiments.common import files
from genomics import intervals
from genomics import places
from genomics import program
from genomics import trained
from genomics.mutagenesis import region

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.")
_FASTA = flags.DEFINE_string("fasta", None, "Genome; see genomics/places.py.")
_REGION = flags.DEFINE_string("region", None, "Such as chr1:1001-1300, from 1.")
_STRAND = flags.DEFINE_enum("strand", "+", ["+", "-"], "To read along.")
_OUTPUT = flags.DEFINE_string("output", None, "Scores to write, *.npz.")
_FIGURE = flags.DEFINE_string("figure", "", "Logo to write: .svg, .png, .pdf.")
_METHOD = flags.DEFINE_enum("method", "exact", region.METHODS, "How to score.")
_SCORE = flags.DEFINE_integer("score", 0, "Number of the run's output.")
_BEFORE = flags.DEFINE_integer(
  "before", -1, "Bases of the window before the region; -1: in the middle."
)
_BOTH = flags.DEFINE_bool(
  "both_strands", None, "The mean over both; by default as the run has it."
)
_PAD = flags.DEFINE_bool("pad", False, "Fill up windows that stick out by N.")
_BATCH = flags.DEFINE_integer(
  "batch_size", 16, "Windows at once.", lower_bound=1
)
_STEPS = flags.DEFINE_integer("steps", 64, "Of integrated.", lower_bound=1)


def job() -> None:
  """Scores, writes, and says which places matter most."""
  region.check_paths(str(_OUTPUT.value), _FIGURE.value)
  genome = places.genome(str(_FASTA.value))
  place = intervals.parse_region(str(_REGION.value))
  name = intervals.Names(genome.lengths)(place.chrom)
  place = dataclasses.replace(place, chrom=name, strand=_STRAND.value)
  options = region.Options(
    method=_METHOD.value,
    output=_SCORE.value,
    before=_BEFORE.value,
    both_strands=_BOTH.value,
    pad=_PAD.value,
    batch_size=_BATCH.value,
    steps=_STEPS.value,
  )
  found = region.score(
    trained.load(str(_WORKDIR.value)), genome, place, options
  )
  region.write(found, str(_OUTPUT.value), _FIGURE.value)
  files.say(
    f"{_OUTPUT.value}: {found.name} of {place.length} bases of {place.chrom}"
    + (f", drawn as {_FIGURE.value}" if _FIGURE.value else "")
  )


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir", "fasta", "region", "output"])
  app.run(program.main_of(job))
