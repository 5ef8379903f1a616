"""The programs: whole runs in small, stopped runs, and mistakes."""

import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from genomics import alphabet
from genomics import classify
from genomics import deepsea
from genomics import embed
from genomics import genome as genome_lib
from genomics import intervals
from genomics import places
from genomics import promoters
from genomics import tokenizers
from genomics.chromatin import sources
from genomics.genes import labels as labels_lib
from genomics.pretrain import rows as pretrain_rows
from tests.genomics import tiny

_QUICK = {"steps": 3, "warmup_steps": 1, "eval_every": 0, "log_every": 1}
_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_from_a_pretrained_encoder_to_a_report(tmp_path):
  """Of promoters, both strands; the same command again only says the result."""
  pytest.importorskip("sklearn")
  pretrain = tiny.module("pretrain")
  quick = tiny.config("pretrain", **_QUICK, length=62, bases=60)
  found = pretrain.run(quick, tmp_path / "pretrained")
  assert found["scores"]["bits_per_base"] > 1
  assert found["floors"]["uniform"] == 2.0
  train, workdir = tiny.module("promoter"), tmp_path / "whole"
  form = _QUICK | {
    "initial": str(tmp_path / "pretrained"),
    "initial_part": "encoder",
    "positions": "rotary",
    "both_strands": True,
  }
  train.run(tiny.config("promoter", **form), workdir)
  report = (workdir / "report" / "report.md").read_text()
  for text in ("logistic regression", "Leaks", "95 %", "floors"):
    assert text in report
  held = json.loads((workdir / "report/results.json").read_text())
  assert held["interval"][0] <= held["scores"]["f1"] <= held["interval"][1]
  assert train.run(tiny.config("promoter", **form), workdir) == held
  with pytest.raises(files.UserError, match="data_seed"):
    train.run(tiny.config("promoter", **form, data_seed=5), workdir)
  with pytest.raises(files.UserError, match="both need the same sizes"):
    wide = tiny.config("promoter", **form, width=32)
    train.run(wide, tmp_path / "wide")


@pytest.mark.parametrize(
  "name",
  [
    "promoter",
    pytest.param("chromatin", marks=pytest.mark.slow),
    pytest.param("genes", marks=pytest.mark.slow),
    pytest.param("species", marks=pytest.mark.slow),
  ],
)
def test_whole_runs_in_small(name, tmp_path):
  pytest.importorskip("sklearn")
  found = tiny.module(name).run(tiny.config(name, **_QUICK), tmp_path)
  value = found["scores"][found["headline"]]
  assert np.isfinite(value) and found["floors"]
  report = (tmp_path / "report" / "report.md").read_text()
  assert "floors" in report and found["headline"].replace("_", " ") in report


@pytest.mark.slow
def test_a_causal_run(tmp_path):
  quick = tiny.config("pretrain", **_QUICK, objective="causal")
  found = tiny.module("pretrain").run(quick, tmp_path)
  # After three steps about uniform over the vocabulary of 9.
  assert 1.9 < found["scores"]["bits_per_base"] < 4.5
  assert found["scores"]["bases_per_token"] == 1


@pytest.mark.parametrize(
  ("objective", "name", "size"),
  [("masked", "nucleotide", 1), ("causal", "kmer:2", 2)],
)
def test_scores_of_a_uniform_model(objective, name, size):
  """log2(vocabulary) a token, over the bases that the tokens spell."""
  train = tiny.module("pretrain")
  config = tiny.config(
    "pretrain", objective=objective, length=66, repeat_weight=0.5
  )
  tokenizer = tokenizers.make(name)
  model = train.make_model(config, tokenizer.vocab_size)
  tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  shapes = classify.nn.unbox(shapes)["params"]
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
  window = [intervals.Interval("chr1", 0, 62)]
  text = places.genome("synthetic").letters("chr1", 0, 62).decode()
  genome = genome_lib.InMemory({"chr1": text[:40] + text[40:].lower()})
  rows = pretrain_rows.Rows(genome, window, tokenizer, 66)

  @jax.jit
  def sums(batch):
    keys = jax.random.split(jax.random.key(0), 2)
    masking = train.check(config)
    return train.sums_of(config, model, masking, params, {}, batch, keys, None)[
      0
    ]

  found = jax.tree.map(float, sums(next(rows.batches(2))))
  bits = found["nats"] / np.log(2) / found["bases"]
  assert bits == pytest.approx(np.log2(tokenizer.vocab_size) / size)
  if objective == "causal":
    assert found["bases"] == 62
  # Lower case marks repeats: the model is uniform there as well.
  assert 0 < found["repeat_bases"] < found["bases"]
  inside = found["repeat_nats"] / np.log(2) / found["repeat_bases"]
  assert inside == pytest.approx(bits, rel=1e-5)
  each = found["nats"] / found["tokens"]  # And each token has the same loss.
  assert found["weighted"] / found["weights"] == pytest.approx(each, rel=1e-5)
  assert found["tokens"] / 2 < found["weights"] < found["tokens"]


