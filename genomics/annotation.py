"""Annotations: BED and its peaks, EPDnew, GFF3, GTF, GenBank and VCF.

Tables of columns are split here rather than by a library, so that an error
names the file and the line.
"""

import dataclasses
import pathlib
import urllib.parse
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals


@dataclasses.dataclass(frozen=True)
class Feature:
  """What an annotation says of an interval.

  Attributes:
    interval: where, from 0, half-open.
    kind: for example `gene`, `CDS`, `exon`.
    phase: bases of a coding stretch before its first whole codon, 0 to 2.
    attributes: name -> value, as the file has them.
  """

  interval: intervals.Interval
  kind: str
  phase: int = 0
  attributes: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Variant:
  """Bases `ref` of a sequence that are `alt` instead.

  Attributes:
    chrom: name of the sequence.
    start: of the first base of `ref`, from 0.
    ref: letters of the genome.
    alt: letters instead of them.
    name: of the variant.

  Example:
    >>> Variant("c", 9, "A", "G").single
    True

  Source: https://samtools.github.io/hts-specs/VCFv4.3.pdf.
  """

  chrom: str
  start: int
  ref: str
  alt: str
  name: str = ""

  @property
  def single(self) -> bool:
    """Whether one base takes the place of one."""
    return len(self.ref) == len(self.alt) == 1


def _place(
  path: pathlib.Path, number: int, columns: Sequence[str], at: Sequence[int]
) -> tuple[int, ...]:
  """Whole numbers from columns; UserError names the line."""
  try:
    return tuple(int(columns[i]) for i in at)
  except (IndexError, ValueError) as error:
    raise files.UserError(
      f"{path}, line {number}: wanted numbers in columns "
      f"{', '.join(str(i + 1) for i in at)}, got {columns}."
    ) from error


def _interval(
  path: pathlib.Path, number: int, *form: object
) -> intervals.Interval:
  try:
    return intervals.Interval(*form)  # pyrefly: ignore
  except ValueError as error:
    raise files.UserError(f"{path}, line {number}: {error}") from error


def _strand(text: str) -> str:
  return text if text in intervals.STRANDS else "+"


def read_bed(path: str | pathlib.Path) -> list[intervals.Interval]:
  r"""The intervals of a BED file, or of narrowPeak and broadPeak.

  Args:
    path: columns between tabs, or between spaces; plain or gzip. A strand that
      is neither + nor - counts as +.

  Returns:
    One interval a line, named by the fourth column.

  Raises:
    UserError: naming the line that is none.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.bed")
    >>> _ = path.write_text("chr1\t4\t9\tx\t0\t-\n")
    >>> read_bed(path)[0].strand
    '-'

  Source: https://genome.ucsc.edu/FAQ/FAQformat.html#format1.
  """
  path, found = pathlib.Path(path), []
  for number, line in intervals.lines(path):
    columns = line.split("\t") if "\t" in line else line.split()
    start, end = _place(path, number, columns, (1, 2))
    strand = _strand(columns[5]) if len(columns) > 5 else "+"
    name = columns[3] if len(columns) > 3 else ""
    if start < 0:
      raise files.UserError(f"{path}, line {number}: start {start} < 0.")
    found.append(_interval(path, number, columns[0], start, end, strand, name))
  return found


def read_summits(path: str | pathlib.Path) -> list[int | None]:
  """Where each peak of a narrowPeak file is highest, from 0 on its sequence.

  Args:
    path: of ten columns, the last one counted from the peak's start.

  Returns:
    One place a line; None where it was not called (-1).

  Raises:
    UserError: naming the line that has no such column.

  Source: https://genome.ucsc.edu/FAQ/FAQformat.html#format12.
  """
  path, found = pathlib.Path(path), []
  for number, line in intervals.lines(path):
    start, offset = _place(path, number, line.split(), (1, 9))
    found.append(None if offset < 0 else start + offset)
  return found


