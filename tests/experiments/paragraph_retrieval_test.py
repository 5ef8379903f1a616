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
def test_the_answer_stands_where_the_pointers_lead(hops):
  task = dataclasses.replace(_TASK, hops=hops)
  rows = _rows(task)
  assert rows["tokens"].shape == (40, 20)
  for text, question, answer in zip(
    rows["tokens"].reshape(40, 5, 4),
    rows["question"],
    rows["answer"],
    strict=True,
  ):
    at = question - 14
    for _ in range(hops):
      (place,) = np.nonzero(text[:, 0] == at)[0]
      paragraph = text[place]
      (pointer,) = paragraph[(paragraph >= 7) & (paragraph < 14)]
      (found,) = paragraph[(paragraph >= 21) & (paragraph < 24)]
      at = pointer - 7
      assert at != paragraph[0]  # No paragraph points to itself.
    assert found - 21 == answer


def test_rows_are_of_the_sizes_asked_for():
  rows = _rows(_TASK, 200)
  assert rows["tokens"].max() < _TASK.vocab_size - 1
  assert set(rows["answer"]) == {0, 1, 2}
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
  assert out.shape == (40, 3)
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
  ],
)
def test_wrong_options_are_named(options, message):
  config = train.Config(task="paragraph_retrieval", task_options=options)
  with pytest.raises(files.UserError, match=message):
    train.make_task(config)


def test_unknown_methods_and_options_are_named():
  with pytest.raises(files.UserError, match="known: etc, etc_flat, bigbird"):
    _TASK.make_model("star", {}, dtype=jnp.float32)
  with pytest.raises(files.UserError, match="no option 'windows'"):
    _TASK.make_model("etc", {"windows": 3}, dtype=jnp.float32)
  with pytest.raises(files.UserError, match="radius must not be negative"):
    _TASK.make_model("etc", {"radius": -1}, dtype=jnp.float32)
