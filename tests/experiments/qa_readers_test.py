"""Question answering: files in their published formats."""

import copy
import gzip
import json
from typing import Any

import pytest

from experiments.common import files
from experiments.qa import hotpotqa
from experiments.qa import natural_questions
from experiments.qa import stories
from experiments.qa import triviaqa
from experiments.qa import wikihop


def _person(short=(), yes_no="NONE", long=(-1, -1)):
  spans = [{"start_token": a, "end_token": b} for a, b in short]
  first, stop = long
  return {
    "short_answers": spans,
    "yes_no_answer": yes_no,
    "long_answer": {"start_token": first, "end_token": stop},
  }


def _natural(*people) -> dict[str, Any]:
  return {
    "example_id": 7,
    "document_text": "<P> The Rhône ends in France . </P>",
    "question_text": "where does the rhône end",
    "long_answer_candidates": [],
    "annotations": list(people),
  }


def _lines(*items):
  return b"\n".join(json.dumps(item).encode() for item in items)


def test_natural_questions_by_token(tmp_path):
  person = _person([(5, 6)], long=(0, 8))
  path = tmp_path / "v1.0-simplified.jsonl.gz"
  path.write_bytes(gzip.compress(_lines(_natural(person))))
  (document,) = natural_questions.read(path)
  (question,) = document.questions
  (answer,) = question.answers
  assert (answer.text, question.id) == ("France", "7")
  assert document.text[answer.start :].startswith("France .")
  assert question.facts[0].text == document.text


def test_natural_questions_need_two_people_of_five():
  none = _person()

  def ask(*people):
    (found,) = natural_questions.parse(_lines(_natural(*people)), "x")
    return found.questions[0]

  one, yes = _person([(5, 6)]), _person(yes_no="YES")
  assert ask(one, none, none, none, none).golds == ()
  assert ask(one, one, none, none, none).golds == ("France",)
  assert ask(yes, yes, none, none, none).golds == ("yes",)
  assert ask(yes).golds == ("yes",)


def test_natural_questions_that_do_not_fit():
  good = _lines(_natural(_person([(5, 6)])))
  bad = _lines(_natural(_person([(5, 60)])) | {"example_id": 8})
  with pytest.raises(files.UserError, match=r"x:2: tokens \[5, 60\)"):
    natural_questions.parse(good + b"\n" + bad, "x")
  with pytest.raises(files.UserError, match="x:2: the example_id 7 stands"):
    natural_questions.parse(good + b"\n" + good, "x")
  with pytest.raises(files.UserError, match="x:1: has no annotations"):
    natural_questions.parse(_lines(_natural()), "x")
  with pytest.raises(files.UserError, match="x:1: not JSON"):
    natural_questions.parse(b"{", "x")


_HOP: dict[str, Any] = {
  "_id": "a",
  "question": "Who saw the lake first?",
  "answer": "Ann",
  "supporting_facts": [["Lake", 1], ["Lake", 9]],
  "context": [
    ["Ann", ["Ann is a name.", " Anna too."]],
    ["Lake", ["A lake.", " Ann saw it first."]],
  ],
}


def test_hotpotqa_looks_in_the_facts():
  yes = _HOP | {"_id": "b", "answer": "yes"}
  first, second = hotpotqa.parse(json.dumps([_HOP, yes]).encode(), "x")
  (answer,) = first.questions[0].answers
  assert first.text[answer.start :].startswith("Ann saw it")
  assert [f.text for f in first.questions[0].facts] == [" Ann saw it first."]
  assert first.text.count("\n") == 4
  assert (second.questions[0].kind, second.questions[0].answers) == ("yes", ())
  away = _HOP | {"supporting_facts": []}
  (found,) = hotpotqa.parse(json.dumps([away]).encode(), "x")
  assert len(found.questions[0].answers) == 3  # Titles are text as well.


