"""Floors, and the genomes of packages from small ones of the same form."""

import io
import zipfile

import numpy as np
import pytest

from experiments.common import files
from genomics import alphabet
from genomics import data
from genomics import fetch
from genomics import genome as genome_lib
from genomics import kmers
from genomics import markov
from genomics import metrics
from genomics import promoters
from genomics import sources


def _chain(length, seed, sharp=3.0):
  """A Markov chain of order 1 with its exact entropy rate in bits."""
  rng = np.random.default_rng(7)
  table = rng.dirichlet(np.ones(4) / sharp, 4)
  rng = np.random.default_rng(seed)
  draws, codes = rng.random(length), np.zeros(length, np.uint8)
  edges = table.cumsum(1)
  for i in range(1, length):
    codes[i] = np.searchsorted(edges[codes[i - 1]], draws[i])
  share = np.bincount(codes, minlength=4) / length
  logs = np.log2(np.maximum(table, 1e-300))
  return np.minimum(codes, 3), float(-np.sum(share[:, None] * table * logs))


def test_markov_finds_the_entropy_of_a_chain():
  train, rate = _chain(30_000, 0)
  test, _ = _chain(10_000, 1)
  one = markov.Causal(1, [train], both_strands=False).bits(test).mean()
  assert one == pytest.approx(rate, abs=0.03)
  four = markov.Causal(4, [train], both_strands=False).bits(test).mean()
  assert (
    one <= four < one + 0.05
  )  # More context is of no use, and harms little.
  zero = markov.Causal(0, [train], both_strands=False).bits(test).mean()
  assert zero > one + 0.1


def test_no_data_is_two_bits():
  test = np.arange(40, dtype=np.uint8) % 4
  empty = [np.zeros(0, np.uint8)]
  assert np.all(markov.Causal(3, empty).bits(test) == 2.0)
  bits, _ = markov.Bidirectional(2, empty).score(test)
  assert np.all(bits == 2.0)


def test_probabilities_sum_to_one_and_unknown_bases_are_left_out():
  train, _ = _chain(5000, 0)
  for table in markov.Causal(3, [train]).tables:
    assert np.allclose(table.sum(1), 1)
  for table in markov.Bidirectional(2, [train]).tables:
    assert np.allclose(table.sum(1), 1)
  codes = alphabet.encode("ACGNNTTAC")
  assert len(markov.Causal(3, [train]).bits(codes)) == 7
  bits, right = markov.Bidirectional(2, [train]).score(codes)
  assert len(bits) == len(right) == 7 and np.isfinite(bits).all()
  order = markov.Causal(2, [train])
  # After N the context begins anew: the first T is predicted by order 0.
  wanted = -np.log2(order.tables[0][0, 3])
  assert order.bits(codes)[3] == pytest.approx(wanted)


def test_both_strands_make_strands_alike():
  train, _ = _chain(5000, 0)
  codes, _ = _chain(400, 2)
  other = alphabet.reverse_complement(codes)
  both = markov.Bidirectional(2, [train])
  bits, _ = both.score(codes)
  again, _ = both.score(other)
  assert np.allclose(bits, again[::-1])
  single = markov.Bidirectional(2, [train], both_strands=False)
  assert not np.allclose(single.score(codes)[0], single.score(other)[0][::-1])


def test_neighbours_on_both_sides_by_hand():
  """Counts of A?C in one sequence: twice G, once T."""
  train = [alphabet.encode("AGCAGCATC")]
  model = markov.Bidirectional(1, train, both_strands=False)
  lower = model.tables[0][0]
  wanted = (2 + 2 * lower[2]) / (3 + 2)
  bits, _ = model.score(alphabet.encode("AGC"))
  assert bits[1] == pytest.approx(-np.log2(wanted))


