"""Where rows of chromatin profiles come from."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common import files
from genomics import annotation
from genomics import classify
from genomics import deepsea
from genomics import genome as genome_lib
from genomics import intervals
from genomics import places
from genomics import synthetic

_SIZES = {"train": 2000, "valid": 200, "test": 400}
_CHECKED = 100  # Rows whose bases are compared with the genome.


class PackedSource:
  """Rows that `genomics.deepsea.convert` wrote, one at a time.

  Args:
    packed: the rows.
  """

  def __init__(self, packed: deepsea.Packed):
    self._packed = packed

  def __len__(self) -> int:
    return len(self._packed)

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    found = self._packed[int(index)]
    return found.codes[0], found.labels[0]


class Extended:
  """The same rows with more of the genome around their bins.

  Args:
    packed: the rows.
    genome: that they are from.
    bins: of 200 bases, one a row, by the genome's names.
    length: bases of a window.
    placement: as of `genomics.deepsea.context`.
    assembly: of the genome, by name.

  Raises:
    UserError: if there are not as many bins, or the genome is another.
  """

  def __init__(
    self,
    packed: deepsea.Packed,
    genome: genome_lib.Genome,
    bins: Sequence[intervals.Interval],
    *,
    length: int,
    placement: str,
    assembly: str,
  ):
    if len(bins) != len(packed) or any(x.length != deepsea.BIN for x in bins):
      raise files.UserError(
        f"wanted {len(packed)} bins of {deepsea.BIN} bases, one a row; got "
        f"{len(bins)}."
      )
    at = np.linspace(0, len(packed) - 1, min(_CHECKED, len(packed))).astype(int)
    some = [(bins[i].chrom, bins[i].start) for i in at]
    deepsea.check_assembly(genome, some, packed[at].codes, assembly)
    self._packed, self._genome, self._bins = packed, genome, bins
    self._form = (length, placement)

  def __len__(self) -> int:
    return len(self._packed)

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    place, (length, placement) = self._bins[int(index)], self._form
    window = deepsea.context(
      place.start, length, chrom=place.chrom, placement=placement
    )
    codes = genome_lib.read(self._genome, window).codes
    return codes, self._packed[int(index)].labels[0]


@dataclasses.dataclass(frozen=True)
class Data:
  """Rows of each part, and the groups of their outputs.

  Attributes:
    parts: `train`, `valid` and `test`.
    outputs: labels of a row.
    groups: name -> outputs.
  """

  parts: dict[str, Any]
  outputs: int
  groups: dict[str, slice]


def load(config: Any) -> Data:
  """The rows that a configuration names.

  Args:
    config: of `genomics.chromatin.train`.

  Returns:
    The rows.

  Raises:
    UserError: if they are not there or do not fit.
  """
  if config.data == "synthetic":
    parts = {
      part: classify.Arrays(*synthetic.profiles(size, seed=seed))
      for seed, (part, size) in enumerate(_SIZES.items())
    }
    outputs = parts["train"].labels.shape[1]
    return Data(parts, outputs, {"all": slice(0, outputs)})
  if not config.data:
    raise files.UserError(
      "--config.data must name the folder of DeepSEA's train.mat, valid.mat "
      "and test.mat (http://deepsea.princeton.edu), or 'synthetic'."
    )
  folder, parts, outputs = pathlib.Path(config.data), {}, 0
  for split in deepsea.SPLITS:
    if not (folder / "packed" / f"{split}.json").exists():
      files.say(f"packing {folder / split}.mat")
      deepsea.convert(folder / f"{split}.mat", split, folder / "packed")
    packed = deepsea.Packed(folder / "packed", split)
    parts[split] = _source(config, packed, split)
    outputs = packed.outputs
  groups = {"all": slice(0, outputs)}
  if outputs == deepsea.OUTPUTS:
    groups |= deepsea.GROUPS
  return Data(parts, outputs, groups)


def _source(config: Any, packed: deepsea.Packed, split: str) -> Any:
  if not config.genome:
    return PackedSource(packed)
  genome = places.genome(config.genome)
  path = pathlib.Path(config.bins) / f"{split}.bed"
  names = intervals.Names(genome.lengths)
  bins = [
    dataclasses.replace(x, chrom=names(x.chrom))
    for x in annotation.read_bed(path)
  ]
  return Extended(
    packed,
    genome,
    bins,
    length=config.bases,
    placement=config.placement,
    assembly=config.assembly,
  )
