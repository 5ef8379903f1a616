"""Paragraph retrieval: rows hold one answer, and every method takes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from experiments.synthetic import paragraph_retrieval
from experiments.synthetic import train
from experiments.synthetic.configs import paragraph_retrieval as configs

_TASK = paragraph_retrieval.ParagraphRetrieval(
  paragraphs=5, tokens=4, names=7, answers=3, layers=2
)


def _rows(task, count=40):
  return task.draw(np.random.default_rng(0), count)


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_the_answers_stand_where_the_pointers_lead(hops):
  task = dataclasses.replace(_TASK, hops=hops)
  rows = _rows(task)
  first = (2 + hops) * 7
  assert rows["tokens"].shape == (40, 20)
  assert rows["question"].shape == rows["answer"].shape == (40, hops)
  for text, question, answer in zip(
    rows["tokens"].reshape(40, 5, 4),
    rows["question"],
    rows["answer"],
    strict=True,
  ):
    # All questions name one paragraph, each in words of its own.
    at = question[0] - 14
    np.testing.assert_array_equal(question, at + 7 * np.arange(2, 2 + hops))
    for right in answer:
      (place,) = np.nonzero(text[:, 0] == at)[0]
      paragraph = text[place]
      (pointer,) = paragraph[(paragraph >= 7) & (paragraph < 14)]
      (found,) = paragraph[(paragraph >= first) & (paragraph < first + 3)]
      at = pointer - 7
      assert at != paragraph[0]  # No paragraph points to itself.
      assert found - first == right


def test_the_last_answer_counts():
  task = dataclasses.replace(_TASK, hops=2)
  rows = _rows(task)
  right = jax.nn.one_hot(rows["answer"], 3) * 50.0
  nats, counts = task.measure(right, rows)
  assert nats.max() < 1e-6 and counts.min() == 1
  wrong = right.at[:, 1].set(-right[:, 1])
  nats, counts = task.measure(wrong, rows)
  assert counts.max() == 0
  np.testing.assert_allclose(nats, (50 + np.log(2)) / 2, rtol=1e-3)


def test_floors_know_no_names():
  floors = _TASK.floors()
  assert floors["any answer"] == 1 / 3
  # By hand: of 5 draws from 3, the most frequent is 2, 3, 4 or 5 of them.
  count = 2 * 90 + 3 * 120 + 4 * 30 + 5 * 3
  assert abs(floors["most frequent of a row"] - count / 3**5 / 5) < 0.01


def test_a_model_that_is_cut_off_sees_the_first_tokens():
  task = dataclasses.replace(_TASK, read=8)
  rows = _rows(task)
  model = task.make_model("dense", {}, dtype=jnp.float32)
  out, variables = jax.jit(model.init_with_output)(jax.random.key(0), rows)
  apply = jax.jit(model.apply)
  changed = rows["tokens"].copy()
  changed[:, 8:] = 0
  again = apply(variables, rows | {"tokens": changed})
  np.testing.assert_array_equal(out, again)
  changed[:, 7] += 1
  other = apply(variables, rows | {"tokens": changed})
  assert np.abs(other - out).max() > 0


def test_rows_are_of_the_sizes_asked_for():
  rows = _rows(_TASK, 200)
  assert rows["tokens"].max() < _TASK.vocab_size - 1
  assert set(rows["answer"].reshape(-1)) == {0, 1, 2}
  names = rows["tokens"].reshape(200, 5, 4)[:, :, 0]
  assert all(len(set(row)) == 5 for row in names)
  assert set(names.reshape(-1)) == set(range(7))


@pytest.mark.parametrize(
  ("method", "options"),
  [
    ("etc", {}),
    ("etc_flat", {}),
    ("bigbird", {"block": 4, "num_random": 1, "num_global": 1}),
    ("longformer", {"window": 4, "num_global": 1}),
    ("sliding_window", {"window": 3, "right": 2}),
    ("dense", {}),
  ],
)
def test_every_method_takes_the_rows(method, options):
  model = _TASK.make_model(method, options, dtype=jnp.float32)
  out, _ = jax.eval_shape(
    model.init_with_output, jax.random.key(0), _rows(_TASK)
  )
  assert out.shape == (40, 2, 3)
  assert out.dtype == jnp.float32


def test_a_short_run(tmp_path):
  config = dataclasses.replace(
    configs.get_config("longformer"),
    task_options={"paragraphs": 3, "tokens": 4, "names": 3, "layers": 1},
    method_options={"window": 4, "num_global": 1},
    steps=4,
    batch_size=8,
    warmup_steps=1,
    eval_rows=32,
    eval_every=2,
    checkpoint_every=2,
    mesh="data=1",
  )
  results = train.run(config, tmp_path)
  assert 0 <= results["value"] <= 1
  assert "any answer" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"paragraphs": 1}, "paragraphs must be at least 2"),
    ({"tokens": 2}, "tokens must be at least 3"),
    ({"paragraphs": 20}, "names must be at least 20"),
    ({"hops": 0}, "hops must be at least 1"),
    ({"read": -1}, "read must be at least 0"),
    ({"read": 300}, "read must be at most 256"),
  ],
)
def test_wrong_options_are_named(options, message):
  config = train.Config(task="paragraph_retrieval", task_options=options)
  with pytest.raises(files.UserError, match=message):
    train.make_task(config)


def test_unknown_methods_and_options_are_named():
  with pytest.raises(files.UserError, match="known: etc, etc_flat, bigbird"):
    _TASK.make_model("star", {}, dtype=jnp.float32)
  part = dataclasses.replace(_TASK, read=4)
  with pytest.raises(files.UserError, match="reads whole paragraphs: leave"):
    part.make_model("etc", {}, dtype=jnp.float32)
  with pytest.raises(files.UserError, match="no option 'windows'"):
    _TASK.make_model("etc", {"windows": 3}, dtype=jnp.float32)
  with pytest.raises(files.UserError, match="radius must not be negative"):
    _TASK.make_model("etc", {"radius": -1}, dtype=jnp.float32)
