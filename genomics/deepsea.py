"""DeepSEA's chromatin profiles: 919 outputs of 1,000 bases."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals

LENGTH = 1000
BIN = 200  # In the middle; the labels are of these bases.
OUTPUTS = 919
ORDER = "AGCT"  # Of the channels in the files.
POSITIVE_WEIGHT = 8.0  # BigBird's.
GROUPS = {"DHS": slice(0, 125), "TF": slice(125, 815), "HM": slice(815, 919)}
SPLITS = ("train", "valid", "test")
_BATCH = 4096


@dataclasses.dataclass(frozen=True)
class Profiles:
  """Sequences and labels.

  Attributes:
    codes: `[n, length]` uint8.
    labels: `[n, outputs]` uint8, 0 or 1.
  """

  codes: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.codes)


def _arrays(path: pathlib.Path, split: str) -> tuple[Any, Any, bool]:
  """Sequences and labels as the file has them; True if HDF5, axes reversed."""
  names = f"{split}xdata", f"{split}data"
  if not path.exists():
    raise files.UserError(
      f"cannot read {path}: there is no such file. It comes in DeepSEA's "
      "training bundle, http://deepsea.princeton.edu."
    )
  try:
    found = genome_lib.need("scipy.io", "scipy").loadmat(path)
    reverse = False
  except (NotImplementedError, ValueError):  # MATLAB 7.3, which is HDF5.
    try:
      found, reverse = genome_lib.need("h5py").File(path, "r"), True
    except OSError as error:
      raise files.UserError(f"{path} is no MATLAB file: {error}") from error
  for name in names:
    if name not in found:
      have = sorted(x for x in found if not x.startswith("__"))
      raise files.UserError(
        f"{path} holds no {name!r}; it holds {', '.join(have)}."
      )
  return found[names[0]], found[names[1]], reverse


def batches(
  path: str | pathlib.Path, split: str, *, batch_size: int = _BATCH
) -> Iterator[Profiles]:
  """Rows of a .mat file of either version, some at a time, in order.

  Args:
    path: `train.mat`, `valid.mat` or `test.mat`, or the same in HDF5.
    split: `train`, `valid` or `test`: how its arrays are called.
    batch_size: rows read at a time.

  Yields:
    The rows.

  Raises:
    UserError: if it is not there, is no such file, or has other shapes.

  Source: Zhou and Troyanskaya, 2015, https://doi.org/10.1038/nmeth.3547.
  """
  path = pathlib.Path(path)
  x, y, reverse = _arrays(path, split)
  count = y.shape[-1] if reverse else y.shape[0]
  shape = tuple(x.shape[::-1]) if reverse else tuple(x.shape)
  if len(shape) != 3 or shape[:2] != (count, 4) or y.ndim != 2:
    raise files.UserError(
      f"{path}: {split}xdata has the shape {x.shape} beside {count} rows of "
      "labels; wanted 4 channels a base."
    )
  for low in range(0, count, batch_size):
    high = min(low + batch_size, count)
    if reverse:  # [bases, 4, n] and [outputs, n].
      values = np.transpose(x[:, :, low:high], (2, 0, 1))
      labels = np.transpose(y[:, low:high])
    else:  # [n, 4, bases] and [n, outputs].
      values, labels = np.transpose(x[low:high], (0, 2, 1)), y[low:high]
    yield Profiles(
      alphabet.from_one_hot(values, order=ORDER), labels.astype(np.uint8)
    )


def convert(
  path: str | pathlib.Path, split: str, folder: str | pathlib.Path
) -> int:
  """Packs a .mat file for random access: 2 bases and 8 labels a byte.

  The second half of each file is the reverse complement of the first. It is
  compared, and left out.

  Args:
    path: of the file.
    split: as of `batches`.
    folder: gets `<split>.codes.npy` and then `<split>.labels.npy`.

  Returns:
    The rows written.

  Raises:
    UserError: if the halves do not fit, or as of `batches`.

  Source: as of `batches`.
  """
  folder, path = pathlib.Path(folder), pathlib.Path(path)
  x, y, reverse = _arrays(path, split)
  count = y.shape[-1] if reverse else y.shape[0]
  outputs = y.shape[0] if reverse else y.shape[1]
  length, kept = x.shape[0] if reverse else x.shape[2], count // 2
  del x, y
  if count % 2:
    raise files.UserError(f"{path}: {count} rows are not two equal halves.")
  shapes = (kept, -(-length // 2)), (kept, -(-outputs // 8))
  paths = [folder / f"{split}.{x}.npy" for x in ("codes", "labels")]
  (paths[1]).unlink(missing_ok=True)
  with files.whole(paths[1]) as last, files.whole(paths[0]) as first:
    codes, labels = (
      np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
      for part, shape in zip((first, last), shapes, strict=True)
    )
    low = 0
    for batch in batches(path, split):
      _pack(batch, low, codes, labels, path)
      low += len(batch)
    codes.flush()
    labels.flush()
    del codes, labels
  meta = {"length": int(length), "outputs": int(outputs), "rows": int(kept)}
  files.write_json(folder / f"{split}.json", meta)
  return kept


def _nibbles(codes: np.ndarray) -> np.ndarray:
  even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
  return even[:, ::2] << 4 | even[:, 1::2]


def _pack(
  batch: Profiles,
  low: int,
  codes: np.ndarray,
  labels: np.ndarray,
  path: pathlib.Path,
) -> None:
  """Writes the rows of the first half; compares those of the second."""
  kept = len(codes)
  inside = max(min(kept - low, len(batch)), 0)
  if inside:
    codes[low : low + inside] = _nibbles(batch.codes[:inside])
    labels[low : low + inside] = np.packbits(batch.labels[:inside], axis=1)
  if inside < len(batch):
    at = slice(low + inside - kept, low + len(batch) - kept)
    other = _nibbles(alphabet.reverse_complement(batch.codes[inside:]))
    packed = np.packbits(batch.labels[inside:], axis=1)
    if np.any(other != codes[at]) or np.any(packed != labels[at]):
      raise files.UserError(
        f"{path}: the second half is not the reverse complement of the first."
      )


class Packed:
  """Rows that `convert` wrote, by random access.

  Args:
    folder: of the files.
    split: `train`, `valid` or `test`.

  Raises:
    UserError: if they are not there.

  Source: none.
  """

  def __init__(self, folder: str | pathlib.Path, split: str):
    import json

    folder = pathlib.Path(folder)
    cure = "Write it with genomics.deepsea.convert."
    meta = json.loads(files.read_bytes(folder / f"{split}.json", cure))
    self.length, self.outputs = meta["length"], meta["outputs"]
    self._codes = np.load(folder / f"{split}.codes.npy", mmap_mode="r")
    self._labels = np.load(folder / f"{split}.labels.npy", mmap_mode="r")

  def __len__(self) -> int:
    return len(self._codes)

  def __getitem__(self, rows: Any) -> Profiles:
    packed = np.atleast_2d(np.asarray(self._codes[rows]))
    codes = np.stack([packed >> 4, packed & 15], -1).reshape(len(packed), -1)
    bits = np.atleast_2d(np.asarray(self._labels[rows]))
    labels = np.unpackbits(bits, axis=1, count=self.outputs)
    return Profiles(codes[:, : self.length], labels)


def context(
  start: int, length: int, *, chrom: str, placement: str = "centred"
) -> intervals.Interval:
  """The longer window around a bin of 200 bases.

  Args:
    start: of the bin, from 0.
    length: of the window: 1,000 as in the files, 8,000 for BigBird.
    chrom: name of the sequence.
    placement: `centred`, or `upstream`, which puts five eighths before the
      bin's middle: what BigBird's text and its figure say, in this order.

  Returns:
    The window.

  Raises:
    UserError: for another placement.

  Example:
    >>> context(400, 1000, chrom="c").start
    0

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062, appendix F.3.
  """
  middle = start + BIN // 2
  before = {"centred": length // 2, "upstream": length * 5 // 8}
  if placement not in before:
    raise files.UserError(
      f"placement must be centred or upstream, got {placement!r}."
    )
  low = middle - before[placement]
  return intervals.Interval(chrom, low, low + length)


def check_assembly(
  genome: genome_lib.Genome,
  bins: list[tuple[str, int]],
  codes: np.ndarray,
  assembly: str,
) -> None:
  """Refuses a genome that does not hold the rows where they are said to lie.

  Args:
    genome: to read.
    bins: name of the sequence and start of the bin of each row.
    codes: `[n, 1000]` uint8 of the rows.
    assembly: that the genome is said to be, for the error; must be named.

  Raises:
    UserError: if a row differs.

  Source: DeepSEA's coordinates are of hg19.
  """
  if not assembly:
    raise files.UserError("name the assembly of the genome, such as hg19.")
  for (chrom, start), row in zip(bins, codes, strict=True):
    window = context(start, codes.shape[1], chrom=chrom)
    here = genome_lib.read(genome, window).codes
    if np.any((here != row) & (here < 4) & (row < 4)):
      raise files.UserError(
        f"the genome ({assembly}) differs from the row of bin {chrom}:"
        f"{start + 1}. Is it the assembly that the rows are from?"
      )
