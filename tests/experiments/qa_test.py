"""Files and scores of question answering."""

import copy
import json
import pathlib
import shutil
import tempfile
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized

from experiments.common import files
from experiments.qa import metrics
from experiments.qa import squad

_FILE: Any = {
  "version": "v2.0",
  "data": [
    {
      "title": "Rivers",
      "paragraphs": [
        {
          "context": "The Rhône rises in Switzerland.",
          "qas": [
            {
              "id": "1",
              "question": "Where does it rise?",
              "answers": [{"text": "Switzerland", "answer_start": 19}],
            }
          ],
        },
        {
          "context": "It ends in the Camargue.",
          "qas": [
            {
              "id": "2",
              "question": "Where does it end?",
              "answers": [
                {"text": "the Camargue", "answer_start": 11},
                {"text": "Camargue", "answer_start": 15},
              ],
            },
            {
              "id": "3",
              "question": "Who?",
              "answers": [],
              "is_impossible": True,
            },
          ],
        },
      ],
    },
    {"title": "Empty", "paragraphs": [{"context": "Nothing.", "qas": []}]},
  ],
}


class MetricsTest(parameterized.TestCase):
  # Worked by hand along evaluate-v1.1.py and evaluate-v2.0.py.
  @parameterized.parameters(
    ("Denver Broncos", ["Denver Broncos", "the Broncos"], 1.0, 1.0),
    ("The Denver Broncos!", ["denver broncos"], 1.0, 1.0),
    ("Broncos of Denver", ["Denver Broncos"], 0.0, 0.8),
    ("Santa Clara, California", ["Levi's Stadium", "Santa Clara"], 0.0, 0.8),
    ("gold gold", ["gold"], 0.0, 2 / 3),
    ("blue", ["gold"], 0.0, 0.0),
    ("", [], 1.0, 1.0),
    ("gold", [], 0.0, 0.0),
    ("", ["gold"], 0.0, 0.0),
    ("the", ["a"], 1.0, 1.0),  # Neither has words.
    ("U.S.", ["US"], 1.0, 1.0),
    ("U. S.", ["US"], 0.0, 0.0),
    ("theatre", ["atre"], 0.0, 0.0),  # Articles are whole words.
  )
  def test_hand_worked(self, prediction, answers, exact, f1):
    self.assertEqual(metrics.exact_match(prediction, answers), exact)
    self.assertAlmostEqual(metrics.f1(prediction, answers), f1, places=12)

  def test_means_are_percent_over_all_questions(self):
    answers = {"1": ["a b c"], "2": ["x"], "3": [], "4": ["y"]}
    got = metrics.score({"1": "b c d", "2": "x", "3": ""}, answers)
    # "a" is an article: two words against three, two of them the same.
    self.assertAlmostEqual(got.f1, 100 * (0.8 + 1 + 1 + 0) / 4)
    self.assertEqual((got.exact, got.count, got.missing), (50.0, 4, 1))

  def test_predictions_of_another_split_are_refused(self):
    with self.assertRaisesRegex(files.UserError, "the first 'z'"):
      metrics.score({"z": "x"}, {"1": ["x"]})
    with self.assertRaisesRegex(files.UserError, "no questions"):
      metrics.score({}, {})


class SquadTest(parameterized.TestCase):
  def _write(self, text: str | bytes) -> pathlib.Path:
    data = text.encode() if isinstance(text, str) else text
    folder = tempfile.mkdtemp()
    self.addCleanup(shutil.rmtree, folder)
    path = pathlib.Path(folder) / "dev.json"
    path.write_bytes(data)
    return path

  def test_paragraphs_and_joined_articles(self):
    paragraphs = squad.read(self._write(json.dumps(_FILE)))
    self.assertLen(paragraphs, 3)
    documents = squad.join(paragraphs, separator="\n\n")
    self.assertEqual([d.title for d in documents], ["Rivers", "Empty"])
    self.assertEqual([len(d.questions) for d in documents], [3, 0])
    for document in [*paragraphs, *documents]:
      for question in document.questions:
        for answer in question.answers:
          end = answer.start + len(answer.text)
          self.assertEqual(document.text[answer.start : end], answer.text)
    texts = [[a.text for a in q.answers] for q in documents[0].questions]
    self.assertEqual(texts, [["Switzerland"], ["the Camargue", "Camargue"], []])

  @parameterized.parameters(-8, 10, 14, 10**6)
  def test_misplaced_answers_count_in_scores_only(self, start):
    content = copy.deepcopy(_FILE)
    paragraph = content["data"][0]["paragraphs"][1]
    paragraph["qas"][0]["answers"][1]["answer_start"] = start
    document, _ = squad.join(squad.read(self._write(json.dumps(content))))
    first, second = document.questions[1].answers
    moved = len("The Rhône rises in Switzerland.\n")
    self.assertEqual(first, squad.Answer(moved + 11, "the Camargue"))
    self.assertEqual(second, squad.Answer(-1, "Camargue"))

  def test_what_is_not_json_is_refused_with_its_line(self):
    path = self._write('{"data":\n [1,\n}')
    with self.assertRaisesRegex(files.UserError, f"{path}:3: not JSON"):
      squad.read(path)
    path = self._write(b'{\n"data": "\xff"}')
    with self.assertRaisesRegex(files.UserError, f"{path}:2: not UTF-8"):
      squad.read(path)
    with self.assertRaisesRegex(files.UserError, "SQuAD file"):
      squad.read(pathlib.Path("/no/such/dev-v1.1.json"))

  def test_what_is_not_squad_is_refused_with_its_place(self):
    def answer(content) -> Any:
      return content["data"][0]["paragraphs"][1]["qas"][0]["answers"][1]

    def first(content) -> Any:
      return content["data"][0]["paragraphs"][0]["qas"][0]

    place = r"data\[0\].paragraphs\[1\].qas\[0\].answers\[1\]"
    for change, message in (
      (lambda c: answer(c).pop("text"), f"{place} needs a field 'text'"),
      (lambda c: answer(c).update(answer_start=True), "'answer_start' of type"),
      (lambda c: first(c).update(answers=[]), "not marked is_impossible"),
      (lambda c: first(c).update(id="2"), "the id '2' stands twice"),
      (lambda c: c.update(data=[1]), r"data\[0\] is not an object"),
      (lambda c: c.pop("data"), "the file needs a field 'data' of type list"),
      (lambda c: c.update(data=c["data"][1:]), "holds no questions"),
    ):
      content = copy.deepcopy(_FILE)
      change(content)
      with self.assertRaisesRegex(files.UserError, message):
        squad.read(self._write(json.dumps(content)))


if __name__ == "__main__":
  absltest.main()