@pytest.mark.parametrize("name", tiny.PROGRAMS)
def test_configurations_and_programs_exist(name):
  folder = _ROOT / "genomics" / name
  found = sorted((folder / "configs").glob("[a-z]*.py"))
  assert len(found) >= 3  # smoke, a CPU's, an accelerator's.
  for path in found:
    loaded = importlib.import_module(f"genomics.{name}.configs.{path.stem}")
    config = loaded.get_config()
    assert isinstance(config, tiny.module(name).Config)
    _make(name, config)
    assert "Command:" in loaded.__doc__
  assert f"genomics.{name}.main" in (folder / "main.py").read_text()


def _make(name, config):
  module = tiny.module(name)
  if name == "pretrain":
    return module.make_model(config, 9)
  return classify.make_model(config, 9, 2, "classes")


_OPTIONS = {
  "bigbird": {"block": 8, "num_random": 1},
  "linear": {},
  "performer": {},
  "longformer": {"window": 8, "dilated_heads": 0},
  "sliding_window": {"window": 4, "right": 3},
  "sparse_transformer": {"stride": 8},
  "reformer": {"chunk": 8},
  "routing": {"num_clusters": 4},
}


@pytest.mark.parametrize("method", _OPTIONS)
def test_methods_by_flag(method):
  options = {"method": method, "method_options": _OPTIONS[method]}
  _make("promoter", tiny.config("promoter", **options))


@pytest.mark.parametrize(
  ("name", "changes", "match"),
  [
    ("promoter", {"method": "densee"}, "Did you mean 'dense'"),
    ("promoter", {"length": 50}, "62 tokens.*more than --config.length 50"),
    ("promoter", {"test": "chr1:1-90000"}, "share bases"),
    ("promoter", {"test": "chr7"}, "no sequence 'chr7'"),
    ("promoter", {"upstream": 0}, "upstream must be positive"),
    ("promoter", {"pooling": "max"}, "pooling"),
    ("promoter", {"genome": "a.txt"}, "is no genome"),
    ("species", {"bases": 99_999}, "lower --config.bases"),
    ("chromatin", {"data": ""}, "train.mat"),
    ("chromatin", {"positive_weight": 0.0}, "positive_weight"),
    ("genes", {"bases": 1400}, "more than --config.length"),
    ("genes", {"tokenizer": "kmer:3"}, "tokenizer=nucleotide"),
    ("pretrain", {"objective": "both"}, "masked, causal"),
    ("pretrain", {"rate": 1.5}, "rate must lie"),
    ("pretrain", {"bases": 999_999}, "no window"),
  ],
)
def test_mistakes_are_named(name, changes, match, tmp_path, monkeypatch):
  monkeypatch.setattr("genomics.promoter.train.floors_of", lambda *_: {})
  with pytest.raises(files.UserError, match=match):
    tiny.module(name).run(tiny.config(name, **_QUICK, **changes), tmp_path)
  assert not (tmp_path / "report").exists()


def test_rows_of_both_strands_have_their_labels():
  codes = np.array([[0, 1, 2, 4, 3]], np.uint8)
  labels = np.array([[4, 1, 2, 0, 6]], np.int32)
  rows = classify.Rows(
    classify.Arrays(codes, labels),
    tokenizers.NucleotideTokenizer(),
    8,
    objective="bases",
    both_strands=True,
    turn_labels=labels_lib.TURN,
  )
  one, other = rows[0], rows[1]
  assert one["labels"].tolist() == [0, 4, 1, 2, 0, 6, 0, 0]
  assert one["weights"].tolist() == [0, 1, 1, 1, 0, 1, 0, 0]
  assert other["inputs"].tolist() == [1, 5, 4, 6, 7, 8, 2, 0]
  assert other["labels"].tolist() == [0, 1, 0, 7, 6, 9, 0, 0]
  twice = labels_lib.TURN[labels_lib.TURN]
  assert twice.tolist() == list(range(labels_lib.CLASSES))


def test_predictions_for_bases_turn_with_the_strand():
  """With both strands: those of the reverse complement, turned round."""
  config = tiny.config("genes")
  model = classify.make_model(config, 9, labels_lib.CLASSES, "bases")
  mesh = classify.sharding.make_mesh("data=1,fsdp=1")
  codes = np.random.default_rng(0).integers(0, 4, (3, 20)).astype(np.uint8)
  variables = model.init(
    jax.random.key(0), jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
  )
  variables = classify.nn.unbox(variables)
  predict = classify.Predictor(
    model, mesh, 8, both_strands=True, turn_outputs=labels_lib.TURN
  )

  def logits(codes):
    labels = np.zeros(codes.shape, np.int32)
    source = classify.Arrays(codes, labels)
    tokenizer = tokenizers.NucleotideTokenizer()
    rows = classify.Rows(source, tokenizer, config.length, objective="bases")
    return predict(variables["params"], {}, rows)[0].reshape(3, 20, -1)

  one, other = logits(codes), logits(alphabet.reverse_complement(codes))
  turned = other[:, ::-1][..., labels_lib.TURN]
  assert np.allclose(one, turned, atol=1e-5)


