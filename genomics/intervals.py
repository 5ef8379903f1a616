"""Places on a genome, by one rule: from 0, half-open, on the + strand."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping

from experiments.common import files

STRANDS = ("+", "-")


@dataclasses.dataclass(frozen=True)
class Interval:
  """Bases [start, end) of a sequence, counted from 0 on its + strand.

  Attributes:
    chrom: name of the sequence.
    start: the first base; may be negative in a window that sticks out.
    end: one after the last base.
    strand: `+` or `-`: in which direction it is read.
    name: of what lies there.

  Raises:
    ValueError: if it is empty, or has another strand.

  Example:
    >>> Interval("chr1", 10, 20).length
    10

  Source: the coordinates of BED,
  https://genome.ucsc.edu/FAQ/FAQformat.html#format1.
  """

  chrom: str
  start: int
  end: int
  strand: str = "+"
  name: str = ""

  def __post_init__(self) -> None:
    if self.end <= self.start:
      raise ValueError(
        f"an interval must hold a base, got [{self.start}, {self.end})."
      )
    if self.strand not in STRANDS:
      raise ValueError(f"strand must be '+' or '-', got {self.strand!r}.")

  @property
  def length(self) -> int:
    """How many bases it has."""
    return self.end - self.start


def parse_region(text: str) -> Interval:
  """An interval from text such as `chr2:1,001-2,000`, counted from 1, closed.

  Args:
    text: the region, as genome browsers and samtools write it.

  Returns:
    The interval, counted from 0, half-open.

  Raises:
    UserError: if it is not of that form.

  Example:
    >>> parse_region("chr2:1,001-2,000")
    Interval(chrom='chr2', start=1000, end=2000, strand='+', name='')

  Source: http://www.htslib.org/doc/samtools.html.
  """
  found = re.fullmatch(r"(\S+):([\d,]+)-([\d,]+)", text)
  if not found:
    raise files.UserError(
      f"{text!r} is no region; write it as name:first-last, counted from 1, "
      "for example chr2:1001-2000."
    )
  first, last = (int(found[i].replace(",", "")) for i in (2, 3))
  if first < 1 or last < first:
    raise files.UserError(f"{text!r} is no region: it must hold a base.")
  return Interval(found[1], first - 1, last)


def around(
  chrom: str,
  place: int,
  *,
  upstream: int,
  downstream: int,
  strand: str = "+",
  name: str = "",
) -> Interval:
  """The window from `upstream` bases before a place to `downstream` from it.

  Read along its strand, the place is the base of index `upstream`.

  Args:
    chrom: name of the sequence.
    place: of the base, from 0, for instance where transcription starts.
    upstream: bases before it.
    downstream: bases from it on, itself included.
    strand: along which both are counted.
    name: of the window.

  Returns:
    The window, which may stick out of its sequence.

  Example:
    >>> around("c", 1000, upstream=249, downstream=51).start
    751
    >>> around("c", 1000, upstream=249, downstream=51, strand="-").end
    1250

  Source: the ranges of EPD, https://epd.expasy.org, in which the start is 0.
  """
  if strand == "-":
    start, end = place - downstream + 1, place + upstream + 1
  else:
    start, end = place - upstream, place + downstream
  return Interval(chrom, start, end, strand, name)


class Names:
  """What a sequence may be called, and what a genome calls it.

  `chr1` and `1`, `chrM` and `MT` are the same without being told; other
  names, such as accessions, are given.

  Args:
    known: names that the genome has.
    aliases: other name -> a name that the genome has.

  Raises:
    UserError: if an alias stands for what is not there.

  Example:
    >>> Names(["chr1", "chrM"], {"NC_000001.11": "chr1"})("1")
    'chr1'

  Source: the names of UCSC, Ensembl and RefSeq.
  """

  def __init__(
    self, known: Iterable[str], aliases: Mapping[str, str] | None = None
  ):
    self._known = tuple(known)
    self._names = {}
    for name in self._known:
      bare = name.removeprefix("chr")
      for other in (bare, f"chr{bare}"):
        self._names.setdefault(other, name)
      if bare in ("M", "MT"):
        for other in ("M", "MT", "chrM", "chrMT"):
          self._names.setdefault(other, name)
    self._names |= {name: name for name in self._known}
    for other, name in (aliases or {}).items():
      if name not in self._names:
        raise files.UserError(
          f"the alias {other!r} stands for {name!r}, which the genome does not "
          f"hold; it has {self._some()}."
        )
      self._names[other] = self._names[name]

  def _some(self) -> str:
    more = len(self._known) - 5
    return ", ".join(self._known[:5]) + (
      f" and {more} more" if more > 0 else ""
    )

  def __contains__(self, name: str) -> bool:
    return name in self._names

  def __call__(self, name: str) -> str:
    """The genome's name; UserError if it has none."""
    if name not in self._names:
      raise files.UserError(
        f"the genome has no sequence {name!r}; it has {self._some()}. Is it "
        "the right assembly? If so, give an alias."
      )
    return self._names[name]

  def rename(self, found: Iterable[Interval], what: str) -> list[Interval]:
    """Intervals with the genome's names; those on no sequence are dropped.

    Args:
      found: intervals.
      what: they are, for the error.

    Returns:
      The intervals that are left.

    Raises:
      UserError: if none is, which means another assembly or naming.
    """
    rows = list(found)
    kept = [
      dataclasses.replace(x, chrom=self(x.chrom))
      for x in rows
      if x.chrom in self
    ]
    if rows and not kept:
      raise files.UserError(
        f"no name of a sequence in {what} (such as {rows[0].chrom!r}) is one "
        f"of the genome's ({self._some()}). Is it the right assembly? If "
        "so, give aliases."
      )
    return kept


