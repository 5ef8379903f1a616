"""Summarization, from published files to the report."""

import ast
import gzip
import json

import jax
import numpy as np
import pytest

from experiments.common import files
from experiments.common import tokens as tokens_lib
from experiments.summarization import data
from experiments.summarization import rouge
from experiments.summarization import rows as rows_lib
from experiments.summarization import train
from experiments.summarization.configs import accelerator
from experiments.summarization.configs import quickstart
from experiments.summarization.configs import smoke


def _arxiv(i):
  return json.dumps(
    {
      "article_id": f"10{i}",
      "article_text": [f"number {i} is here .", "and more", " follows . "],
      "abstract_text": [f"<S> number {i} . </S>", "<S> it follows . </S>"],
      "section_names": ["intro"],
      "sections": [["number"]],
      "labels": None,
    }
  )


def _write(folder, count=16):
  folder.mkdir()
  for part in ("train", "val", "test"):
    lines = [_arxiv(i) for i in range(count)]
    (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
  return folder


def _config(folder, **changes):
  fields = dict(
    corpus="folder",
    path=str(folder),
    tokenizer="bytes",
    length=32,
    target_length=16,
    width=16,
    num_layers=1,
    decoder_layers=1,
    num_heads=2,
    num_beams=2,
    eval_articles=3,
    steps=4,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=2,
    log_every=1,
    eval_every=2,
    checkpoint_every=2,
    mesh="data=1",
  )
  return train.Config(**(fields | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  base = tmp_path_factory.mktemp("summaries")
  config = _config(_write(base / "arxiv"))
  return config, base / "work", train.run(config, base / "work")


def test_report_is_complete(finished):
  _, workdir, results = finished
  folder = workdir / "report"
  assert sorted(p.name for p in folder.iterdir()) == [
    "loss.png",
    "report.md",
    "results.json",
  ]
  assert json.loads((folder / "results.json").read_text()) == results
  assert results["test_articles"] == 3
  assert set(results["floors"]) == {
    "lead-2",
    "the oracle that chooses sentences",
  }
  assert "By ROUGE-Lsum" in (folder / "report.md").read_text()


def test_a_finished_run_is_not_repeated(finished, capsys):
  config, workdir, results = finished
  assert train.run(config, workdir) == results
  assert "compiling" not in capsys.readouterr().out


def test_files_as_published(tmp_path):
  found = data.load("folder", str(_write(tmp_path / "pubmed", 2)))
  assert found.test[1].name == "101"
  assert found.test[1].summary == "number 1 .\nit follows ."
  assert found.test[1].text == "number 1 is here .\nand more\nfollows ."
  patent = {
    "publication_number": "US-1",
    "abstract": "A  device.",
    "application_number": "1",
    "description": "The device\n is long.",
  }
  for part in ("train", "val", "test"):
    place = tmp_path / "patents" / part / "a"
    place.mkdir(parents=True)
    line = json.dumps(patent) + "\n"
    (place / "data0.gz").write_bytes(gzip.compress(line.encode()))
  found = data.load("folder", str(tmp_path / "patents"))
  assert found.valid == (
    data.Article("US-1", "The device is long.", "A device."),
  )


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", r"train.txt:2 is no JSON"),
    ("[1]", r"train.txt:2 is no JSON object"),
    ('{"text": "a"}', r"train.txt:2 has the fields \['text'\]; it needs"),
    (
      '{"article_text": 3, "abstract_text": []}',
      "train.txt:2: article_text is neither a text nor a list",
    ),
  ],
)
def test_bad_lines_are_named(tmp_path, line, message):
  folder = _write(tmp_path / "arxiv", 1)
  with (folder / "train.txt").open("a") as file:
    file.write(line + "\n")
  with pytest.raises(files.UserError, match=message):
    data.load("folder", str(folder))


def test_missing_parts_and_files_are_named(tmp_path):
  folder = _write(tmp_path / "arxiv", 1)
  (folder / "val.txt").unlink()
  with pytest.raises(files.UserError, match="the valid part is empty"):
    data.load("folder", str(folder))
  (folder / "val.gz").write_bytes(b"no")
  with pytest.raises(files.UserError, match="val.gz is no whole gzip file"):
    data.load("folder", str(folder))
  with pytest.raises(files.UserError, match="is no folder"):
    data.load("folder", str(tmp_path / "nowhere"))
  with pytest.raises(files.UserError, match="unknown articles"):
    data.load("cnn")


def test_docstrings_are_taken_out():
  source = '''
def f(x):
  """Doubles what it is given, and no more.

  The rest.
  """
  # A long line that makes the body long enough to be kept, some 100 bytes.
  return x + x  # Twice what was given, to be sure.
'''
  (found,) = data._documented("m.py", source, ast.parse(source))
  assert found.summary == "Doubles what it is given, and no more."
  assert "Doubles" not in found.text and "The rest" not in found.text
  assert found.text.startswith("def f(x):\n  # A long")


def test_rouge_by_hand():
  """`a b c` of `a c d e`: 2 of 3 and of 4 words; the longest common is a c."""
  article = data.Article("", "", "a c d e")
  found = rouge.scores(["a b c"], [article])
  assert found["rouge1"] == pytest.approx(100 * 4 / 7)
  assert found["rouge2"] == 0
  assert found["rougeLsum"] == pytest.approx(100 * 4 / 7)


def test_the_oracle_is_no_worse_than_any_sentence():
  article = data.Article(
    "",
    "It rains. The dog sat on the mat. Nothing else. A mat was red.",
    "The dog sat on a red mat.",
  )
  best = rouge.scores([rouge.oracle(article, 2)], [article])["rouge1"]
  for sentence in data.sentences(article.text):
    assert best >= rouge.scores([sentence], [article])["rouge1"]
  assert rouge.oracle(article, 2) == "The dog sat on the mat."


def test_padding_changes_neither_loss_nor_text(finished):
  """Rows with more room say the same."""
  config, _, _ = finished
  tokenizer = tokens_lib.Bytes()
  articles = [
    data.Article("", "some text", "short"),
    data.Article("", "b", "c"),
  ]
  model = train.make_model(_config(config.path, length=64), 257)
  rows = [rows_lib.Rows(articles, tokenizer, n, 16) for n in (32, 64)]
  short, long = (next(r.batches(2)) for r in rows)
  params = jax.jit(model.init)(
    jax.random.key(0), short["source"], short["inputs"]
  )["params"]

  @jax.jit
  def sums(batch):
    return train.loss_sums(model, params, {}, batch, None, train=False)[:2]

  found = sums(short), sums(long)
  np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
  assert float(found[0][1]) == len("short") + len("c") + 2


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_beams": 0}, "config.num_beams must be positive"),
    ({"length_penalty": -1.0}, "config.length_penalty must not be negative"),
    ({"norm": "both"}, "the model cannot be built"),
    ({"path": ""}, "config.path is that of the folder"),
  ],
)
def test_options_are_checked_before_training(tmp_path, changes, message):
  with pytest.raises(files.UserError, match=message):
    train.run(_config(tmp_path, **changes), tmp_path / "work")


@pytest.mark.parametrize(
  "config",
  [
    smoke.get_config(),
    quickstart.get_config(),
    quickstart.get_config("bigbird"),
    quickstart.get_config("dense"),
    accelerator.get_config(),
  ],
)
def test_configurations_make_their_models(config):
  train.check(config)