def test_open_frames_on_both_strands():
  gene = "ATG" + "GCA" * 6 + "TAA"
  codes = alphabet.encode("CCCC" + gene + "CCCCC")
  labels = labels_lib.of_open_frames(codes, least=20)
  assert labels[4:7].tolist() == [4, 4, 4] and labels[25:28].tolist() == [5] * 3
  assert np.flatnonzero(labels).tolist() == list(range(4, 28))
  other = labels_lib.of_open_frames(
    alphabet.reverse_complement(codes), least=20
  )
  assert other.tolist() == labels_lib.TURN[labels[::-1]].tolist()
  assert not labels_lib.of_open_frames(codes, least=40).any()
  broken = codes.copy()
  broken[12] = 4  # Nothing goes over an unknown base.
  assert not labels_lib.of_open_frames(broken, least=20).any()


def test_regions_of_configurations():
  genome = genome_lib.InMemory({"chr1": "A" * 20, "chr2": "A" * 9})
  found = places.regions("2, chr1:11-999", genome)
  assert found == [
    promoters.Region("chr2", 0, 9),
    promoters.Region("chr1", 10, 20),
  ]
  with pytest.raises(files.UserError, match="beyond the end"):
    places.regions("chr1:21-30", genome)
  with pytest.raises(files.UserError, match="no region"):
    places.regions(" ", genome)


def test_deepsea_files_become_rows(tmp_path):
  """As they are, and with more of the genome around their bins."""
  io = pytest.importorskip("scipy.io")
  genome = genome_lib.InMemory(
    {"chr1": places.genome("synthetic").letters("chr1", 0, 9000).decode()}
  )
  bins = [intervals.Interval("chr1", i, i + 200) for i in (1000, 4000)]
  for split in ("train", "valid", "test"):
    windows = [deepsea.context(x.start, 1000, chrom="chr1") for x in bins]
    half = np.stack([genome_lib.read(genome, x).codes for x in windows])
    codes = np.concatenate([half, alphabet.reverse_complement(half)])
    x = alphabet.one_hot(codes, order="AGCT").astype(np.uint8)
    labels = np.tile(np.array([[1, 0, 0], [0, 1, 0]], np.uint8), (2, 1))
    named = {f"{split}xdata": x.transpose(0, 2, 1), f"{split}data": labels}
    io.savemat(tmp_path / f"{split}.mat", named)
    lines = [f"chr1\t{x.start}\t{x.end}" for x in bins]
    (tmp_path / f"{split}.bed").write_text("\n".join(lines))
  found = sources.load(tiny.config("chromatin", data=str(tmp_path)))
  assert found.outputs == 3 and list(found.groups) == ["all"]
  codes, label = found.parts["valid"][1]
  assert np.array_equal(codes, half[1]) and label.tolist() == [0, 1, 0]
  fasta = tmp_path / "mapped"
  genome_lib.build(genome, fasta)
  form = {"data": str(tmp_path), "bins": str(tmp_path), "genome": str(fasta)}
  form |= {"bases": 1600, "assembly": "made-up"}
  longer = sources.load(tiny.config("chromatin", **form)).parts["test"]
  codes, label = longer[0]
  assert len(codes) == 1600 and np.array_equal(codes[300:1300], half[0])
  with pytest.raises(files.UserError, match="name the assembly"):
    sources.load(tiny.config("chromatin", **form | {"assembly": ""}))
  (tmp_path / "train.bed").write_text("chr1\t1010\t1210\nchr1\t4000\t4200\n")
  with pytest.raises(files.UserError, match="differs from the row"):
    sources.load(tiny.config("chromatin", **form))


def test_embeddings_of_an_encoder(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  config = tiny.config("promoter")
  model = _make("promoter", config)
  variables = model.init(
    jax.random.key(0), jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
  )
  f = classify.encoder_features(
    model, variables, tokenizers.NucleotideTokenizer(), 62
  )
  genome = places.genome("synthetic")
  windows = [intervals.Interval("chr1", i, i + 60) for i in (0, 90)]
  embed.export(tmp_path, genome, windows, f)
  found = parquet.read_table(tmp_path).to_pydict()["embedding"]
  assert len(found) == 2 and len(found[0]) == config.width
