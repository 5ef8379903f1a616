r"""Writes a vector for every window of a BED file, as Parquet.

  python -m genomics.embed.main --workdir=runs/pretrain --fasta=genome.fa \
    --windows=windows.bed --output=embeddings

The same command again goes on where it was stopped.
"""

import pathlib

from absl import app
from absl import flags

from experiments.common import files
from genomics import intervals
from genomics import places
from genomics import program
from genomics import trained
from genomics.embed import windows

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.")
_FASTA = flags.DEFINE_string("fasta", None, "Genome; see genomics/places.py.")
_WINDOWS = flags.DEFINE_string("windows", None, "BED file.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_KIND = flags.DEFINE_enum("kind", "mean", windows.KINDS, "Mean, or [CLS].")
_ROWS = flags.DEFINE_integer("rows", 256, "Windows in a file.", lower_bound=1)
_ALIASES = flags.DEFINE_string("aliases", "", "Table of names of sequences.")
_PAD = flags.DEFINE_bool("pad", False, "Fill up windows that stick out by N.")


def job() -> None:
  """Writes, and says how much of it was new."""
  count, written = windows.write(
    trained.load(str(_WORKDIR.value)),
    places.genome(str(_FASTA.value)),
    str(_WINDOWS.value),
    str(_OUTPUT.value),
    kind=_KIND.value,
    rows=_ROWS.value,
    pad=_PAD.value,
    aliases=intervals.read_aliases(pathlib.Path(_ALIASES.value))
    if _ALIASES.value
    else None,
  )
  files.say(f"{_OUTPUT.value}: {count:,} windows, {written} files written now")


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir", "fasta", "windows", "output"])
  app.run(program.main_of(job))
