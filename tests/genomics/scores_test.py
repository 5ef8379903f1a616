"""Scores, DeepSEA's files, and public benchmarks."""

import gzip

import numpy as np
import pytest

from experiments.common import files
from genomics import alphabet
from genomics import benchmarks
from genomics import deepsea
from genomics import genome as genome_lib
from genomics import metrics


def _answers(seed=0, n=400):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, n)
  scores = (labels + 2 * rng.normal(size=n)).round(1)  # With ties.
  return labels, scores


def test_scores_are_those_of_scikit_learn():
  library = pytest.importorskip("sklearn.metrics")
  labels, scores = _answers()
  found = metrics.binary(labels, scores)
  chosen = scores >= 0.5
  assert found["auroc"] == pytest.approx(library.roc_auc_score(labels, scores))
  wanted = library.average_precision_score(labels, scores)
  assert found["auprc"] == pytest.approx(wanted)
  assert found["mcc"] == pytest.approx(
    library.matthews_corrcoef(labels, chosen)
  )
  assert found["f1"] == pytest.approx(library.f1_score(labels, chosen))
  three = np.random.default_rng(1).integers(0, 3, (2, 50))
  assert metrics.mcc(*three) == pytest.approx(library.matthews_corrcoef(*three))


def test_streams_count_as_the_rank_formula_does():
  labels, scores = _answers(n=600)
  labels = np.stack([labels, 1 - labels, np.zeros_like(labels)], 1)
  scores = np.stack([scores, scores * 3 - 1, scores], 1)
  found = metrics.StreamingScores(3)
  for low in range(0, 600, 130):
    found.add(labels[low : low + 130], scores[low : low + 130])
  rounded = scores.astype(np.float16).astype(float)
  for i in range(2):
    positive = rounded[labels[:, i] == 1, i]
    negative = rounded[labels[:, i] == 0, i]
    pairs = positive[:, None] - negative
    wanted = np.mean((pairs > 0) + (pairs == 0) / 2)
    assert found.auroc()[i] == pytest.approx(wanted)
    wanted = metrics.auprc(labels[:, i], rounded[:, i])
    assert found.auprc()[i] == pytest.approx(wanted)
  # The third has no positive: it is left out, and makes nothing NaN.
  groups = metrics.group_scores(found, {"all": slice(0, 3)}, least=1)
  assert groups["all"]["outputs"] == 2
  assert groups["all"]["median_auroc"] == pytest.approx(
    np.median(found.auroc()[:2])
  )
  assert np.isfinite(groups["all"]["median_auprc"])


def test_the_correction_recovers_the_prior():
  """Logistic regression with positives weighted by 8 says the odds times 8."""
  linear = pytest.importorskip("sklearn.linear_model")
  rng = np.random.default_rng(0)
  x = rng.normal(size=(20_000, 2))
  truth = 1 / (1 + np.exp(-(x @ [1.0, -0.5] - 3)))
  labels = (rng.random(20_000) < truth).astype(int)
  model = linear.LogisticRegression(C=1e6).fit(
    x, labels, sample_weight=np.where(labels == 1, 8.0, 1.0)
  )
  logits = model.decision_function(x)
  before = np.mean(1 / (1 + np.exp(-logits)))
  after = 1 / (1 + np.exp(-metrics.correct_prior(logits, 8.0)))
  assert before > 3 * labels.mean()
  assert np.mean(after) == pytest.approx(labels.mean(), rel=0.05)
  assert metrics.calibration_error(labels, after) < 0.01


def test_bootstrap_draws_groups():
  """Rows that repeat say nothing more: the interval is that of the groups."""
  values = np.repeat(np.random.default_rng(0).normal(size=50), 20)
  groups = np.repeat(np.arange(50), 20)

  def mean(rows):
    return values[rows].mean()

  low, high = metrics.bootstrap(mean, groups)
  # 2 * 1.96 standard errors of 50 values, give or take a fifth.
  assert high - low == pytest.approx(3.92 * values.std() / 50**0.5, rel=0.2)
  low, high = metrics.bootstrap(mean, np.arange(1000))
  assert high - low == pytest.approx(3.92 * values.std() / 1000**0.5, rel=0.2)


def _mats(folder, rows=6, length=40, outputs=11):
  """The same rows as MATLAB 5 and as 7.3."""
  io, h5py = pytest.importorskip("scipy.io"), pytest.importorskip("h5py")
  rng = np.random.default_rng(0)
  half = rng.integers(0, 5, (rows, length)).astype(np.uint8)
  codes = np.concatenate([half, alphabet.reverse_complement(half)])
  labels = np.tile(rng.integers(0, 2, (rows, outputs)), (2, 1))
  labels = labels.astype(np.uint8)
  values = alphabet.one_hot(codes, order="AGCT").astype(np.uint8)
  x = values.transpose(0, 2, 1)
  io.savemat(folder / "valid.mat", {"validxdata": x, "validdata": labels})
  with h5py.File(folder / "train.mat", "w") as file:
    file["trainxdata"] = values.transpose(1, 2, 0)
    file["traindata"] = labels.T
  return codes, labels


