"""Files of genomes and annotations, and coordinates."""

import gzip
import pathlib
import pickle

import numpy as np
import pytest

from experiments.common import files
from genomics import alphabet
from genomics import annotation
from genomics import genome as genome_lib
from genomics import intervals
from genomics import lifting
from genomics import places
from genomics import tracks

_TEXT = {
  "chr1": "ACGTNNNNNNacgtACGGTTCCAGTAAACCCTTTGGGACGT" * 40,
  "chr2": "TTGACCATGA" * 33 + "GG",
}


_SIZE = len(_TEXT["chr1"])


def _fasta(folder: pathlib.Path) -> pathlib.Path:
  path = folder / "a.fa"
  lines = []
  for name, text in _TEXT.items():
    lines.append(f">{name} something")
    lines += [text[i : i + 60] for i in range(0, len(text), 60)]
  path.write_text("\n".join(lines) + "\n")
  return path


def _twobit(path: pathlib.Path) -> pathlib.Path:
  """By the format's description; py2bit only reads."""

  def runs(marks):
    edges = np.flatnonzero(np.diff(np.pad(np.asarray(marks, int), 1)))
    return edges[::2], edges[1::2] - edges[::2]

  def block(marks):
    starts, sizes = runs(marks)
    found = np.array([len(starts), *starts, *sizes], "<u4")
    return found.tobytes()

  records = []
  for text in _TEXT.values():
    codes = alphabet.encode(text)
    bits = np.array([2, 1, 3, 0, 0], np.uint8)[codes]  # T 0, C 1, A 2, G 3.
    bits = np.pad(bits, (0, -len(bits) % 4)).reshape(-1, 4)
    packed = bits[:, 0] << 6 | bits[:, 1] << 4 | bits[:, 2] << 2 | bits[:, 3]
    records.append(
      np.array([len(text)], "<u4").tobytes()
      + block(codes == 4)
      + block(alphabet.soft_masked(text))
      + bytes(4)
      + packed.tobytes()
    )
  at = 16 + sum(5 + len(name) for name in _TEXT)
  head = np.array([0x1A412743, 0, len(_TEXT), 0], "<u4").tobytes()
  for name, record in zip(_TEXT, records, strict=True):
    head += bytes([len(name)]) + name.encode()
    head += np.array([at], "<u4").tobytes()
    at += len(record)
  path.write_bytes(head + b"".join(records))
  return path


@pytest.mark.parametrize("kind", ["plain", "bgzip", "2bit", "mapped"])
def test_all_formats_hold_the_same_bases(kind, tmp_path):
  path = _fasta(tmp_path)
  if kind == "plain":
    pytest.importorskip("pyfaidx")
    genome = genome_lib.load(path)
  elif kind == "bgzip":
    pysam, _ = pytest.importorskip("pysam"), pytest.importorskip("pyfaidx")
    pysam.tabix_compress(str(path), str(path) + ".gz")
    genome = genome_lib.load(str(path) + ".gz")
  elif kind == "2bit":
    pytest.importorskip("py2bit")
    genome = genome_lib.load(_twobit(tmp_path / "a.2bit"))
  else:
    genome = genome_lib.build(genome_lib.InMemory(_TEXT), tmp_path / "mapped")
  assert dict(genome.lengths) == {k: len(v) for k, v in _TEXT.items()}
  for name, low, high in [("chr1", 0, _SIZE), ("chr1", 3, 77), ("chr2", 5, 9)]:
    wanted = _TEXT[name][low:high]
    assert genome.letters(name, low, high).decode() == wanted
    found = genome_lib.codes(genome, name, low, high)
    assert found.tolist() == alphabet.encode(wanted).tolist()
  # To another process it goes without its open file.
  again = pickle.loads(pickle.dumps(genome))
  assert again.letters("chr2", 0, 4) == b"TTGA"


def test_plain_gzip_is_refused(tmp_path):
  pytest.importorskip("pyfaidx")
  path = tmp_path / "a.fa.gz"
  path.write_bytes(gzip.compress(_fasta(tmp_path).read_bytes()))
  with pytest.raises(files.UserError, match="bgzip"):
    _ = genome_lib.load(path).lengths
  with pytest.raises(files.UserError, match="is no genome"):
    genome_lib.load(tmp_path / "a.txt")


