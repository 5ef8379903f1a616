"""Question answering: rows, floors, predictions, and a run end to end."""

import dataclasses
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from experiments.common import metrics as lines_lib
from experiments.common import sharding
from experiments.common import tokens
from experiments.qa import corpora
from experiments.qa import floors
from experiments.qa import needle
from experiments.qa import predictor
from experiments.qa import reader
from experiments.qa import rows as rows_lib
from experiments.qa import squad
from experiments.qa import train
from experiments.qa.configs import accelerator
from experiments.qa.configs import smoke
from jaxattn.models import answers


def _documents(count=30, *, kind="span"):
  """Texts that hold a number each, and a question for it."""
  rng = np.random.default_rng(0)
  found = []
  for i in range(count):
    before, code = "ab " * int(rng.integers(8)), str(rng.integers(10, 99))
    answer = () if kind != "span" else (squad.Answer(len(before), code),)
    ask = squad.Question(str(i), "Code?", answer, kind=kind)
    found.append(squad.Document(str(i), before + code + " cd", (ask,)))
  return found


def _rows(documents, **changes):
  form = {"length": 24, "stride": 0, "max_question": 5} | changes
  return rows_lib.Rows(documents, tokens.Bytes(), rows_lib.Form(**form))


def _config(**changes):
  config = smoke.get_config("longformer")
  fields = {
    "corpus": "codes",
    "length": 24,
    "stride": 8,
    "max_question": 5,
    "beyond": 16,
    "mesh": "data=1",
  }
  return dataclasses.replace(config, **(fields | changes))


@pytest.fixture(autouse=True)
def _corpus(monkeypatch):
  def load(config):
    del config
    documents = _documents()
    documents[0] = _documents(1, kind="yes")[0]
    return corpora.Corpus("codes", "by hand", documents, documents, documents)

  monkeypatch.setitem(corpora.CORPORA, "codes", load)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "work"
  with pytest.MonkeyPatch.context() as patch:
    documents = [*_documents(1, kind="yes"), *_documents()[1:]]
    corpus = corpora.Corpus("codes", "by hand", documents, documents, documents)
    patch.setitem(corpora.CORPORA, "codes", lambda config: corpus)
    return workdir, train.run(_config(), workdir)


def test_report_is_complete(finished):
  workdir, results = finished
  folder = workdir / "report"
  assert sorted(p.name for p in folder.iterdir()) == [
    "loss.png",
    "predictions.json",
    "report.md",
    "results.json",
    "scores.png",
  ]
  assert json.loads((folder / "results.json").read_text()) == results
  text = (folder / "report.md").read_text()
  assert "| **reader, longformer** |" in text
  assert "floors that still win" in text
  said = json.loads((folder / "predictions.json").read_text())
  assert len(said) == results["scores"]["all"]["count"] == 30
  apart = results["scores"]
  parts = ("before token 16", "beyond token 16", "nowhere")
  assert sum(apart[part]["count"] for part in parts) == 30
  assert apart["nowhere"]["count"] == 1  # The one that says yes.


def test_a_run_goes_on_with_the_same_numbers(finished, tmp_path):
  """Stopped after step 5: bitwise the losses, and the same answers."""
  workdir, results = finished
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / "10")
  shutil.rmtree(tmp_path / "report")
  again = train.run(_config(), tmp_path)
  assert again["shown"] == results["shown"]
  assert again["scores"] == results["scores"]

  def losses(folder):
    lines = lines_lib.read(folder / lines_lib.NAME)
    return [x.get("train_bits_per_question") for x in lines]

  assert losses(tmp_path) == losses(workdir)


def test_a_finished_run_is_not_repeated(finished, capsys):
  workdir, results = finished
  assert train.run(_config(), workdir) == results
  assert "on 30 held-out questions" in capsys.readouterr().out


def test_rows_hold_the_answers():
  documents = _documents()
  for stride in (0, 8):
    rows = _rows(documents, stride=stride)
    seen = set()
    for i, window in enumerate(rows.windows):
      row = rows[i]
      spans = row["spans"][row["spans"][:, 0] > 0]
      for first, last in spans:
        gold = rows.questions[window.question].question.answers[0].text
        assert rows.text(window, first, last) == gold
        assert row["allowed"][[first, last]].all()
        seen.add(window.question)
    # Windows reach every answer; cut documents lose some.
    assert (len(seen) == len(documents)) == (stride > 0)


