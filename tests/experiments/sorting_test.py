"""Sorting: rows hold their symbols in order, and only the order counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from experiments.synthetic import sorting
from experiments.synthetic import train
from experiments.synthetic.configs import sorting as configs

_TASK = sorting.Sorting(symbols=9, count=8, layers=1, width=16, heads=2)


def _rows(count=50):
  return _TASK.draw(np.random.default_rng(0), count)


def test_rows_are_symbols_and_the_same_in_order():
  rows = _rows()
  for inputs, targets, counted in zip(
    rows["inputs"], rows["targets"], rows["sorted"], strict=True
  ):
    assert inputs.shape == (16,) and inputs[8] == 9
    np.testing.assert_array_equal(inputs[1:], targets[:-1])
    np.testing.assert_array_equal(targets[8:], np.sort(inputs[:8]))
    np.testing.assert_array_equal(np.nonzero(counted)[0], np.arange(8, 16))


def test_only_the_order_is_measured():
  rows = _rows(20)
  counted = rows["sorted"] > 0
  answer = np.where(counted, rows["targets"], (rows["targets"] + 1) % 10)
  logits = 50.0 * np.asarray(jax.nn.one_hot(answer, 10))
  loss, accuracy = _TASK.measure(logits, rows)
  np.testing.assert_allclose(loss, 0.0, atol=1e-6)
  np.testing.assert_array_equal(accuracy, 1.0)
  assert np.all(_TASK.exact(logits, rows))
  logits[0, 12] *= -1  # One symbol of one row.
  _, accuracy = _TASK.measure(logits, rows)
  np.testing.assert_allclose(accuracy[0], 7 / 8)
  assert not _TASK.exact(logits, rows)[0] and np.all(
    _TASK.exact(logits, rows)[1:]
  )


@pytest.mark.parametrize("method", ["sinkhorn", "sliding_window", "dense"])
def test_models_predict_every_token(method):
  options = {"sinkhorn": {"block": 4}, "sliding_window": {"window": 4}}
  model = _TASK.make_model(method, options.get(method, {}), dtype=jnp.float32)
  out, _ = model.init_with_output(jax.random.key(0), _rows(3))
  assert out.shape == (3, 16, 10)


def test_configurations_make_their_tasks():
  for method in ("sinkhorn", "sliding_window", "dense"):
    config = configs.get_config(method)
    train.check(config)
    assert train.make_task(config).length == 64
  with pytest.raises(files.UserError, match="count"):
    sorting.Sorting(count=0)
