"""Candidates to choose from, facts to find, and ETC, to their reports."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.common import files
from experiments.common import sharding
from experiments.common import tokens
from experiments.qa import facts
from experiments.qa import hotpotqa
from experiments.qa import predictor
from experiments.qa import reader
from experiments.qa import rows as rows_lib
from experiments.qa import squad
from experiments.qa import train
from experiments.qa import wikihop
from experiments.qa.configs import smoke


def _hop(name, who):
  return {
    "_id": name,
    "question": "Who ran?",
    "answer": who,
    "supporting_facts": [["A", 1], ["B", 0]],
    "context": [
      ["A", ["Al sat.", f" {who} ran."]],
      ["B", [f"{who} is tall.", " It rained."]],
    ],
  }


def _choice(name, who):
  return {
    "id": name,
    "query": "runner_of x",
    "supports": ["Al sat.", f"{who} ran."],
    "candidates": ["al", "bo", who.lower()][: 3 if who != "Bo" else 2],
    "answer": who.lower(),
  }


def _form(**changes):
  form = {"length": 80, "stride": 0, "max_question": 8}
  return rows_lib.Form(**(form | changes))


def _hops(*names):
  data = json.dumps([_hop(n, w) for n, w in names]).encode()
  return hotpotqa.parse(data, "x")


def test_sentences_of_a_window_and_its_facts():
  documents = _hops(("a", "Bo"))
  rows = rows_lib.Rows(documents, tokens.Bytes(), _form(max_sentences=6))
  row = rows[0]
  assert rows.facts(0) == {1, 2}
  assert row["facts"].tolist() == [0, 1, 1, 0, -1, -1]
  said = [
    bytes(row["tokens"][a : b + 1].tolist()).decode()
    for a, b in row["ends"][:4]
  ]
  assert said == ["Al sat.", " Bo ran.", "Bo is tall.", " It rained."]
  # Titles and the question are in no sentence.
  inside = row["sentences"] >= 0
  assert inside.sum() == sum(map(len, said))
  few = rows_lib.Rows(documents, tokens.Bytes(), _form(max_sentences=2))[0]
  assert few["facts"].tolist() == [0, 1]
  assert few["sentences"].max() == 1


def test_windows_number_sentences_from_their_first():
  documents = _hops(("a", "Bo"))
  form = _form(length=34, stride=20, max_sentences=3)
  rows = rows_lib.Rows(documents, tokens.Bytes(), form)
  for i, window in enumerate(rows.windows):
    row, text = rows[i], rows.texts[0]
    for place in np.flatnonzero(row["sentences"] >= 0):
      number = row["first_sentence"] + row["sentences"][place]
      a, b = rows.sentence_spans(0)[number]
      at = place - (len(rows.questions[0].ids) + 2) + window.start
      assert a <= at < b and chr(row["tokens"][place]) == text[at]


def test_candidates_stand_before_the_document():
  data = json.dumps([_choice("a", "Bo"), _choice("b", "Cy")]).encode()
  documents = wikihop.parse(data, "x")
  rows = rows_lib.Rows(documents, tokens.Bytes(), _form(max_candidates=12))
  for i, (names, right) in enumerate(
    [(["al", "bo"], 1), (["al", "bo", "cy"], 2)]
  ):
    row = rows[i]
    said = [
      bytes(row["tokens"][x[x >= 0]].tolist()).decode()
      for x in row["candidates"]
    ]
    assert [x for x in said if x] == names
    assert row["chosen"] == right
    assert set(row["candidates"][row["candidates"] >= 0]) <= set(row["globals"])
  with pytest.raises(files.UserError, match="'b' are 9 tokens, more than"):
    rows_lib.Rows(documents, tokens.Bytes(), _form(max_candidates=8))


class _Oracle:
  """Says what rows hold."""

  def apply(self, variables, batch, *, mutable):
    del variables, mutable
    chosen = jax.nn.one_hot(batch["chosen"], batch["candidates"].shape[1])
    sign = jax.numpy.where(batch["facts"] == 1, 1.0, -1.0)
    return reader.Said(None, chosen, sign), {}


def test_windows_are_taken_together():
  documents = [
    dataclasses.replace(
      document,
      questions=tuple(
        dataclasses.replace(q, candidates=("al", "Bo"))
        for q in document.questions
      ),
    )
    for document in _hops(("a", "Bo"), ("b", "Bo"))
  ]
  form = _form(length=48, stride=10, max_candidates=6, max_sentences=3)
  rows = rows_lib.Rows(documents, tokens.Bytes(), form)
  predict = predictor.Predictor(
    _Oracle(),  # pyrefly: ignore[bad-argument-type]
    sharding.make_mesh("data=1"),
    batch_size=4,
    max_answer=3,
    may_be_none=False,
  )
  said = predict({}, {}, rows)
  assert len(rows) > 4
  assert said.texts == {"a": "Bo", "b": "Bo"}
  assert said.facts == {"a": {1, 2}, "b": {1, 2}}


def test_facts_are_scored_as_by_the_published_script():
  """Worked by hand: two of three found is 4/5, and 2/3 of the words."""
  got = facts.score(
    {"a": {1, 2}, "b": {0}},
    {"a": {1, 2, 5}, "b": {0}, "c": {3}},
    {"a": "red cat", "b": "no"},
    {"a": ["red dog cat"], "b": ["no"], "c": ["x"]},
  )
  assert got.exact == pytest.approx(100 / 3)
  assert got.f1 == pytest.approx(100 * (0.8 + 1) / 3)
  assert got.joint_exact == pytest.approx(100 / 3)
  # Precision 1 * 1, recall 2/3 * 2/3 of "a"; all of "b"; nothing of "c".
  joint = 2 * (4 / 9) / (13 / 9)
  assert got.joint_f1 == pytest.approx(100 * (joint + 1) / 3)


def _files(folder, make):
  names = ["Bo", "Cy", "Di", "Ed"]
  for part in ("train", "valid", "test"):
    items = [make(f"{part}{i}", names[i % 4]) for i in range(8)]
    (folder / part).write_text(json.dumps(items))
  return {
    f"{part}_path": str(folder / part) for part in ("train", "valid", "test")
  }


@pytest.mark.parametrize(
  ("corpus", "make", "model"),
  [
    pytest.param("hotpotqa", _hop, "encoder", marks=pytest.mark.slow),
    ("hotpotqa", _hop, "etc"),
    ("wikihop", _choice, "encoder"),
    pytest.param("wikihop", _choice, "etc", marks=pytest.mark.slow),
  ],
)
def test_a_run_to_its_report(corpus, make, model, tmp_path, capsys):
  form = {"model": model, "method": "dense", "method_options": {}}
  if model == "etc":
    form["positions"] = "none"
  config = dataclasses.replace(
    smoke.get_config(),
    **form,
    **_files(tmp_path, make),
    corpus=corpus,
    length=96,
    stride=0,
    max_question=16,
    max_candidates=16,
    max_sentences=6,
    mesh="data=1",
  )
  results = train.run(config, tmp_path / "work")
  folder = tmp_path / "work" / "report"
  said = json.loads((folder / "predictions.json").read_text())
  assert len(said) == 8
  report = (folder / "report.md").read_text()
  if corpus == "hotpotqa":
    assert results["facts"].keys() == {"model", "two most similar sentences"}
    assert "supporting facts, model: F1" in capsys.readouterr().out
    assert "Supporting facts" in report
    assert len(json.loads((folder / "facts.json").read_text())) == 8
  else:
    assert set(said.values()) <= {"al", "bo", "cy", "di", "ed"}
    assert "Supporting facts" not in report


def test_etc_refuses_what_it_would_ignore():
  config = dataclasses.replace(smoke.get_config(), model="etc")
  documents = [squad.Document("t", "Bo ran.", ())]
  corpus = train.corpora.Corpus("c", "r", documents, documents, documents)
  with pytest.raises(files.UserError, match="--config.method must be 'dense'"):
    train.make_model(config, 300, corpus)


def test_questions_without_a_right_candidate_teach_nothing():
  said = reader.Said(None, jax.numpy.array([[0.0, 1.0], [0.0, 1.0]]))
  nats = reader.answer_nats(said, {"chosen": jax.numpy.array([0, -1])})
  np.testing.assert_allclose(nats, [np.log(1 + np.e), 0.0], rtol=1e-6)