def test_what_stands_in_a_row():
  row = _rows(_documents(1))[0]
  text = bytes(row["tokens"][:7].tolist()[1:6]).decode()
  assert (row["tokens"][0], text, row["tokens"][6]) == (256, "Code?", 256)
  assert row["globals"].tolist() == list(range(7))
  assert row["types"].sum() == row["valid"].sum() - 7
  assert row["allowed"].sum() == row["types"].sum() + 1


def test_what_is_learned_from():
  rows = _rows(_documents(), stride=8)
  every = len(rows)
  rows.learnable(1.0, 0)
  assert len(rows) == every
  rows.learnable(0.0, 0)
  assert 0 < len(rows) < every
  assert all(rows.spans(window) for window in rows.windows)
  nowhere = squad.Question("q", "Code?", (squad.Answer(-1, "x"),))
  rows = _rows([squad.Document("t", "text", (nowhere,))])
  with pytest.raises(files.UserError, match="holds an answer: set a larger"):
    rows.learnable(1.0, 0)
  none = dataclasses.replace(nowhere, answers=())
  rows = _rows([squad.Document("t", "text", (none,))])
  rows.learnable(0.0, 0)
  assert rows[0]["spans"][0].tolist() == [0, 0]


class _Oracle:
  """Says what `rows` hold, with a doubt that falls from row to row."""

  def apply(self, variables, batch, *, mutable):
    del variables, mutable
    places = jnp.arange(batch["tokens"].shape[1])[None]
    score = 10.0 + batch["row"][:, None]
    start, end = (
      jnp.where(places == batch["spans"][:, :1, i], score, 0.0)
      for i in range(2)
    )
    blocked = ~batch["allowed"]
    start, end = (jnp.where(blocked, -jnp.inf, x) for x in (start, end))
    return reader.Said(answers.SpanLogits(start, end, None)), {}


@pytest.mark.parametrize("may_be_none", [False, True])
def test_the_best_window_answers(may_be_none):
  """Windows without the answer vote for the first token, and lose."""
  documents = _documents()
  rows = _rows(documents, stride=8)
  predict = predictor.Predictor(
    _Oracle(),  # pyrefly: ignore[bad-argument-type]
    sharding.make_mesh("data=1"),
    batch_size=4,
    max_answer=3,
    may_be_none=may_be_none,
  )
  said = predict({}, {}, rows)
  assert said.texts == {i: g[0] for i, g in rows.golds().items()}
  assert said.windows == len(rows)
  none = [squad.Question("q", "Code?", ())]
  rows = _rows([squad.Document("t", "some text", tuple(none))])
  assert (predict({}, {}, rows).texts["q"] == "") == may_be_none


def test_needles_stand_where_they_are_said_to():
  sizes = {"documents": 6, "characters": 400, "needles": 3, "num_names": 5}
  found = needle.make("valid", **sizes)
  assert found == needle.make("valid", **sizes)
  for document in found:
    assert len(document.questions) == 3
    for question in document.questions:
      (answer,) = question.answers
      name = question.text.removesuffix("?").split()[-1]
      line = f"The code of {name} is {answer.text}.\n"
      start = answer.start - line.index(answer.text)
      assert (document.text + "\n")[start : start + len(line)] == line
  # A search for words needs no learning here.
  lows = floors.all_floors(found)
  assert lows["its words beyond the question"].exact == 100
  assert lows["first sentence"].exact == 0


