"""Classification of documents, from folders to the report."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.classification import data
from experiments.classification import floors
from experiments.classification import train
from experiments.classification.configs import accelerator
from experiments.classification.configs import reviews
from experiments.classification.configs import smoke
from experiments.common import fetch
from experiments.common import files
from experiments.common import tokens as tokens_lib


def _write(root, parts=("train", "test"), count=12):
  """IMDB's folders; the class shows in the words."""
  for part in parts:
    for label, word in (("neg", "bad"), ("pos", "good")):
      folder = root / part / label
      folder.mkdir(parents=True)
      for i in range(count):
        (folder / f"{i}.txt").write_text(f"{word} film {part} {i}")
  return root


def _config(folder, **changes):
  fields = dict(
    corpus="folder",
    path=str(folder),
    length=24,
    method="sliding_window",
    method_options={"window": 4},
    width=16,
    num_layers=1,
    num_heads=2,
    steps=4,
    batch_size=8,
    warmup_steps=2,
    log_every=1,
    eval_every=2,
    checkpoint_every=2,
    mesh="data=1",
  )
  return train.Config(**(fields | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  base = tmp_path_factory.mktemp("classification")
  config = _config(_write(base / "texts"))
  return config, base / "work", train.run(config, base / "work")


def test_report_is_complete(finished):
  _, workdir, results = finished
  folder = workdir / "report"
  assert sorted(p.name for p in folder.iterdir()) == [
    "accuracy.png",
    "loss.png",
    "report.md",
    "results.json",
  ]
  assert json.loads((folder / "results.json").read_text()) == results
  low, high = results["interval"]
  assert low < results["scores"]["test"]["accuracy"] < high
  assert results["floors"]["commonest class"] == 0.5
  assert results["floors"]["TF-IDF and logistic regression"] == 1.0
  text = (folder / "report.md").read_text()
  assert "floors that still win" in text and "one in ten" in text


def test_a_finished_run_is_not_repeated(finished, capsys):
  config, workdir, results = finished
  assert train.run(config, workdir) == results
  assert "compiling" not in capsys.readouterr().out


def test_a_run_that_was_stopped_ends_where_a_whole_one_does(
  finished, tmp_path, monkeypatch
):
  config, _, results = finished
  evaluator = train.classifier.Evaluator.__call__
  calls = []

  def stop(self, *args):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return evaluator(self, *args)

  monkeypatch.setattr(train.classifier.Evaluator, "__call__", stop)
  with pytest.raises(KeyboardInterrupt):
    train.run(config, tmp_path)
  resumed = train.run(config, tmp_path)
  assert resumed["scores"] == results["scores"]


def test_folders_of_imdb_and_of_classes(tmp_path):
  root = _write(tmp_path / "imdb")
  (root / "train" / "unsup").mkdir()
  (root / "train" / "unsup" / "0.txt").write_text("no class")
  (root / "train" / "urls_pos.txt").write_text("a list, not a document")
  corpus = data.load("folder", path=str(root))
  assert corpus.classes == ("neg", "pos")
  assert len(corpus.train.texts) + len(corpus.valid.texts) == 24
  assert len(corpus.test.texts) == 24
  assert all(b"test" in text for text in corpus.test.texts)
  for part in (corpus.train, corpus.valid, corpus.test):
    for text, label in zip(part.texts, part.labels, strict=True):
      assert (b"good" in text) == (corpus.classes[label] == "pos")
  classes = data.load("folder", path=str(_write(tmp_path / "b") / "train"))
  seen = [set(getattr(classes, p).texts) for p in ("train", "valid", "test")]
  assert sum(map(len, seen)) == len(set.union(*seen)) == 24


def test_fetched_corpora(monkeypatch):
  """Newsgroups keep their parts; reviews are split by their texts."""
  groups = [
    (f"{part}/{label}/{i}.txt", f"{part} {label} {i}".encode())
    for part in ("train", "test")
    for label in ("a", "b")
    for i in range(20)
  ]
  monkeypatch.setattr(fetch, "load", lambda name: groups)
  corpus = data.load("newsgroups")
  assert len(corpus.test.texts) == 40 and corpus.classes == ("a", "b")
  same = [("n/a.txt", b"same"), ("p/b.txt", b"same")]
  rest = [(f"{'np'[i % 2]}/{i}", str(i).encode()) for i in range(60)]
  monkeypatch.setattr(fetch, "load", lambda name: same + rest)
  corpus = data.load("reviews")
  held = [p.texts.count(b"same") for p in (corpus.train, corpus.valid)]
  assert max([*held, corpus.test.texts.count(b"same")]) == 2


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"corpus": "imdb", "path": ""}, "unknown corpus 'imdb'; known: folder"),
    ({"corpus": "stdlib"}, "--config.path goes with"),
    ({"path": "nowhere"}, "nowhere holds no documents"),
    ({"length": 1}, "--config.length must be at least 2"),
    ({"pooling": "max"}, "--config.pooling must be 'first' or 'mean'"),
    ({"train_documents": -1}, "--config.train_documents must not be negative"),
    ({"method": "no"}, "no"),
  ],
)
def test_refused(tmp_path, options, says):
  config = _config(tmp_path / "none", **options)
  with pytest.raises(files.UserError, match=says):
    train.run(config, tmp_path / "work")


def test_what_is_not_fetched_says_the_command(monkeypatch, tmp_path):
  monkeypatch.setenv("JAXATTN_DATA", str(tmp_path))
  with pytest.raises(files.UserError, match=r"common\.fetch reviews"):
    data.load("reviews")


def test_a_class_only_in_test_is_refused(tmp_path):
  root = _write(tmp_path)
  (root / "test" / "new").mkdir()
  (root / "test" / "new" / "0.txt").write_text("new")
  with pytest.raises(files.UserError, match="not in its training part: new"):
    data.load("folder", path=str(root))


def test_rows_filled_up_are_not_counted():
  part = data.Part([b"a", b"bcdef", b"g"], np.array([0, 1, 1], np.int32))
  rows = data.Rows(part, tokens_lib.Bytes(), 4)
  assert rows.cut == pytest.approx(1 / 3)
  first, last = rows.batches(2)
  assert first["tokens"][1].tolist() == [256, *b"bcd"]
  assert last["counts"].tolist() == [1, 0] and last["label"][0] == 1


def test_padding_does_not_matter():
  config = _config("x", pooling="mean", method="dense", method_options={})
  model = train.make_model(config, vocab_size=300, num_classes=3)
  tokens = jnp.arange(24)[None]
  valid = jnp.arange(24)[None] < 9
  variables = jax.jit(model.init)(jax.random.key(0), tokens)
  apply = jax.jit(model.apply)
  want = apply(variables, tokens, valid)
  got = apply(variables, jnp.where(valid, tokens, 299), valid)
  np.testing.assert_array_equal(got, want)


def test_wilson_holds_every_share():
  assert floors.wilson(0, 10)[0] == pytest.approx(0)
  assert floors.wilson(10, 10)[1] == pytest.approx(1)
  # By hand: centre (8 + 1.9207) / 13.8415, half the root below over 1.38415.
  assert floors.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize(
  "config",
  [
    *(reviews.get_config(m) for m in ("dense", "longformer", "linear")),
    smoke.get_config(),
    accelerator.get_config("bigbird"),
    accelerator.get_config("longformer"),
  ],
)
def test_configurations_make_their_model(config):
  train.check(config)
  model = train.make_model(config, vocab_size=300, num_classes=2)
  assert model.cfg.max_length == config.length