def test_both_versions_of_mat_files(tmp_path):
  codes, labels = _mats(tmp_path)
  for split in ("valid", "train"):
    found = list(
      deepsea.batches(tmp_path / f"{split}.mat", split, batch_size=5)
    )
    assert np.array_equal(np.concatenate([x.codes for x in found]), codes)
    assert np.array_equal(np.concatenate([x.labels for x in found]), labels)
    assert deepsea.convert(tmp_path / f"{split}.mat", split, tmp_path) == 6
    packed = deepsea.Packed(tmp_path, split)
    assert len(packed) == 6
    some = packed[np.array([1, 4])]
    assert np.array_equal(some.codes, codes[[1, 4]])
    assert np.array_equal(some.labels, labels[[1, 4]])
  with pytest.raises(files.UserError, match="holds no 'testxdata'"):
    next(deepsea.batches(tmp_path / "valid.mat", "test"))
  with pytest.raises(files.UserError, match="no such file"):
    next(deepsea.batches(tmp_path / "test.mat", "test"))


def test_halves_that_do_not_fit_are_refused(tmp_path):
  io = pytest.importorskip("scipy.io")
  x = np.zeros((2, 4, 8), np.uint8)
  x[:, 0] = 1
  named = {"validxdata": x, "validdata": np.ones((2, 3), np.uint8)}
  io.savemat(tmp_path / "valid.mat", named)
  with pytest.raises(files.UserError, match="reverse complement"):
    deepsea.convert(tmp_path / "valid.mat", "valid", tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["valid.mat"]


def test_groups_and_windows():
  sizes = {k: v.stop - v.start for k, v in deepsea.GROUPS.items()}
  assert sizes == {"DHS": 125, "TF": 690, "HM": 104}
  assert sum(sizes.values()) == deepsea.OUTPUTS
  window = deepsea.context(10_000, 8000, chrom="c", placement="upstream")
  assert (window.start, window.end) == (10_100 - 5000, 10_100 + 3000)
  text = alphabet.decode(np.random.default_rng(0).integers(0, 4, 5000))
  genome = genome_lib.InMemory({"c": text})
  row = alphabet.encode(text[1600:2600])[None]
  deepsea.check_assembly(genome, [("c", 2000)], row, "hg19")
  with pytest.raises(files.UserError, match="differs"):
    deepsea.check_assembly(genome, [("c", 2200)], row, "hg19")
  with pytest.raises(files.UserError, match="name the assembly"):
    deepsea.check_assembly(genome, [("c", 2000)], row, "")


def test_genomic_benchmarks(tmp_path):
  genome = genome_lib.InMemory({"chr1": "ACGTACGTAC"})
  lines = {
    "positive": "id,region,start,end,strand\n0,1,0,4,+\n",
    "negative": "id,region,start,end,strand\n0,chr1,1,4,-\n",
  }
  for part in ("train", "test"):
    (tmp_path / part).mkdir()
    for name, text in lines.items():
      path = tmp_path / part / f"{name}.csv.gz"
      path.write_bytes(gzip.compress(text.encode()))
  found = benchmarks.genomic_benchmarks(tmp_path, genome)["train"]
  assert found.classes == ("negative", "positive")
  assert [alphabet.decode(x) for x in found.codes] == ["ACG", "ACGT"]
  assert found.labels.tolist() == [0, 1]
  path = tmp_path / "test" / "positive.csv.gz"
  path.write_bytes(gzip.compress((lines["positive"] + "1,9,0,4,+\n").encode()))
  with pytest.raises(files.UserError, match="positive.csv.gz, line 3.*'9'"):
    benchmarks.genomic_benchmarks(tmp_path, genome)


def test_gue_and_nucleotide_transformer(tmp_path):
  for name in ("train", "dev", "test"):
    (tmp_path / f"{name}.csv").write_text("sequence,label\nACGT,0\nNNA,2\n")
  found = benchmarks.gue(tmp_path)
  assert found["valid"].labels.tolist() == [0, 2]
  assert len(found["train"].classes) == 3
  (tmp_path / "dev.csv").write_text("sequence,label\nACGT,0\nACJ,1\n")
  with pytest.raises(files.UserError, match="dev.csv, line 3 holds 'J'"):
    benchmarks.gue(tmp_path)
  (tmp_path / "dev.csv").write_text("sequence\nACGT\n")
  with pytest.raises(files.UserError, match="dev.csv, line 1.*label"):
    benchmarks.gue(tmp_path)
  for name in ("train", "test"):
    (tmp_path / f"{name}.fna").write_text(">a|x|1\nAC\nGT\n>b|0\nTT\n")
  found = benchmarks.nucleotide_transformer(tmp_path)["test"]
  assert [alphabet.decode(x) for x in found.codes] == ["ACGT", "TT"]
  assert found.labels.tolist() == [1, 0]
  (tmp_path / "test.fna").write_text(">a|b\nACGT\n")
  with pytest.raises(files.UserError, match="test.fna, line 1.*'b'"):
    benchmarks.nucleotide_transformer(tmp_path)
