"""Genomes read in place: FASTA, 2bit, and arrays mapped into memory.

Nothing is loaded whole. Files are opened at the first read, in every process
anew, so that a genome can be handed to other processes.
"""

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any
from typing import Protocol

import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import intervals

_SOFT = 8  # Beside the code of a base in lower case, in the mapped array.
_CHUNK = 1 << 22


class Genome(Protocol):
  """Named sequences by random access.

  Attributes:
    lengths: name -> bases.
  """

  @property
  def lengths(self) -> Mapping[str, int]:
    """Name -> bases."""
    ...

  def letters(self, chrom: str, start: int, end: int) -> bytes:
    """Bases [start, end), which must lie inside, in the file's case."""
    ...


def need(module: str, package: str = "") -> Any:
  """Imports what the extra `genomics` brings; UserError if it is not here.

  Args:
    module: to import.
    package: that holds it; by default the module's own name.

  Returns:
    The module.

  Raises:
    UserError: saying what to install.

  Example:
    >>> need("json").dumps(1)
    '1'

  Source: none.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise files.UserError(
      f"{package or module} is not here: pip install 'jaxattn[genomics]', or "
      f"pip install {package or module.partition('.')[0]}."
    ) from error


class Opened:
  """A file that is opened at the first read; its handle does not travel.

  Args:
    path: of the file.

  Raises:
    UserError: if it is not there.

  Source: none.
  """

  def __init__(self, path: str | pathlib.Path):
    self.path = pathlib.Path(path)
    if not self.path.exists():
      raise files.UserError(f"cannot read {path}: there is no such file.")
    self._handle: Any = None
    self._sizes: dict[str, int] | None = None

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_handle": None}

  def _open(self) -> Any:
    raise NotImplementedError

  def _lengths(self) -> dict[str, int]:
    raise NotImplementedError

  @property
  def handle(self) -> Any:
    """The library's object."""
    if self._handle is None:
      try:
        self._handle = self._open()
      except files.UserError:
        raise
      except Exception as error:  # Each library has errors of its own.
        raise files.UserError(f"cannot read {self.path}: {error}") from error
    return self._handle

  @property
  def lengths(self) -> Mapping[str, int]:
    """Name -> bases."""
    if self._sizes is None:
      self._sizes = self._lengths()
      if not self._sizes:
        raise files.UserError(f"{self.path} holds no sequence.")
    return self._sizes


class Fasta(Opened):
  """A FASTA file, plain or compressed by bgzip; its index is made if need be.

  Args:
    path: of the file; the index lies beside it, as `.fai`.

  Raises:
    UserError: if it is not there, is compressed otherwise, or damaged.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.fa")
    >>> _ = path.write_text(">one first" + chr(10) + "ACGTacg")
    >>> Fasta(path).letters("one", 2, 6)
    b'GTac'

  Source: pyfaidx, https://doi.org/10.7287/peerj.preprints.970.
  """

  def _open(self) -> Any:
    with self.path.open("rb") as file:
      head = file.read(16)
    if head[:2] == b"\x1f\x8b" and head[12:14] != b"BC":
      raise files.UserError(
        f"{self.path} is compressed by gzip, which cannot be read from the "
        f"middle. Unpack it (gunzip {self.path.name}), or pack it by bgzip."
      )
    if head[:2] == b"\x1f\x8b":
      need("Bio.bgzf", "biopython")
    return need("pyfaidx").Fasta(
      str(self.path), as_raw=True, sequence_always_upper=False
    )

  def _lengths(self) -> dict[str, int]:
    return {name: len(self.handle[name]) for name in self.handle.keys()}

  def letters(self, chrom: str, start: int, end: int) -> bytes:
    """Bases [start, end), in the file's case."""
    return str(self.handle[chrom][start:end]).encode()


class TwoBit(Opened):
  """A 2bit file.

  Args:
    path: of the file.

  Raises:
    UserError: if it is not there or damaged.

  Source: https://genome.ucsc.edu/FAQ/FAQformat.html#format7; py2bit,
  https://github.com/deeptools/py2bit.
  """

  def _open(self) -> Any:
    return need("py2bit").open(str(self.path), True)  # With the soft mask.

  def _lengths(self) -> dict[str, int]:
    return dict(self.handle.chroms())

  def letters(self, chrom: str, start: int, end: int) -> bytes:
    """Bases [start, end), in the file's case."""
    return self.handle.sequence(chrom, start, end).encode()