def read_epd(path: str | pathlib.Path) -> list[intervals.Interval]:
  """Where transcription starts, from EPDnew's BED file.

  Each line is a window of 60 bases; the start is where its thick part begins
  along the strand: the first thick base on +, the last one on -.

  Args:
    path: eight columns between spaces, plain or gzip.

  Returns:
    One interval of one base a promoter, with its strand and name.

  Raises:
    UserError: naming the line that is none.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.bed")
    >>> line = "chr1 960583 960643 KLHL17_1 900 + 960632 960643"
    >>> _ = path.write_text(line)
    >>> read_epd(path)[0].start + 1  # As EPD counts.
    960633

  Source: EPDnew, https://epd.expasy.org, https://doi.org/10.1093/nar/gkw1069.
  """
  path, found = pathlib.Path(path), []
  for number, line in intervals.lines(path):
    columns = line.split()
    start, end, first, last = _place(path, number, columns, (1, 2, 6, 7))
    if columns[5] not in intervals.STRANDS or not start <= first < last <= end:
      raise files.UserError(
        f"{path}, line {number}: wanted EPDnew's eight columns with a strand "
        f"and a thick part inside the window, got {line!r}."
      )
    place = first if columns[5] == "+" else last - 1
    form = (columns[0], place, place + 1, columns[5], columns[3])
    found.append(_interval(path, number, *form))
  return found


def _attributes(text: str) -> dict[str, str]:
  """Of GFF3 (`a=b;c=d`) or GTF (`a "b"; c "d"`)."""
  found = {}
  for item in text.split(";"):
    item = item.strip()
    if "=" in item and '"' not in item.partition("=")[0]:
      name, _, value = item.partition("=")
      found[name.strip()] = urllib.parse.unquote(value)
    elif item:
      name, _, value = item.partition(" ")
      found[name] = value.strip().strip('"')
  return found


def read_gff(
  path: str | pathlib.Path, kinds: Iterable[str] = ()
) -> list[Feature]:
  r"""Features of a GFF3 or GTF file, up to its FASTA part.

  Args:
    path: nine columns between tabs, plain or gzip; counted from 1, closed.
    kinds: of the third column to keep; none given keeps all.

  Returns:
    The features, counted from 0, half-open.

  Raises:
    UserError: naming the line that is none.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.gff")
    >>> _ = path.write_text("c\tx\tCDS\t11\t19\t.\t-\t0\tID=a\n")
    >>> read_gff(path)[0].interval.start
    10

  Source: https://github.com/The-Sequence-Ontology/Specifications.
  """
  path, wanted, found = pathlib.Path(path), set(kinds), []
  for number, line in intervals.lines(path):
    if line.startswith(">"):
      break
    columns = line.split("\t")
    if len(columns) != 9:
      raise files.UserError(
        f"{path}, line {number}: wanted nine columns between tabs, got "
        f"{len(columns)}."
      )
    if wanted and columns[2] not in wanted:
      continue
    first, last = _place(path, number, columns, (3, 4))
    phase = int(columns[7]) if columns[7] in ("0", "1", "2") else 0
    named = _attributes(columns[8])
    name = named.get("gene_id") or named.get("ID") or named.get("Name") or ""
    form = (columns[0], first - 1, last, _strand(columns[6]), name)
    place = _interval(path, number, *form)
    found.append(Feature(place, columns[2], phase, named))
  return found


def read_genbank(
  path: str | pathlib.Path, kinds: Iterable[str] = ("CDS",)
) -> tuple[genome_lib.InMemory, list[Feature]]:
  """Sequences and features of a GenBank file.

  Args:
    path: plain or gzip.
    kinds: of features to keep.

  Returns:
    The sequences, and the features on them, each exon as one.

  Raises:
    UserError: if it cannot be read as GenBank.

  Source: biopython, https://doi.org/10.1093/bioinformatics/btp163.
  """
  import gzip
  import io

  seq_io = genome_lib.need("Bio.SeqIO", "biopython")
  path, wanted = pathlib.Path(path), set(kinds)
  raw = files.read_bytes(path)
  sequences, found = {}, []
  try:
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    for record in seq_io.parse(io.StringIO(raw.decode()), "genbank"):
      sequences[record.id] = str(record.seq)
      for item in record.features:
        if item.type in wanted:
          found += _genbank_feature(record.id, item)
  except (ValueError, OSError, EOFError) as error:
    raise files.UserError(f"{path} is no GenBank file: {error}") from error
  if not sequences:
    raise files.UserError(f"{path} is no GenBank file: it holds no sequence.")
  return genome_lib.InMemory(sequences), found