def test_letters_that_are_no_bases_are_named(tmp_path):
  genome = genome_lib.InMemory({"c": "ACGTJ"})
  with pytest.raises(files.UserError, match=r"c:1-5 holds 'J' at base 4"):
    genome_lib.build(genome, tmp_path)
  assert not (tmp_path / "index.json").exists()


def test_minus_strand_is_the_reverse_complement():
  genome = genome_lib.InMemory(_TEXT)
  plus = genome_lib.read(genome, intervals.Interval("chr1", 10, 90))
  minus = genome_lib.read(genome, intervals.Interval("chr1", 10, 90, "-"))
  assert np.array_equal(minus.codes, alphabet.reverse_complement(plus.codes))
  twice = alphabet.reverse_complement(minus.codes)
  assert np.array_equal(twice, plus.codes)
  for order in ("ACGT", "AGCT"):
    turned = alphabet.one_hot(plus.codes, order=order)[::-1, ::-1]
    assert np.array_equal(turned, alphabet.one_hot(minus.codes, order=order))


@pytest.mark.parametrize(
  ("start", "end"),
  [
    (-5, 3),
    (-9, -4),
    (_SIZE - 10, _SIZE + 10),
    (_SIZE + 2, _SIZE + 9),
    (-3, _SIZE + 5),
  ],
)
@pytest.mark.parametrize("strand", ["+", "-"])
def test_windows_that_stick_out_are_padded_never_shifted(start, end, strand):
  genome = genome_lib.InMemory(_TEXT)
  found = genome_lib.read(
    genome, intervals.Interval("chr1", start, end, strand)
  )
  text = "".join(
    _TEXT["chr1"][i] if 0 <= i < _SIZE else "N" for i in range(start, end)
  )
  wanted = alphabet.encode(text)
  inside = np.array([0 <= i < _SIZE for i in range(start, end)])
  if strand == "-":
    wanted, inside = alphabet.reverse_complement(wanted), inside[::-1]
  assert found.codes.tolist() == wanted.tolist()
  assert found.inside.tolist() == inside.tolist()


def test_circles_go_round():
  genome = genome_lib.InMemory({"c": "ACGTTG"})
  place = intervals.Interval("c", -2, 3)
  found = genome_lib.read(genome, place, circular=["c"])
  assert alphabet.decode(found.codes) == "TGACG"
  with pytest.raises(files.UserError, match="circle"):
    genome_lib.read(genome, intervals.Interval("c", 0, 7), circular=["c"])


def test_names_are_translated_or_refused():
  names = intervals.Names(["chr1", "chrM"], {"NC_1": "chr1"})
  assert [names(x) for x in ("1", "NC_1", "MT")] == ["chr1", "chr1", "chrM"]
  with pytest.raises(files.UserError, match="'chr9'.*right assembly"):
    names("chr9")
  with pytest.raises(files.UserError, match="no name of a sequence in peaks"):
    names.rename([intervals.Interval("scaffold", 0, 1)], "peaks")
  with pytest.raises(files.UserError, match="stands for"):
    intervals.Names(["chr1"], {"x": "y"})


def test_starts_of_epd(tmp_path):
  """Two lines of EPDnew's human file, whose places EPD gives as these."""
  path = tmp_path / "epd.bed"
  path.write_text(
    "chr1 959245 959305 NOC2L_1 900 - 959245 959256\n"
    "chr1 960583 960643 KLHL17_1 900 + 960632 960643\n"
  )
  found = annotation.read_epd(path)
  assert [x.start + 1 for x in found] == [959256, 960633]
  for x in found:
    form = {"upstream": 249, "downstream": 51, "strand": x.strand}
    window = intervals.around(x.chrom, x.start, **form)
    assert window.length == 300
    at = x.start - window.start if x.strand == "+" else window.end - 1 - x.start
    assert at == 249
  path.write_text("chr1 959245 959305 NOC2L_1 900 - 1 2\n")
  with pytest.raises(files.UserError, match="epd.bed, line 1"):
    annotation.read_epd(path)