def test_words_give_substituted_negatives_away():
  """And not permuted ones: see docs/genomics.md before believing figures."""
  pytest.importorskip("sklearn")
  codes, _ = _chain(400_000, 0, sharp=0.5)
  genome = genome_lib.InMemory({"c": alphabet.decode(codes)})
  places = range(8000, 392_000, 4000)
  starts = [genome_lib.intervals.Interval("c", p, p + 1) for p in places]
  split = {
    "train": [promoters.Region("c", 0, 250_000)],
    "test": [promoters.Region("c", 250_000)],
  }
  found = {}
  for kind in ("substitute_uniform", "permute_pieces"):
    parts = promoters.examples(
      genome, starts, split, upstream=5000, downstream=3000, negatives=kind
    )
    model = kmers.KmerLogistic(5).fit(
      parts["train"].codes, parts["train"].labels
    )
    chances = model.probabilities(parts["test"].codes)[:, 1]
    found[kind] = metrics.binary(parts["test"].labels, chances)
  assert found["substitute_uniform"]["f1"] > 0.99
  assert found["permute_pieces"]["auroc"] < 0.7


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The fly and four bacteria in small, as `genomics.fetch` leaves them."""
  monkeypatch.setenv("JAXATTN_DATA", str(tmp_path))
  rng = np.random.default_rng(0)
  text = alphabet.decode(rng.integers(0, 4, 9000))
  plus, minus = (
    text[1000:3000],
    alphabet.decode(
      alphabet.reverse_complement(alphabet.encode(text[5000:7000]))
    ),
  )
  upstream = (
    f">NM_1_up_2000_chr2R_1001_f chr2R:1001-3000\n{plus}\n"
    f">NM_2_up_2000_chr2R_5001_r chr2R:5001-7000\n{minus}\n"
    f">NM_3_up_2000_chr2R_5001_r chr2R:5001-7000\n{minus}\n"
    ">NM_4_up_2000_chr2R_-9_f chr2R:-9-5\nACGT\n"
    ">NM_5_up_2000_chrX_1_f chrX:1-2000\nACGT\n"
  )
  content = {
    "fly_chr2R": {"chr2R.fa": f">chr2R\n{text[:5000]}\n{text[5000:]}\n"},
    "fly_upstream": {"dm3.fa": upstream},
    "bacteria": {"b/x.fa": ">1\nACGT\n", "a/DH1.fa": ">1\nAC\n>2\nGT\n"},
  }
  for name, documents in content.items():
    with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
      for path, body in documents.items():
        archive.writestr(path, body)
  return text


def test_starts_of_the_fly(cache):
  genome = data.mapped("fly_chr2R")
  found = data.fly_starts(genome)
  assert [(x.start, x.strand) for x in found] == [(3000, "+"), (4999, "-")]
  assert found[0].name == "NM_1"
  again = data.mapped("fly_chr2R")  # From the cache now.
  assert again.letters("chr2R", 0, 50).decode() == cache[:50]
  other = genome_lib.InMemory({"chr2R": cache[1:]})
  with pytest.raises(files.UserError, match="NM_1.* is not in the genome"):
    data.fly_starts(other)


def test_strains_are_held_out_whole(cache):
  genome = data.mapped("bacteria")
  assert data.species(genome) == ("a", "b")
  assert data.strains(genome) == (["b/x/1"], ["a/DH1/1", "a/DH1/2"])


def test_fetch_says_what_to_do(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("JAXATTN_DATA", str(tmp_path))
  with pytest.raises(files.UserError, match="genomics.fetch fly_chr2R"):
    fetch.load("fly_chr2R")
  monkeypatch.setattr(fetch.fetch, "SOURCES", {})
  monkeypatch.setattr("sys.argv", ["fetch"])
  assert fetch.main() == 0
  assert "fly_upstream" in capsys.readouterr().out
  monkeypatch.setenv("PATH", str(tmp_path))
  monkeypatch.setattr("sys.argv", ["fetch", "leptospira"])
  assert fetch.main() == 1
  assert "apt-get is not here" in capsys.readouterr().err


def test_sources_take_their_files(tmp_path, monkeypatch):
  """From a folder as `dpkg-deb -x` would leave it."""
  here = tmp_path / "usr/share/doc/x/references"
  (here.parent / "E.Coli/references").mkdir(parents=True)
  packed = io.BytesIO()
  import gzip

  with gzip.GzipFile(fileobj=packed, mode="w") as file:
    file.write(b">1\nACGT\n")
  path = here.parent / "E.Coli/references/DH1.fasta.gz"
  path.write_bytes(packed.getvalue())
  monkeypatch.setattr(sources, "unpack", lambda _: tmp_path)
  found = sources.GENOMES["bacteria"].extract(tmp_path / "a.deb")
  assert found == [("e_coli/DH1.fa", b">1\nACGT\n")]
  with pytest.raises(files.UserError, match="a.deb holds no"):
    sources.GENOMES["fly_upstream"].extract(tmp_path / "a.deb")


@pytest.mark.slow
def test_markov_of_order_two_on_the_fly():
  """The figure of docs/genomics.md, where the chromosome has been fetched."""
  try:
    genome = data.mapped("fly_chr2R")
  except files.UserError as error:
    pytest.skip(str(error))
  size = genome.lengths["chr2R"]
  codes = genome_lib.codes(genome, "chr2R", 0, size)
  cut = size * 9 // 10
  model = markov.Causal(2, [codes[:cut]], both_strands=False)
  assert model.bits(codes[cut:]).mean() == pytest.approx(1.976, abs=5e-4)
