"""Public benchmarks, from folders that the user has; nothing is fetched."""

import csv
import dataclasses
import gzip
import io
import pathlib
from collections.abc import Mapping

import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Sequences with a class each.

  Attributes:
    codes: sequences, of any lengths.
    labels: `[n]` int32.
    classes: their names.
    windows: where each is from, if that is known.
  """

  codes: list[np.ndarray]
  labels: np.ndarray
  classes: tuple[str, ...]
  windows: tuple[intervals.Interval, ...] = ()

  def __len__(self) -> int:
    return len(self.codes)


def _rows(
  path: pathlib.Path, columns: tuple[str, ...]
) -> list[tuple[int, dict[str, str]]]:
  """Rows of a CSV file, with the number of their line."""
  raw = files.read_bytes(path)
  try:
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    table = csv.DictReader(io.StringIO(raw.decode()))
    lacking = [c for c in columns if c not in (table.fieldnames or ())]
    if lacking:
      raise files.UserError(
        f"{path}, line 1: lacks the columns {', '.join(lacking)}."
      )
    return [(table.line_num, row) for row in table]
  except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
    raise files.UserError(f"{path} is no CSV file: {error}") from error


def genomic_benchmarks(
  folder: str | pathlib.Path,
  genome: genome_lib.Genome,
  *,
  aliases: Mapping[str, str] | None = None,
) -> dict[str, Labelled]:
  """A data set of GenomicBenchmarks.

  Its files hold coordinates, from 0 and half-open. Train and test of all its
  data sets share chromosomes: see `genomics.leakage`.

  Args:
    folder: of one data set, with `train` and `test`, and in them a CSV file a
      class.
    genome: the assembly that its `metadata.yaml` names.
    aliases: as of `genomics.intervals.Names`.

  Returns:
    `train` and `test`.

  Raises:
    UserError: naming the file and line that does not fit.

  Source: Grešová et al., 2023, https://doi.org/10.1186/s12863-023-01123-8.
  """
  folder = pathlib.Path(folder)
  names, found = intervals.Names(genome.lengths, aliases), {}
  for part in ("train", "test"):
    paths = sorted((folder / part).glob("*.csv*"))
    if not paths:
      raise files.UserError(f"{folder / part} holds no CSV file of a class.")
    codes, labels, places = [], [], []
    for label, path in enumerate(paths):
      for number, row in _rows(path, ("region", "start", "end", "strand")):
        try:
          place = intervals.Interval(
            names(row["region"]),
            int(row["start"]),
            int(row["end"]),
            row["strand"],
          )
        except (ValueError, TypeError, files.UserError) as error:
          raise files.UserError(f"{path}, line {number}: {error}") from error
        window = genome_lib.read(genome, place)
        if not window.inside.all():
          raise files.UserError(
            f"{path}, line {number}: {place.chrom}:{place.start}-{place.end} "
            "sticks out of the genome. Is it the right assembly?"
          )
        codes.append(window.codes)
        labels.append(label)
        places.append(place)
    classes = tuple(p.name.partition(".")[0] for p in paths)
    found[part] = Labelled(
      codes, np.array(labels, np.int32), classes, tuple(places)
    )
  if found["train"].classes != found["test"].classes:
    raise files.UserError(f"{folder}: train and test have other classes.")
  return found


def gue(folder: str | pathlib.Path) -> dict[str, Labelled]:
  """A data set of GUE: `train.csv`, `dev.csv` and `test.csv`.

  Args:
    folder: of one data set; files of the columns `sequence` and `label`.

  Returns:
    `train`, `valid` (its dev) and `test`.

  Raises:
    UserError: naming the file and line that does not fit.

  Source: Zhou et al., 2024 (DNABERT-2), https://arxiv.org/abs/2306.15006.
  """
  folder, found = pathlib.Path(folder), {}
  for part, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
    path, codes, labels = folder / f"{name}.csv", [], []
    for number, row in _rows(path, ("sequence", "label")):
      where = f"{path}, line {number}"
      codes.append(alphabet.encode(row["sequence"], where))
      labels.append(_label(row["label"], where))
    found[part] = (codes, labels)
  return _labelled(found, str(folder))


def nucleotide_transformer(folder: str | pathlib.Path) -> dict[str, Labelled]:
  """A task of the Nucleotide Transformer: `train.fna` and `test.fna`.

  Args:
    folder: of one task; each header ends in `|` and the label.

  Returns:
    `train` and `test`.

  Raises:
    UserError: naming the file and line that does not fit.

  Source: Dalla-Torre et al., 2024, https://doi.org/10.1038/s41592-024-02523-z.
  """
  folder, found = pathlib.Path(folder), {}
  for part in ("train", "test"):
    path, codes, labels, parts = folder / f"{part}.fna", [], [], []
    where = ""
    for number, line in intervals.lines(path):
      if line.startswith(">"):
        if labels:
          codes.append(alphabet.encode("".join(parts), where))
        where, parts = f"{path}, line {number}", []
        labels.append(_label(line.rpartition("|")[2], where))
      elif not labels:
        raise files.UserError(f"{path}, line {number}: wanted a header, '>'.")
      else:
        parts.append(line.strip())
    if labels:
      codes.append(alphabet.encode("".join(parts), where))
    found[part] = (codes, labels)
  return _labelled(found, str(folder))


def _label(text: str | None, where: str) -> int:
  try:
    return int(text or "")
  except ValueError as error:
    raise files.UserError(
      f"{where}: the label must be a whole number, got {text!r}."
    ) from error


def _labelled(
  parts: Mapping[str, tuple[list[np.ndarray], list[int]]], where: str
) -> dict[str, Labelled]:
  if not all(labels for _, labels in parts.values()):
    raise files.UserError(f"{where}: a part holds no sequence.")
  most = max(max(labels) for _, labels in parts.values())
  classes = tuple(str(i) for i in range(most + 1))
  return {
    part: Labelled(codes, np.array(labels, np.int32), classes)
    for part, (codes, labels) in parts.items()
  }