def read_aliases(path: pathlib.Path) -> dict[str, str]:
  """A table of aliases: two columns, the other name and the genome's.

  Args:
    path: a text file of columns between tabs or spaces; `#` opens a comment.

  Returns:
    Other name -> the genome's name, for `Names`.

  Raises:
    UserError: for a line that has not two columns, or says otherwise than an
      earlier one.

  Source: chromAlias.txt of UCSC, which has this form.
  """
  table: dict[str, str] = {}
  for number, line in lines(path):
    columns = line.split()
    if len(columns) < 2 or table.get(columns[0], columns[1]) != columns[1]:
      raise files.UserError(
        f"{path}, line {number}: wanted a name and what the genome calls it, "
        f"once for each name; got {line!r}."
      )
    table[columns[0]] = columns[1]
  return table


def lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Numbers and text of the lines of a file that say something.

  Args:
    path: a text file, plain or compressed by gzip or bgzip.

  Yields:
    Number from 1 and text of each line that is neither empty nor a comment.

  Raises:
    UserError: if the file cannot be read.

  Source: none.
  """
  import gzip

  raw = files.read_bytes(path)
  try:
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    text = raw.decode()
  except (OSError, EOFError, UnicodeDecodeError) as error:
    raise files.UserError(f"{path} is damaged or no text: {error}") from error
  for number, line in enumerate(text.splitlines(), 1):
    if line.strip() and not line.startswith(("#", "track", "browser")):
      yield number, line


def merge(found: Iterable[Interval], *, gap: int = 0) -> list[Interval]:
  """Stretches that intervals cover together, of either strand.

  Args:
    found: intervals.
    gap: stretches at most so far apart become one.

  Returns:
    Stretches, ascending by name and start.

  Example:
    >>> merge([Interval("c", 0, 5), Interval("c", 4, 9)])[0].end
    9

  Source: `merge` of bedtools, https://bedtools.readthedocs.io.
  """
  done: list[Interval] = []
  for x in sorted(found, key=lambda x: (x.chrom, x.start)):
    last = done[-1] if done else None
    if last and last.chrom == x.chrom and x.start <= last.end + gap:
      done[-1] = dataclasses.replace(last, end=max(last.end, x.end))
    else:
      done.append(Interval(x.chrom, x.start, x.end))
  return done
