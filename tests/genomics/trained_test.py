"""Programs on trained runs: variants, mutagenesis, embeddings, and mistakes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from experiments.common import loop
from genomics import alphabet
from genomics import annotation
from genomics import classify
from genomics import genome as genome_lib
from genomics import intervals
from genomics import mutagenesis
from genomics import places
from genomics import tokenizers
from genomics import trained
from genomics.embed import windows as embed_windows
from genomics.mutagenesis import region
from genomics.variants import score
from tests.genomics import tiny


def _run_of(name, config):
  """A run as it would be loaded, with parameters as they are drawn."""
  tokenizer = tokenizers.make(config.tokenizer)
  module = tiny.module(name)
  tokens = jnp.zeros((1, 8), jnp.int32)
  if name == "pretrain":
    model, more = module.make_model(config, tokenizer.vocab_size), ()
  else:
    model = classify.make_model(config, tokenizer.vocab_size, 2, "classes")
    more = (jnp.ones((1, 8), bool),)
  found = jax.jit(model.init)(jax.random.key(3), tokens, *more)
  bases = 60 if name == "promoter" else config.bases
  return trained.Trained(
    name, config, model, classify.nn.unbox(found), tokenizer, bases, 0
  )


@pytest.fixture(scope="module")
def promoter():
  return _run_of("promoter", tiny.config("promoter"))


@pytest.fixture(scope="module")
def masked():
  return _run_of("pretrain", tiny.config("pretrain"))


@pytest.fixture(scope="module")
def genome():
  return places.genome("synthetic")


def _vcf(path: pathlib.Path, rows) -> pathlib.Path:
  pytest.importorskip("pysam")
  lines = [
    "##fileformat=VCFv4.2",
    "##contig=<ID=chr1>",
    "##contig=<ID=1>",
    "##contig=<ID=chrZ>",
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO",
  ]
  lines += ["\t".join((*map(str, row), ".", ".", ".")) for row in rows]
  path.write_text("\n".join(lines) + "\n")
  return path


def _ref(genome, position, size=1):
  letters = genome.letters("chr1", position - 1, position - 1 + size)
  return letters.decode().upper()


def _other(base):
  return "ACGT"[("ACGT".index(base) + 1) % 4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["promoter", "pretrain"])
def test_runs_come_back_from_their_workdir(name, tmp_path, monkeypatch):
  """With the parameters that were trained, and no data at hand."""
  pytest.importorskip("sklearn")
  form = {"steps": 2, "warmup_steps": 1, "eval_every": 0, "log_every": 1}
  held, train = {}, loop.train

  def keeping(*args):
    held["state"] = train(*args).state
    return train(*args)

  monkeypatch.setattr(loop, "train", keeping)
  tiny.module(name).run(tiny.config(name, **form), tmp_path)
  found = trained.load(tmp_path)
  assert (found.program, found.step) == (name, 2)
  jax.tree.map(
    np.testing.assert_array_equal,
    found.variables["params"],
    classify.nn.unbox(held["state"]["params"]),
  )
  again = trained.load(tmp_path)
  assert trained.digest(found) == trained.digest(again)
  (tmp_path / "config.json").write_text('{"steps": 1}')
  with pytest.raises(files.UserError, match="another version"):
    trained.load(tmp_path)


def test_a_folder_without_checkpoint_is_named(tmp_path):
  with pytest.raises(files.UserError, match="holds no checkpoint"):
    trained.load(tmp_path)


def test_a_file_of_variants(promoter, genome, tmp_path):
  """One line for each other allele; the table does not depend on batches."""
  bases = [_ref(genome, p) for p in (500, 900)]
  rows = [
    ("1", 500, "rs1", bases[0], f"{_other(bases[0])},<DEL>"),
    ("chr1", 900, ".", bases[1], f"{bases[1]}GG"),
    ("chr1", 950, ".", _ref(genome, 950, 3), _ref(genome, 950)),
  ]
  path, tables = _vcf(tmp_path / "a.vcf", rows), []
  for size in (1, 16):
    options = score.Options(batch_size=size)
    output = tmp_path / f"{size}.tsv"
    assert score.write(promoter, genome, path, output, options) == (3, 0)
    tables.append([x.split("\t") for x in output.read_text().splitlines()])
  head, *lines = tables[1]
  assert head == [
    *("chrom", "position", "name", "ref", "alt", "promoter_log_odds")
  ]
  assert [x[:3] for x in lines] == [
    ["chr1", "500", "rs1"],
    ["chr1", "900", "."],
    ["chr1", "950", "."],
  ]
  effects = np.array([[float(x[-1]) for x in rows[1:]] for rows in tables])
  assert np.allclose(effects[0], effects[1], atol=1e-5)
  assert np.all(np.abs(effects) > 1e-6)
  # As by hand: the model on both windows.
  change = annotation.Variant("chr1", 499, bases[0], _other(bases[0]))
  pair = score.window(genome, change, 60, 30)
  one, other = trained.scores(promoter, both_strands=False)(pair)
  assert float(lines[0][-1]) == pytest.approx(
    float(other[0] - one[0]), abs=1e-5
  )


@pytest.mark.parametrize(
  ("row", "match"),
  [
    (("chr1", 500, ".", "X", "A"), r"chr1:500 [ACGT]>A.*not [ACGT].*assembly"),
    (("chrZ", 500, ".", "A", "C"), "chrZ:500 A>C.*no sequence 'chrZ'.*--alias"),
    (("chr1", 20, "near", "=", "!"), r"chr1:20 .*\(near\).*sticks out.*--pad"),
    (("chr1", 9000, ".", "=", "long"), "do not fit into windows of 60"),
  ],
)
def test_variants_that_do_not_fit_are_named(
  promoter, genome, row, match, tmp_path
):
  """Before anything is scored, and a table that is there stays."""
  chrom, position, name, ref, alt = row
  here = _ref(genome, position)
  ref = {"=": here, "X": _other(here)}.get(ref, ref)
  alt = {"!": _other(here), "long": here + "A" * 40}.get(alt, alt)
  if ref == alt:
    alt = _other(alt)
    match = match.replace(">A", f">{alt}")
  good = ("chr1", 700, ".", _ref(genome, 700), _other(_ref(genome, 700)))
  path = _vcf(tmp_path / "a.vcf", [good, (chrom, position, name, ref, alt)])
  output = tmp_path / "a.tsv"
  output.write_text("old")
  with pytest.raises(files.UserError, match=match):
    score.write(promoter, genome, path, output, score.Options())
  assert output.read_text() == "old"
  assert sorted(x.name for x in tmp_path.iterdir()) == ["a.tsv", "a.vcf"]


def test_mismatches_may_be_left_out_and_windows_filled_up(
  promoter, genome, tmp_path
):
  here = _ref(genome, 20)
  rows = [
    ("chr1", 500, ".", _other(_ref(genome, 500)), _ref(genome, 500)),
    ("chr1", 20, ".", here, _other(here)),
  ]
  path = _vcf(tmp_path / "a.vcf", rows)
  options = score.Options(skip_mismatches=True, pad=True)
  assert score.write(promoter, genome, path, tmp_path / "a", options) == (1, 1)
  path = _vcf(tmp_path / "b.vcf", rows[:1])
  with pytest.raises(files.UserError, match="no variant to score"):
    score.write(promoter, genome, path, tmp_path / "b", options)
  with pytest.raises(files.UserError, match="no such file"):
    score.write(promoter, genome, tmp_path / "c", tmp_path / "d", options)


def test_masked_runs_give_the_odds_of_a_hidden_base(masked):
  """For substitutions of bases; and both turn their sign with the alleles."""
  codes = np.random.default_rng(0).integers(0, 4, 62).astype(np.uint8)
  codes[20] = 0
  other = codes.copy()
  other[20] = 2
  effects = trained.effects(masked, both_strands=False)
  found = effects([(codes, other), (other, codes)])
  assert found[0] == pytest.approx(-found[1], abs=1e-5)
  ids = np.concatenate([[tokenizers.CLS], codes + 5, [tokenizers.SEP]])
  ids[21] = tokenizers.MASK
  logits = masked.model.apply(masked.variables, jnp.asarray(ids)[None])[0, 21]
  assert found[0, 0] == pytest.approx(float(logits[7] - logits[5]), abs=1e-4)
  both = trained.effects(masked, both_strands=True)
  turned = [alphabet.reverse_complement(x) for x in (codes, other)]
  assert both([(codes, other)]) == pytest.approx(both([turned]), abs=1e-5)
  # A base more in a run of the same: one token differs, wherever it stands.
  run = np.concatenate([codes[:30], np.full(4, 1, np.uint8), codes[30:50]])
  rows = trained._differing(masked, np.delete(run, 31), run)
  assert [int(hidden.sum()) for _, _, hidden in rows] == [0, 1]


def test_runs_without_scores_are_refused(masked):
  causal = tiny.config("pretrain", objective="causal")
  with pytest.raises(files.UserError, match="objective=masked"):
    trained.names(_run_of("pretrain", causal))
  with pytest.raises(files.UserError, match="--method=exact"):
    trained.of_channels(masked)


@pytest.mark.parametrize("strand", ["+", "-"])
def test_a_region_base_by_base(promoter, genome, strand):
  """As by hand, along the strand; channels and slopes are of the same model."""
  place = intervals.Interval("chr1", 500, 512, strand)
  found = region.score(promoter, genome, place, region.Options())
  letters = genome_lib.read(genome, place).codes
  assert np.array_equal(found.sequence, alphabet.one_hot(letters))
  assert np.all(found.scores[found.sequence > 0] == 0)
  around = intervals.Interval("chr1", 476, 536, strand)
  codes = genome_lib.read(genome, around).codes
  other = codes.copy()
  other[24 + 3] = base = (codes[24 + 3] + 1) % 4
  f = trained.scores(promoter, both_strands=False)
  one, two = f([codes, other])[:, 0]
  assert found.scores[3, base] == pytest.approx(two - one, abs=1e-5)
  wanted = -found.scores.mean(1)
  assert np.allclose(found.heights.sum(1), wanted, atol=1e-6)
  channels = trained.of_channels(promoter)
  for x, value in ((codes, one), (other, two)):
    at = jnp.asarray(alphabet.one_hot(x))
    assert float(channels(at)[0]) == pytest.approx(value, abs=1e-5)


def test_what_bases_add_sums_to_the_difference(promoter, genome):
  """Completeness, of a model that is not linear, and by vmap over starts."""
  codes = genome_lib.codes(genome, "chr1", 476, 536)
  x = jnp.asarray(alphabet.one_hot(codes))
  channels = trained.of_channels(promoter)

  def f(x):
    return channels(x)[0]

  @jax.jit
  def found(x, starts):
    values = jax.vmap(
      lambda start: mutagenesis.integrated_gradients(f, x, start, steps=128)
    )(starts)
    return values, jax.vmap(f)(starts), f(x)

  starts = jnp.stack([jnp.full_like(x, 0.25), jnp.zeros_like(x), x[::-1]])
  values, before, after = found(x, starts)
  sums = np.asarray(values.sum((1, 2)))
  assert np.abs(after - before).max() > 1e-3
  # The rule's error falls as 1 / steps^2; float32 leaves some 1e-6.
  assert np.allclose(sums, after - before, atol=1e-4)
  assert np.allclose(
    mutagenesis.integrated_gradients(f, x, x, steps=2), 0, atol=1e-7
  )


@pytest.mark.parametrize(
  ("place", "options", "match"),
  [
    ((500, 600), {}, "100 bases.*do not fit into windows of 60"),
    ((5, 15), {}, r"chr1:6-15.*sticks out.*--before"),
    ((119_990, 120_010), {}, "ends beyond 'chr1'"),
    ((500, 510), {"output": 1}, r"--score must lie in \[0, 1\)"),
    ((500, 510), {"method": "deeplift"}, "exact, gradient, integrated"),
    ((500, 510), {"before": 55}, "with 55 before"),
  ],
)
def test_regions_that_do_not_fit_are_named(
  promoter, genome, place, options, match
):
  where = intervals.Interval("chr1", *place)
  with pytest.raises(files.UserError, match=match):
    region.score(promoter, genome, where, region.Options(**options))


def test_regions_are_written_with_a_logo(promoter, genome, tmp_path):
  pytest.importorskip("logomaker")
  place = intervals.Interval("chr1", 500, 506)
  options = region.Options(method="integrated", steps=8)
  found = region.score(promoter, genome, place, options)
  region.write(found, tmp_path / "a.npz", tmp_path / "a.svg")
  held = np.load(tmp_path / "a.npz")
  assert np.array_equal(held["scores"], found.scores)
  assert (str(held["chrom"]), int(held["start"])) == ("chr1", 500)
  assert "<svg" in (tmp_path / "a.svg").read_text()
  for paths in (("a.csv", ""), ("a.npz", "a.gif")):
    with pytest.raises(files.UserError, match="must end in"):
      region.check_paths(*paths)


def test_embeddings_of_a_bed_file(masked, promoter, genome, tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  bed = tmp_path / "a.bed"
  bed.write_text("1\t500\t540\ta\t0\t-\nchr1\t700\t750\tb\t0\t+\n")
  folder = tmp_path / "out"
  form = {"rows": 1}
  assert embed_windows.write(masked, genome, bed, folder, **form) == (2, 2)
  assert embed_windows.write(masked, genome, bed, folder, **form) == (2, 0)
  table = parquet.read_table(sorted(folder.glob("*.parquet"))).to_pydict()
  assert table["name"] == ["a", "b"] and table["chrom"] == ["chr1", "chr1"]
  assert len(table["embedding"][0]) == masked.config.width
  with pytest.raises(files.UserError, match="vectors of another run"):
    embed_windows.write(promoter, genome, bed, folder, **form)
  for text, match in (
    ("chrZ\t5\t9\n", "no sequence 'chrZ'"),
    ("chr1\t119990\t120010\n", "chr1:119991-120010 sticks out.*--pad"),
    ("chr1\t500\t600\n", "chr1:501-600: 100 bases have 102 tokens"),
    ("", "holds no window"),
  ):
    bed.write_text(text)
    with pytest.raises(files.UserError, match=match):
      embed_windows.write(masked, genome, bed, tmp_path / "other")
  assert not (tmp_path / "other").exists()
