"""Embeddings of the windows of a BED file, by a run that has been trained."""

import json
import pathlib
from collections.abc import Mapping

from experiments.common import files
from genomics import annotation
from genomics import classify
from genomics import embed
from genomics import genome as genome_lib
from genomics import intervals
from genomics import trained

KINDS = ("mean", "first")
_WHOSE = "run.json"


def write(
  run: trained.Trained,
  genome: genome_lib.Genome,
  bed: str | pathlib.Path,
  folder: str | pathlib.Path,
  *,
  kind: str = "mean",
  rows: int = 256,
  pad: bool = False,
  aliases: Mapping[str, str] | None = None,
) -> tuple[int, int]:
  """Writes a vector for every window; the same call goes on where it stopped.

  Args:
    run: any of this package.
    genome: of the windows.
    bed: of the windows, with their strands.
    folder: as of `embed.export`; `run.json` in it says whose the vectors are.
    kind: `mean` over the bases, or `first`, the vector of [CLS].
    rows: windows in a file.
    pad: whether windows may stick out, with N there.
    aliases: as of `intervals.Names`.

  Returns:
    The number of windows, and of files that were written now.

  Raises:
    UserError: naming the first window that does not fit, or if the folder holds
      what another run made.

  Source: as of `embed.export`.
  """
  if kind not in KINDS:
    raise files.UserError(f"--kind must be mean or first, got {kind!r}.")
  if rows < 1:
    raise files.UserError(f"--rows must be positive, got {rows}.")
  names = intervals.Names(genome.lengths, aliases)
  windows = annotation.read_bed(bed)
  if not windows:
    raise files.UserError(f"{bed} holds no window.")
  for x in windows:
    if x.chrom not in names:
      names(x.chrom)
  windows = names.rename(windows, str(bed))
  for x in windows:
    _check(run, genome, x, pad)
  whose = {
    "program": run.program,
    "step": run.step,
    "parameters": trained.digest(run),
    "kind": kind,
    "rows": rows,
  }
  path = pathlib.Path(folder) / _WHOSE
  if path.exists() and json.loads(files.read_bytes(path)) != whose:
    raise files.UserError(
      f"{folder} holds vectors of another run, or of other options. Take "
      "another --output, or remove it."
    )
  files.write_json(path, whose)
  f = classify.encoder_features(
    run.model, run.variables, run.tokenizer, run.config.length, kind=kind
  )
  return len(windows), embed.export(folder, genome, windows, f, rows=rows)


def _check(
  run: trained.Trained,
  genome: genome_lib.Genome,
  x: intervals.Interval,
  pad: bool,
) -> None:
  shown = f"window {x.chrom}:{x.start + 1}-{x.end}"
  found = genome_lib.read(genome, x)
  if not pad and not found.inside.all():
    raise files.UserError(
      f"{shown} sticks out of {x.chrom!r}, which has "
      f"{genome.lengths[x.chrom]} bases. Cut it, or fill up with N (--pad)."
    )
  trained.check_fits(run, found.codes, shown)
