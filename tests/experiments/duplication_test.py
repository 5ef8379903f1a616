"""The duplication task: rows are 0 w 0 w, and only the second word counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import training
from experiments.common import files
from experiments.common import metrics
from experiments.synthetic import duplication
from experiments.synthetic import train
from experiments.synthetic.configs import duplication as configs

_TASK = duplication.Duplication(
  word=7, symbols=5, width=16, mlp_width=16, heads=2
)
_LSH = {"chunk": 4, "rounds": 2}


def _rows(count=200):
  return _TASK.draw(np.random.default_rng(0), count)


def test_rows_are_a_word_twice():
  rows = _rows()
  assert _TASK.length == 16
  for name, dtype in (
    ("inputs", np.int32),
    ("targets", np.int32),
    ("copied", np.float32),
  ):
    assert rows[name].shape == (200, 16) and rows[name].dtype == dtype
  inputs, targets, counted = (rows[n] for n in ("inputs", "targets", "copied"))
  first, second = np.split(inputs, 2, axis=1)
  np.testing.assert_array_equal(first, second)
  np.testing.assert_array_equal(first[:, 0], 0)
  assert set(np.unique(first[:, 1:])) == set(range(1, 6))
  np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
  # From the second 0 on the next token is known, up to the last symbol.
  for row in range(200):
    np.testing.assert_array_equal(np.nonzero(counted[row])[0], range(8, 15))
    np.testing.assert_array_equal(targets[row, 8:15], inputs[row, 1:8])


def test_only_the_second_word_is_measured():
  """A sure answer that is right there and wrong elsewhere costs nothing."""
  rows = _rows(20)
  right = rows["copied"] > 0
  answer = np.where(right, rows["targets"], (rows["targets"] + 1) % 6)
  logits = 50.0 * jax.nn.one_hot(answer, 6)
  loss, accuracy = _TASK.measure(logits, rows)
  np.testing.assert_allclose(loss, 0.0, atol=1e-6)
  np.testing.assert_array_equal(accuracy, 1.0)
  np.testing.assert_array_equal(_TASK.measure(-logits, rows)[1], 0.0)
  always = jnp.zeros((20, 16, 6)).at[..., 3].set(1.0)
  share = np.mean(_TASK.measure(always, rows)[1])
  assert share == pytest.approx(_TASK.floors()["any symbol"], abs=0.1)


def test_full_attention_is_one_chunk_whatever_the_rounds():
  """Models of one width have the same variables, so that rounds may change."""
  rows = _rows(4)
  models = [
    _TASK.make_model("reformer", options, dtype=jnp.float32)
    for options in (
      {"chunk": 16, "rounds": 1},
      {"chunk": 16, "rounds": 4},
      _LSH,
    )
  ]
  variables = models[0].init(jax.random.key(0), rows)
  one, four, hashed = (m.apply(variables, rows) for m in models)
  np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5)
  assert np.abs(one - hashed).max() > 1e-4
  # The last symbol is not read before it; values cannot leak in any case.
  other = dict(rows, inputs=rows["inputs"].copy())
  other["inputs"][:, -1] = other["inputs"][:, -1] % 5 + 1
  ahead = models[0].apply(variables, other)
  np.testing.assert_allclose(ahead[:, :-1], one[:, :-1], rtol=1e-5, atol=1e-6)
  assert np.abs(ahead[:, -1] - one[:, -1]).max() > 1e-3


@pytest.mark.parametrize("method", ["reformer", "dense", "sliding_window"])
def test_causal_methods_take_the_rows(method):
  config = configs.get_config(method)
  model = train.make_model(config, train.make_task(config))
  assert model.cfg.vocab_size == 32
  assert model.cfg.residuals == "reversible"


@pytest.mark.slow
def test_a_short_run(tmp_path):
  config = dataclasses.replace(
    configs.get_config(),
    task_options=dataclasses.asdict(_TASK),
    method_options=_LSH,
    steps=4,
    batch_size=8,
    warmup_steps=1,
    eval_rows=20,
    eval_every=2,
    checkpoint_every=2,
    mesh="data=1",
  )
  results = train.run(config, tmp_path)
  assert 0 <= results["value"] <= 1
  lines = metrics.read(tmp_path / metrics.NAME)
  losses = [x["held_out_loss"] for x in lines if "accuracy" in x]
  assert len(losses) == 2 and losses[-1] == results["loss"]
  text = (tmp_path / "report" / "report.md").read_text()
  assert "| any symbol | 0.200 |" in text


@pytest.mark.slow
def test_learned_with_full_attention_and_evaluated_by_rounds():
  """All is right with full attention; what few rounds miss is wrong."""
  task = duplication.Duplication()
  make = functools.partial(task.make_model, "reformer", dtype=jnp.float32)
  full = make({"chunk": task.length, "rounds": 1})
  trained = training.train(
    task,
    full,
    steps=400,
    batch_size=32,
    learning_rate=1e-3,
    warmup=200,
    seed=0,
  )
  evaluate = functools.partial(
    training.evaluate, task, variables=trained.variables, rows=128,
    batch_size=32,
  )  # fmt: skip
  assert evaluate(model=full)["accuracy"] > 0.99
  found = [
    evaluate(model=make({"chunk": 8, "rounds": r}))["accuracy"]
    for r in (1, 2, 4)
  ]
  assert found == sorted(found) and found[0] < found[1]
  assert found[2] > 0.97


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"symbols": 1}, "symbols must be at least 2"),
    ({"word": 0}, "word must be at least 1"),
    ({"length": 8}, "no option 'length'"),
  ],
)
def test_wrong_options_are_named(options, message):
  config = train.Config(task="duplication", task_options=options)
  with pytest.raises(files.UserError, match=message):
    train.make_task(config)


def test_wrong_residuals_are_named():
  strange = dataclasses.replace(_TASK, residuals="here")
  with pytest.raises(files.UserError, match="residuals"):
    strange.make_model("reformer", _LSH, dtype=jnp.float32)
