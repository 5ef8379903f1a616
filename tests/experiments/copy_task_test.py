"""The copy task: rows repeat themselves, and only the copy counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from experiments.common import metrics
from experiments.synthetic import copy_task
from experiments.synthetic import train
from experiments.synthetic.configs import copy_task as configs

_TASK = copy_task.CopyTask(symbols=5, length=16, layers=1, width=16, heads=2)


def _rows(count=200):
  return _TASK.draw(np.random.default_rng(0), count)


def test_rows_repeat_their_symbols():
  rows, found = _rows(), set()
  for name, dtype in (
    ("inputs", np.int32),
    ("targets", np.int32),
    ("copied", np.float32),
  ):
    assert rows[name].shape == (200, 16) and rows[name].dtype == dtype
  for inputs, targets, copied in zip(
    rows["inputs"], rows["targets"], rows["copied"], strict=True
  ):
    np.testing.assert_array_equal(inputs[1:], targets[:-1])
    n = int(np.argmax(inputs == 5))  # The first separator.
    found.add(n)
    assert np.all(inputs[:n] < 5)
    np.testing.assert_array_equal(inputs[n + 1 : 2 * n + 1], inputs[:n])
    np.testing.assert_array_equal(inputs[2 * n + 1 :], 5)
    # What counts is predicted from the separator on, up to the last symbol.
    np.testing.assert_array_equal(np.nonzero(copied)[0], np.arange(n, 2 * n))
    np.testing.assert_array_equal(targets[copied > 0], inputs[:n])
  assert found == set(range(1, 8))


def test_only_the_copy_is_measured():
  """A sure answer that is right there and wrong elsewhere costs nothing."""
  rows = _rows(20)
  counted = rows["copied"] > 0
  answer = np.where(counted, rows["targets"], (rows["targets"] + 1) % 6)
  logits = 50.0 * jax.nn.one_hot(answer, 6)
  loss, accuracy = _TASK.measure(logits, rows)
  assert loss.shape == accuracy.shape == (20,)
  np.testing.assert_allclose(loss, 0.0, atol=1e-6)
  np.testing.assert_array_equal(accuracy, 1.0)
  loss, accuracy = _TASK.measure(-logits, rows)
  np.testing.assert_allclose(loss, 50 + np.log(5), rtol=1e-5)
  np.testing.assert_array_equal(accuracy, 0.0)


def test_the_floor_is_what_one_symbol_reaches():
  """2,000 rows of 4 symbols or so: 4 standard errors are about 0.02."""
  rows = _rows(2000)
  logits = jnp.zeros((2000, 16, 6)).at[..., 3].set(1.0)
  accuracy = np.mean(_TASK.measure(logits, rows)[1])
  assert accuracy == pytest.approx(_TASK.floors()["any symbol"], abs=0.02)


@pytest.mark.parametrize("method", ["dense", "linear", "sliding_window"])
def test_causal_methods_take_the_rows(method):
  config = configs.get_config(method)
  model = train.make_model(config, train.make_task(config))
  assert model.cfg.vocab_size == 11


def test_the_future_is_not_read():
  """The last symbol of a row changes no logits before it."""
  model = _TASK.make_model("dense", {}, dtype=jnp.float32)
  rows = _rows(1)
  variables = model.init(jax.random.key(0), rows)
  other = dict(rows, inputs=rows["inputs"].copy())
  other["inputs"][:, 9] = (rows["inputs"][:, 9] + 1) % 5
  first, second = (model.apply(variables, x) for x in (rows, other))
  np.testing.assert_array_equal(first[:, :9], second[:, :9])
  assert np.any(first[:, 9:] != second[:, 9:])


def test_a_short_run(tmp_path):
  config = dataclasses.replace(
    configs.get_config("dense"),
    task_options=dataclasses.asdict(_TASK),
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
  assert f"| loss on the held-out rows | {results['loss']:.4f} |" in text


@pytest.mark.slow
def test_learns_to_copy(tmp_path):
  """Up to three of three symbols: well beyond what one symbol reaches."""
  config = dataclasses.replace(
    configs.get_config("dense"),
    task_options={
      "symbols": 3,
      "length": 7,
      "layers": 2,
      "width": 32,
      "heads": 2,
      "positions": "learned",
    },
    steps=300,
    batch_size=64,
    eval_rows=256,
    eval_every=0,
    checkpoint_every=0,
    mesh="data=1",
  )
  assert train.run(config, tmp_path)["value"] > 0.9


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"symbols": 1}, "symbols must be at least 2"),
    ({"length": 2}, "length must be at least 3"),
  ],
)
def test_wrong_options_are_named(options, message):
  config = train.Config(task="copy_task", task_options=options)
  with pytest.raises(files.UserError, match=message):
    train.make_task(config)


def test_methods_that_cannot_decode_are_refused():
  with pytest.raises(files.UserError, match="does not serve causal masks"):
    _TASK.make_model("bigbird", {"block": 4}, dtype=jnp.float32)
  with pytest.raises(files.UserError, match="unknown method 'star'"):
    _TASK.make_model("star", {}, dtype=jnp.float32)
  strange = dataclasses.replace(_TASK, positions="here")
  with pytest.raises(files.UserError, match="positions must be one of"):
    strange.make_model("dense", {}, dtype=jnp.float32)