_LOCUS = "LOCUS       chr2                      40 bp    DNA     linear   BCT"
_GENBANK = f"""{_LOCUS} 01-JAN-2020
ACCESSION   chr2
VERSION     chr2
FEATURES             Location/Qualifiers
     source          1..40
     CDS             complement(11..19)
                     /locus_tag="g1"
     CDS             join(21..25,31..34)
                     /locus_tag="g2"
ORIGIN
        1 acgtacgtac gtacgtacgt acgtacgtac gtacgtacgt
//
"""


def test_one_gene_in_three_formats(tmp_path):
  pytest.importorskip("Bio")
  bed, gff, gbk = (tmp_path / f"a.{x}" for x in ("bed", "gff", "gbk"))
  bed.write_text("chr2\t10\t19\tg1\t0\t-\n")
  gff.write_text(
    "chr2\tx\tCDS\t11\t19\t.\t-\t0\tID=g1;Note=a%2Cb\n>chr2\nACGT\n"
  )
  gbk.write_text(_GENBANK)
  wanted = intervals.Interval("chr2", 10, 19, "-", "g1")
  assert annotation.read_bed(bed) == [wanted]
  (feature,) = annotation.read_gff(gff, ["CDS"])
  assert feature.interval == wanted and feature.attributes["Note"] == "a,b"
  genome, found = annotation.read_genbank(gbk)
  assert found[0].interval == wanted
  assert genome.lengths == {"chr2": 40}
  # The first part of g2 holds 5 bases: one more is wanted by its codon.
  assert [x.phase for x in found[1:]] == [0, 1]


def test_lines_that_do_not_fit_are_named(tmp_path):
  bed, gff = tmp_path / "a.bed", tmp_path / "a.gff"
  bed.write_text("# x\nchr1\t1\t5\nchr1\tone\t5\n")
  with pytest.raises(files.UserError, match="a.bed, line 3"):
    annotation.read_bed(bed)
  bed.write_text("chr1\t5\t5\n")
  with pytest.raises(files.UserError, match="a.bed, line 1"):
    annotation.read_bed(bed)
  gff.write_text("chr1\tx\tCDS\t1\t5\n")
  with pytest.raises(files.UserError, match="a.gff, line 1.*nine"):
    annotation.read_gff(gff)
  gbk = tmp_path / "a.gbk"
  gbk.write_text("nothing")
  with pytest.raises(files.UserError, match="no GenBank"):
    annotation.read_genbank(gbk)


def test_peaks(tmp_path):
  path = tmp_path / "a.narrowPeak"
  path.write_text(
    "c\t100\t200\t.\t0\t.\t5\t-1\t-1\t30\nc\t1\t2\t.\t0\t.\t5\t-1\t-1\t-1\n"
  )
  assert annotation.read_summits(path) == [130, None]
  assert annotation.read_bed(path)[0].strand == "+"


@pytest.mark.parametrize(("covered", "label"), [(100, False), (101, True)])
def test_more_than_half_of_a_bin(covered, label):
  peak = intervals.Interval("c", 200, 200 + covered)
  found = annotation.covered_bins([peak, peak], "c", 650)
  assert found.tolist() == [False, label, False]


def test_variants(tmp_path):
  pytest.importorskip("pysam")
  path = tmp_path / "a.vcf"
  path.write_text(
    "##fileformat=VCFv4.2\n##contig=<ID=c,length=8>\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    "c\t2\trs1\tC\tT,G\t.\t.\t.\nc\t3\t.\tGT\tG\t.\t.\t.\n"
  )
  found = annotation.read_vcf(path)
  assert [(x.start, x.ref, x.alt) for x in found] == [
    (1, "C", "T"),
    (1, "C", "G"),
    (2, "GT", "G"),
  ]
  assert [x.single for x in found] == [True, True, False]
  genome = genome_lib.InMemory({"c": "ACGTACGT"})
  assert annotation.check_reference(genome, found) == 0
  other = genome_lib.InMemory({"c": "AAGTACGT"})
  with pytest.raises(files.UserError, match="2 of 3 variants.*c:2"):
    annotation.check_reference(other, found)