class Mapped(Opened):
  """A genome that `build` wrote: one byte a base, mapped into memory.

  Args:
    path: the folder.

  Raises:
    UserError: if it is not there, or its files do not fit together.

  Source: `numpy.memmap`.
  """

  def _index(self) -> dict[str, Any]:
    cure = "Build it with genomics.genome.build."
    return json.loads(files.read_bytes(self.path / "index.json", cure))

  def _open(self) -> Any:
    bases = np.load(self.path / "bases.npy", mmap_mode="r")
    self._places: dict[str, list[int]] = self._index()["sequences"]
    if len(bases) != sum(size for _, size in self._places.values()):
      raise files.UserError(
        f"{self.path}: bases.npy and index.json do not fit. Build them again."
      )
    return bases

  def _lengths(self) -> dict[str, int]:
    return {
      name: size for name, (_, size) in self._index()["sequences"].items()
    }

  def _slice(self, chrom: str, start: int, end: int) -> np.ndarray:
    bases = self.handle
    offset = self._places[chrom][0]
    return np.asarray(bases[offset + start : offset + end])

  def codes(self, chrom: str, start: int, end: int) -> np.ndarray:
    """Codes of bases [start, end), without the way over letters."""
    return self._slice(chrom, start, end) & np.uint8(_SOFT - 1)

  def letters(self, chrom: str, start: int, end: int) -> bytes:
    """Bases [start, end), in lower case where soft-masked."""
    packed = self._slice(chrom, start, end)
    letters = np.frombuffer(alphabet.LETTERS.encode(), np.uint8)
    upper = letters[packed & np.uint8(_SOFT - 1)]
    return (upper + np.where(packed & _SOFT, 32, 0)).astype(np.uint8).tobytes()


class InMemory:
  """Sequences that are already here.

  Args:
    sequences: name -> letters.

  Example:
    >>> InMemory({"a": "ACGT"}).letters("a", 1, 3)
    b'CG'

  Source: none.
  """

  def __init__(self, sequences: Mapping[str, str | bytes]):
    self._sequences = {
      name: x.encode() if isinstance(x, str) else x
      for name, x in sequences.items()
    }

  @property
  def lengths(self) -> Mapping[str, int]:
    """Name -> bases."""
    return {name: len(x) for name, x in self._sequences.items()}

  def letters(self, chrom: str, start: int, end: int) -> bytes:
    """Bases [start, end)."""
    return self._sequences[chrom][start:end]


