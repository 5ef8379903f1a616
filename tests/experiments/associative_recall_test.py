"""Associative recall: what is asked was stored before, at all distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from experiments.synthetic import associative_recall
from experiments.synthetic import train
from experiments.synthetic.configs import associative_recall as configs

_TASK = associative_recall.AssociativeRecall(
  length=64, values=5, layers=1, width=16, heads=2
)


def _rows(count=200):
  return _TASK.draw(np.random.default_rng(0), count)


def test_rows_ask_for_what_was_stored():
  rows, distances = _rows(), []
  for keys, given, answers, asked in zip(
    *(rows[n] for n in ("keys", "given", "answers", "asked")), strict=True
  ):
    stored = {}
    for place, (key, value, answer, asks) in enumerate(
      zip(keys, given, answers, asked, strict=True)
    ):
      if asks:
        assert value == 5 and stored[key][1] == answer
        if place >= 56:
          distances.append(place - stored[key][0])
      else:
        assert value == answer < 5 and key not in stored
        stored[key] = place, value
    assert 0 < asked.sum() < 64 and asked[0] == 0
  # On a logarithmic scale: about as many up to 8 back as further.
  assert 0.35 < np.mean(np.asarray(distances) <= 8) < 0.65
  assert max(distances) > 50 and min(distances) == 1
  assert 0.4 < rows["asked"].mean() < 0.6


def test_only_questions_are_measured():
  rows = _rows(20)
  asked = rows["asked"] > 0
  answer = np.where(asked, rows["answers"], (rows["answers"] + 1) % 5)
  logits = 50.0 * jax.nn.one_hot(answer, 5)
  loss, accuracy = _TASK.measure(logits, rows)
  np.testing.assert_allclose(loss, 0.0, atol=1e-6)
  np.testing.assert_array_equal(accuracy, 1.0)
  loss, accuracy = _TASK.measure(-logits, rows)
  np.testing.assert_array_equal(accuracy, 0.0)


@pytest.mark.parametrize("method", ["routing", "sliding_window", "dense"])
def test_models_answer_for_every_token(method):
  options = configs.get_config(method).method_options
  if method == "routing":
    options = options | {"num_clusters": 4, "local_heads": 1, "window": 16}
    options["local_window"] = 16
  if method == "sliding_window":
    options = {"window": 16}
  model = _TASK.make_model(method, options, dtype=jnp.float32)
  rows = _rows(3)
  out, variables = model.init_with_output(jax.random.key(0), rows)
  assert out.shape == (3, 64, 5)
  assert ("attention" in variables) == (method == "routing")


def test_configurations_make_their_tasks():
  for method in ("routing", "sliding_window", "dense"):
    config = configs.get_config(method)
    train.check(config)
    task = train.make_task(config)
    assert task.length == 512
  with pytest.raises(files.UserError, match="values"):
    associative_recall.AssociativeRecall(values=1)
  with pytest.raises(files.UserError, match="unknown method"):
    _TASK.make_model("other", {}, dtype=jnp.float32)