def test_needles_stand_anywhere():
  rng, places = np.random.default_rng(0), []
  text = "\n".join("x" * 9 for _ in range(20))
  for _ in range(400):
    _, (start,) = needle.hide(text, [("os", "1")], rng)
    places.append(start // 10)
  counts = np.bincount(places, minlength=23)
  assert counts.max() < 60  # 19 of each of 21 places expected.
  assert np.count_nonzero(counts) == 21


@pytest.mark.parametrize(
  ("name", "argument", "length"),
  [
    ("needle", "dense", 512),
    ("needle", "bigbird", 2048),
    ("needle", "etc", 2048),
    ("stories", "longformer", 1408),
    ("squad", "bigbird", 1024),
    ("squad_cpu", "longformer", 1024),
    ("accelerator", "natural_questions", 4096),
    ("accelerator", "hotpotqa_bigbird", 4096),
    ("accelerator", "wikihop_etc", 4096),
  ],
)
def test_every_configuration_makes_its_model(name, argument, length):
  module = importlib.import_module(f"experiments.qa.configs.{name}")
  config = module.get_config(argument)
  train.check(config)
  config = dataclasses.replace(config, num_layers=1)
  documents = [*_documents(1, kind="yes"), *_documents()[1:]]
  corpus = corpora.Corpus("codes", "by hand", documents, documents, documents)
  model = train.make_model(config, 300, corpus)
  rows = rows_lib.Rows(
    documents, tokens.Bytes(), train.make_form(config, corpus)
  )
  batch = jax.tree.map(lambda x: x[None], rows[0])
  out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), batch)
  assert out.spans.start.shape == (1, length)
  assert out.spans.types.shape == (1, 3)


def test_what_is_refused(tmp_path):
  for changes, message in (
    ({"stride": 18}, r"--config\.stride must be in \[0, 17\]"),
    ({"length": 7}, "has no room for a document"),
    ({"empty_rate": 0.0}, "--config.stride needs --config.empty_rate"),
    ({"max_answer": 0}, "--config.max_answer must be positive"),
    ({"corpus": "x"}, "unknown corpus 'x'; known: codes, hotpotqa"),
    ({"test_path": "x"}, "takes no --config.test_path"),
    ({"corpus": "wikihop"}, "needs --config.train_path"),
    ({"method": "sparse_transformer"}, "method"),
  ):
    with pytest.raises(files.UserError, match=message):
      train.run(_config(**changes), tmp_path / "w")
  with pytest.raises(files.UserError, match="corpora are hotpotqa"):
    accelerator.get_config("squad")


def test_files_of_the_user_are_split(tmp_path):
  lines = [
    {"question": "Who?", "answer": ["Bo"], "passage": f"Bo ran {i} miles."}
    for i in range(20)
  ]
  path = tmp_path / "a.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  config = _config(corpus="stories_file", train_path=str(path))
  corpus = corpora.load(config)
  parts = [getattr(corpus, part) for part in corpora.PARTS]
  assert [len(part) for part in parts] == [16, 2, 2]
  both = dataclasses.replace(config, test_path=str(path))
  assert len(corpora.load(both).test) == 20
  assert corpus.kinds() == {"span"}


def _squad_file(titles):
  article = {
    "paragraphs": [
      {
        "context": f"Bo ran {i}.",
        "qas": [
          {
            "question": "Who?",
            "answers": [{"text": "Bo", "answer_start": 0}],
          }
        ],
      }
      for i in range(2)
    ]
  }
  found = []
  for title in titles:
    made = json.loads(json.dumps(article)) | {"title": str(title)}
    for i, paragraph in enumerate(made["paragraphs"]):
      paragraph["qas"][0]["id"] = f"{titles.start}-{title}-{i}"
    found.append(made)
  return json.dumps({"data": found}).encode()


@pytest.mark.parametrize("joined", [False, True])
def test_articles_of_squad_are_in_one_part(monkeypatch, joined):
  """Also where two files have articles of one title."""
  data = [
    ("new_wiki_v1.0.json", _squad_file(range(10, 30))),
    ("nyt_v1.0.json", b"not read"),
    ("squaddev_v1.1.json", _squad_file(range(20))),
  ]
  monkeypatch.setattr(corpora.fetch, "load", lambda name: data)
  config = _config(corpus="squad", join_paragraphs=joined)
  corpus = corpora.load(config)
  titles = [{d.title for d in getattr(corpus, p)} for p in corpora.PARTS]
  assert [len(t) for t in titles] == [24, 3, 3]
  assert len(set.union(*titles)) == 30
  documents = corpus.train + corpus.valid + corpus.test
  assert len(documents) == (40 if joined else 80)
  thinned = corpora.load(dataclasses.replace(config, train_questions=5))
  assert sum(len(d.questions) for d in thinned.train) == 5