def load(path: str | pathlib.Path) -> Genome:
  """Opens a genome by what its name ends in; a folder is of `build`.

  Args:
    path: a FASTA file (.fa, .fna, .fasta, and with .gz), a 2bit file, or a
      folder.

  Returns:
    The genome.

  Raises:
    UserError: if it is none of these, or not there.

  Source: none.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return Mapped(path)
  name = path.name.removesuffix(".gz").removesuffix(".bgz")
  if name.endswith(".2bit"):
    return TwoBit(path)
  if name.endswith((".fa", ".fna", ".fasta", ".fas")):
    return Fasta(path)
  raise files.UserError(
    f"{path} is no genome: wanted .fa, .fna, .fasta (also .gz, by bgzip), "
    ".2bit, or a folder that genomics.genome.build wrote."
  )


def codes(genome: Genome, chrom: str, start: int, end: int) -> np.ndarray:
  """Codes of bases [start, end), which must lie inside.

  Args:
    genome: to read.
    chrom: name of the sequence, as the genome has it.
    start: the first base, from 0.
    end: one after the last.

  Returns:
    `[end - start]` uint8.

  Raises:
    UserError: if they do not lie inside, or letters stand for no nucleotide.

  Example:
    >>> codes(InMemory({"a": "ACGT"}), "a", 1, 3).tolist()
    [1, 2]

  Source: none.
  """
  size = genome.lengths.get(chrom)
  if size is None or not 0 <= start <= end <= size:
    raise files.UserError(
      f"the genome does not hold bases [{start}, {end}) of {chrom!r} "
      f"({size or 'no such sequence'})."
    )
  if isinstance(genome, Mapped):
    return genome.codes(chrom, start, end)
  letters = genome.letters(chrom, start, end)
  return alphabet.encode(letters, f"{chrom}:{start + 1}-{end}")


@dataclasses.dataclass(frozen=True)
class Window:
  """Bases of an interval, along its strand.

  Attributes:
    codes: `[n]` uint8, `UNKNOWN` where the interval sticks out.
    inside: `[n]` bool, where it does not.
  """

  codes: np.ndarray
  inside: np.ndarray


def read(
  genome: Genome,
  interval: intervals.Interval,
  *,
  circular: Collection[str] = (),
) -> Window:
  """Reads an interval along its strand, never shifted.

  Args:
    genome: to read.
    interval: by the genome's names; it may stick out.
    circular: names of sequences whose end joins their start.

  Returns:
    The bases, and which lie inside.

  Raises:
    UserError: if the genome has no such sequence, or a circular one is shorter
      than the interval.

  Example:
    >>> genome = InMemory({"a": "ACGT"})
    >>> alphabet.decode(read(genome, intervals.Interval("a", -1, 3, "-")).codes)
    'CGTN'
    >>> place = intervals.Interval("a", 3, 5)
    >>> alphabet.decode(read(genome, place, circular=["a"]).codes)
    'TA'

  Source: none.
  """
  size = genome.lengths.get(interval.chrom)
  if size is None:
    intervals.Names(genome.lengths)(interval.chrom)
    raise files.UserError(f"use the genome's own name for {interval.chrom!r}.")
  start, end = interval.start, interval.end
  if interval.chrom in circular:
    if interval.length > size:
      raise files.UserError(
        f"{interval.length} bases are more than the circle {interval.chrom!r} "
        f"has ({size}). Take a smaller window."
      )
    start, end = start % size, start % size + interval.length
    found = codes(genome, interval.chrom, start, min(end, size))
    if end > size:
      rest = codes(genome, interval.chrom, 0, end - size)
      found = np.concatenate([found, rest])
    inside = np.ones(interval.length, bool)
  else:
    low = min(max(start, 0), size)
    high = min(max(end, low), size)
    found = codes(genome, interval.chrom, low, high)
    before = min(max(-start, 0), interval.length)
    pads = (before, interval.length - before - len(found))
    found = np.pad(found, pads, constant_values=alphabet.UNKNOWN)
    inside = np.zeros(interval.length, bool)
    inside[before : interval.length - pads[1]] = True
  if interval.strand == "-":
    return Window(alphabet.reverse_complement(found), inside[::-1])
  return Window(found, inside)


def build(genome: Genome, folder: str | pathlib.Path) -> Mapped:
  """Writes a genome as an array of one byte a base, in pieces.

  Args:
    genome: to copy.
    folder: gets `bases.npy` and, when all is written, `index.json`.

  Returns:
    The copy.

  Raises:
    UserError: if letters stand for no nucleotide.

  Source: none.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  places, total = {}, 0
  for name, size in genome.lengths.items():
    places[name] = [total, size]
    total += size
  (folder / "index.json").unlink(missing_ok=True)
  with files.whole(folder / "bases.npy") as part:
    bases = np.lib.format.open_memmap(
      part, mode="w+", dtype=np.uint8, shape=(total,)
    )
    for name, (offset, size) in places.items():
      for low in range(0, size, _CHUNK):
        high = min(low + _CHUNK, size)
        letters = genome.letters(name, low, high)
        packed = alphabet.encode(letters, f"{name}:{low + 1}-{high}").copy()
        packed[alphabet.soft_masked(letters)] |= _SOFT
        bases[offset + low : offset + high] = packed
    bases.flush()
    del bases
  files.write_json(folder / "index.json", {"sequences": places, "version": 1})
  return Mapped(folder)


def known_runs(
  genome: Genome, chrom: str, *, gap: int = 1
) -> list[intervals.Interval]:
  """Stretches of a sequence between its runs of unknown bases.

  Args:
    genome: to read.
    chrom: name of the sequence.
    gap: runs of at least so many unknown bases divide.

  Returns:
    The stretches, ascending; shorter runs stay in them.

  Example:
    >>> found = known_runs(InMemory({"a": "ACNNGT"}), "a")
    >>> [(x.start, x.end) for x in found]
    [(0, 2), (4, 6)]

  Source: none.
  """
  size, found, begin, unknown = genome.lengths[chrom], [], None, 0
  for low in range(0, size, _CHUNK):
    values = codes(genome, chrom, low, min(low + _CHUNK, size))
    known = values != alphabet.UNKNOWN
    edges = np.flatnonzero(np.diff(known.astype(np.int8))) + 1
    for first, last in zip([0, *edges], [*edges, len(values)], strict=True):
      if known[first]:
        if begin is None or unknown >= gap:
          if begin is not None:
            found.append((begin, low + first - unknown))
          begin = low + first
        unknown = 0
      else:
        unknown += int(last - first)
  if begin is not None:
    found.append((begin, size - unknown))
  return [intervals.Interval(chrom, int(a), int(b)) for a, b in found]