def test_runs_between_unknown_bases():
  genome = genome_lib.InMemory({"c": "NNACNGTNNNNA"})
  found = genome_lib.known_runs(genome, "c", gap=2)
  assert [(x.start, x.end) for x in found] == [(2, 7), (11, 12)]


def test_tracks(tmp_path):
  pybigtools = pytest.importorskip("pybigtools")
  path = tmp_path / "a.bw"
  rows = [("c", 10, 20, 1.5), ("c", 20, 30, 2.0)]
  pybigtools.open(str(path), "w").write({"c": 100}, rows)
  track = tracks.BigWig(path)
  assert track.lengths == {"c": 100}
  found = track.values(intervals.Interval("c", 18, 32))
  assert found.tolist() == [1.5] * 2 + [2.0] * 10 + [0.0] * 2
  turned = track.values(intervals.Interval("c", 18, 32, "-"))
  assert turned.tolist() == found[::-1].tolist()
  out = track.values(intervals.Interval("c", -2, 2), fill=-1)
  assert out.tolist() == [-1] * 4
  assert len(pickle.loads(pickle.dumps(track)).lengths) == 1
  with pytest.raises(files.UserError, match="has no sequence 'd'"):
    track.values(intervals.Interval("d", 0, 2))
  path.write_bytes(b"nothing of the kind")
  with pytest.raises(files.UserError, match="cannot read"):
    _ = tracks.BigWig(path).lengths


def test_intervals_of_bigbed(tmp_path):
  pybigtools = pytest.importorskip("pybigtools")
  path = tmp_path / "a.bb"
  rows = [("c", 5, 20, "a\t0\t-"), ("c", 40, 50, "b\t0\t."), ("d", 1, 3, "")]
  pybigtools.open(str(path), "w").write({"c": 60, "d": 9}, iter(rows))
  track = tracks.BigBed(path)
  assert dict(track.lengths) == {"c": 60, "d": 9}
  found = track.overlapping(intervals.Interval("c", -5, 99))
  assert found == [
    intervals.Interval("c", 5, 20, "-", "a"),
    intervals.Interval("c", 40, 50, "+", "b"),
  ]
  assert track.overlapping(intervals.Interval("c", 19, 40)) == found[:1]
  assert track.overlapping(intervals.Interval("c", 20, 40)) == []
  (bare,) = track.overlapping(intervals.Interval("d", 0, 9))
  assert (bare.start, bare.end, bare.name) == (1, 3, "")
  with pytest.raises(files.UserError, match="has no sequence 'e'"):
    track.overlapping(intervals.Interval("e", 0, 2))
  other = tmp_path / "a.bw"
  pybigtools.open(str(other), "w").write({"c": 60}, [("c", 1, 2, 1.0)])
  with pytest.raises(files.UserError, match="is bigWig"):
    _ = tracks.BigBed(other).lengths


def test_lifting(tmp_path):
  """Two blocks of one chain, ten bases apart there and none here."""
  pytest.importorskip("liftover")
  path = tmp_path / "a.chain"
  path.write_text("chain 1000 old 100 + 0 60 new 200 + 5 75 1\n30 0 10\n30\n\n")
  at = [intervals.Interval("old", i, i + 1, "-", f"g{i}") for i in (3, 40, 99)]
  found, lost = lifting.lift(at, path)
  assert [(x.chrom, x.start, x.name) for x in found] == [
    ("new", 8, "g3"),
    ("new", 55, "g40"),
  ]
  assert lost == 1 and found[0].strand == "-"
  bed = tmp_path / "starts.bed"
  bed.write_text("old\t3\t4\tg\t0\t+\nold\t99\t100\th\t0\t+\n")
  genome = genome_lib.InMemory({"new": "A" * 200})
  (start,) = places.starts(str(bed), genome, str(path))
  assert (start.chrom, start.start) == ("new", 8)
  with pytest.raises(files.UserError, match="no place for any"):
    lifting.lift(at[2:], path)
  with pytest.raises(files.UserError, match="more than one base"):
    lifting.lift([intervals.Interval("old", 0, 2)], path)