def test_hotpotqa_that_does_not_fit():
  broken = copy.deepcopy(_HOP)
  del broken["answer"]
  with pytest.raises(files.UserError, match=r"x: record 0: needs .*'answer'"):
    hotpotqa.parse(json.dumps([broken]).encode(), "x")
  with pytest.raises(files.UserError, match=r"record 1: the _id 'a' stands"):
    hotpotqa.parse(json.dumps([_HOP, _HOP]).encode(), "x")
  broken = _HOP | {"context": [["Ann", "no list"]]}
  with pytest.raises(files.UserError, match="record 0: needs a field 'context"):
    hotpotqa.parse(json.dumps([broken]).encode(), "x")


_TRIVIA: dict[str, Any] = {
  "QuestionId": "t1",
  "Question": "Which river?",
  "Answer": {
    "Value": "Rhône",
    "Aliases": ["Rhône", "River Rhone"],
    "NormalizedAliases": ["rhône", "river rhone"],
  },
  "EntityPages": [{"Filename": "Lyon.txt", "Title": "Lyon"}, {"Title": "Gone"}],
  "SearchResults": [{"Filename": "1/page.txt"}],
}


def _trivia(folder, *items):
  for name, text in (
    ("wikipedia/Lyon.txt", "Lyon lies on the Rhône."),
    ("web/1/page.txt", "the river Rhone, not the Rhônes"),
  ):
    path = folder / "evidence" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
  path = folder / "qa.json"
  path.write_text(json.dumps({"Data": items}), encoding="utf-8")
  return triviaqa.read(path, folder / "evidence")


def test_triviaqa_finds_aliases_in_pages(tmp_path):
  (document,) = _trivia(tmp_path, _TRIVIA)
  answers = document.questions[0].answers
  placed = [a.text for a in answers if a.start >= 0]
  assert placed == ["Rhône", "river Rhone"]
  assert all(
    document.text[a.start :].startswith(t)
    for a, t in zip(answers, placed, strict=False)
  )


def test_triviaqa_that_does_not_fit(tmp_path):
  missing = _TRIVIA | {"EntityPages": [{"Filename": "Paris.txt"}]}
  with pytest.raises(files.UserError, match=r"Paris.*--config\.evidence"):
    _trivia(tmp_path, missing)
  hidden = {k: v for k, v in _TRIVIA.items() if k != "Answer"}
  with pytest.raises(files.UserError, match="record 0: has no Answer"):
    _trivia(tmp_path, hidden)
  bare = {k: v for k, v in _TRIVIA.items() if "Page" not in k and "R" not in k}
  with pytest.raises(files.UserError, match="names no page"):
    _trivia(tmp_path, bare)


def test_wikihop_and_its_mistakes():
  item: dict[str, Any] = {
    "id": "w",
    "query": "country_of lyon",
    "supports": ["Lyon is in France.", "France is large."],
    "candidates": ["france", "spain"],
    "answer": "france",
  }
  (found,) = wikihop.parse(json.dumps([item]).encode(), "x")
  assert [a.start for a in found.questions[0].answers] == [11, 19, -1]
  assert found.questions[0].candidates == ("france", "spain")
  with pytest.raises(files.UserError, match="record 0: the answer 'italy'"):
    wikihop.parse(json.dumps([item | {"answer": "italy"}]).encode(), "x")
  with pytest.raises(files.UserError, match="not a list of queries"):
    wikihop.parse(b"{}", "x")


def test_stories_by_passage():
  ask = {"question": "Who?", "answer": ["Bo.", "a man"], "passage": "Bo ran."}
  other = {"question": "What?", "answer": ["sat"], "passage": "Al sat."}
  first, second = stories.parse(_lines(ask, other, ask), "s")
  assert [q.id for q in first.questions] == ["s:1", "s:3"]
  starts = [(a.start, a.text) for a in first.questions[0].answers]
  assert starts == [(0, "Bo"), (-1, "a man")]
  assert second.questions[0].answers[0].start == 3
  with pytest.raises(files.UserError, match="s:2: has no answer"):
    stories.parse(_lines(ask, other | {"answer": [" "]}), "s")
  with pytest.raises(files.UserError, match="s:1: field 'answer' must be"):
    stories.parse(_lines(ask | {"answer": [1]}), "s")


def test_what_is_not_gzip(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(b"text")
  with pytest.raises(files.UserError, match=r"cannot unpack .*a\.jsonl\.gz"):
    stories.read(path)