def _genbank_feature(chrom: str, item: object) -> list[Feature]:
  named = {k: v[0] for k, v in item.qualifiers.items()}  # pyrefly: ignore
  name = named.get("locus_tag", named.get("gene", ""))
  shift, found = int(named.get("codon_start", 1)) - 1, []
  for part in item.location.parts:  # pyrefly: ignore
    strand = "-" if part.strand == -1 else "+"
    place = intervals.Interval(
      chrom, int(part.start), int(part.end), strand, name
    )
    found.append(Feature(place, item.type, shift % 3, named))  # pyrefly: ignore
    # Bases still missing to the codon that this part leaves open.
    shift = (shift - place.length) % 3
  return found


def read_vcf(path: str | pathlib.Path) -> list[Variant]:
  """The variants of a VCF or BCF file, one for each other allele.

  Args:
    path: of the file.

  Returns:
    The variants with letters for alleles; symbolic ones are left out.

  Raises:
    UserError: if it cannot be read.

  Source: pysam, https://github.com/pysam-developers/pysam.
  """
  return list(stream_vcf(path))


def stream_vcf(path: str | pathlib.Path) -> Iterator[Variant]:
  """What `read_vcf` returns, one after the other.

  Args:
    path: of the file.

  Yields:
    The variants.

  Raises:
    UserError: if it cannot be read.

  Source: as of `read_vcf`.
  """
  pysam = genome_lib.need("pysam")
  if not pathlib.Path(path).is_file():
    raise files.UserError(f"cannot read {path}: there is no such file.")
  try:
    with pysam.VariantFile(str(path)) as rows:
      for row in rows:
        for alt in row.alts or ():
          if not set(alt.upper()) - set("ACGTN"):
            name = row.id or ""
            form = (row.chrom, row.start, row.ref.upper(), alt.upper(), name)
            yield Variant(*form)
  except (OSError, ValueError) as error:
    raise files.UserError(f"{path} is no VCF file: {error}") from error


def check_reference(
  genome: genome_lib.Genome,
  variants: Sequence[Variant],
  *,
  allowed: float = 0.0,
) -> int:
  """Counts variants whose `ref` is not what the genome has there.

  Args:
    genome: by whose names the variants go.
    variants: to check.
    allowed: share that may differ.

  Returns:
    How many differ.

  Raises:
    UserError: if more do, naming the first, or the genome lacks a sequence.

  Example:
    >>> genome = genome_lib.InMemory({"c": "ACGT"})
    >>> check_reference(genome, [Variant("c", 1, "C", "T")])
    0

  Source: none.
  """
  odd = []
  for x in variants:
    place = intervals.Interval(x.chrom, x.start, x.start + len(x.ref))
    here = alphabet.decode(genome_lib.read(genome, place).codes)
    if here != x.ref:
      odd.append((x, here))
  if len(odd) > allowed * len(variants):
    x, here = odd[0]
    raise files.UserError(
      f"{len(odd)} of {len(variants)} variants do not fit the genome; the "
      f"first is {x.chrom}:{x.start + 1}, where it has {here} and not "
      f"{x.ref}. Is it the right assembly?"
    )
  return len(odd)


def covered_bins(
  peaks: Iterable[intervals.Interval],
  chrom: str,
  length: int,
  *,
  width: int = 200,
) -> np.ndarray:
  """Which bins of a sequence lie in peaks by more than half.

  Args:
    peaks: intervals; those that overlap count once.
    chrom: name of the sequence.
    length: of it; a last bin that is not whole is left out.
    width: bases in a bin.

  Returns:
    `[length // width]` bool.

  Example:
    >>> ends = [(0, 100), (299, 400)]
    >>> at = [intervals.Interval("c", *x) for x in ends]
    >>> covered_bins(at, "c", 400).tolist()
    [False, True]

  Source: Zhou and Troyanskaya, 2015, https://doi.org/10.1038/nmeth.3547.
  """
  count = np.zeros(length // width, np.int64)
  here = [x for x in peaks if x.chrom == chrom]
  for x in intervals.merge(here):
    low, high = max(x.start, 0), min(x.end, len(count) * width)
    for index in range(low // width, -(-high // width) if high > low else 0):
      inside = min(high, (index + 1) * width) - max(low, index * width)
      count[index] += max(inside, 0)
  return 2 * count > width
