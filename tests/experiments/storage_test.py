"""Files that are whole or absent: outputs, metrics, checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import checkpoint
from experiments.common import files
from experiments.common import metrics
from experiments.common import plots
from experiments.common import report


def test_a_failed_write_keeps_what_was_there(tmp_path):
  path = tmp_path / "a.txt"
  files.write_text(path, "old")
  with pytest.raises(RuntimeError):
    with files.whole(path) as part:
      part.write_text("half")
      raise RuntimeError
  assert path.read_text() == "old"
  files.write_text(path, "new")
  assert path.read_text() == "new"
  assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_plot_leaves_nothing(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise RuntimeError

  monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
  with pytest.raises(RuntimeError):
    plots.curves(
      tmp_path / "a.png", {"a": [(0, 1)]}, title="", x_label="", y_label=""
    )
  assert not list(tmp_path.iterdir())


def test_results_are_written_last(tmp_path, monkeypatch):
  """A report cut short has no results.json, which marks it complete."""

  def fail(path, value):
    raise RuntimeError

  monkeypatch.setattr(files, "write_json", fail)
  with pytest.raises(RuntimeError):
    report.write(tmp_path, title="t", sections=[], results={})
  assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def _metrics(folder, step, lines):
  writer = metrics.Writer(folder, step=step)
  for line in lines:
    writer.write(line, {"loss": float(line)})
  writer.close()
  return [x["step"] for x in metrics.read(folder / metrics.NAME)]


def test_metrics_after_the_restored_step_are_cut(tmp_path):
  assert _metrics(tmp_path, 0, [1, 2, 3, 4]) == [1, 2, 3, 4]
  assert _metrics(tmp_path, 2, [3, 4, 5]) == [1, 2, 3, 4, 5]
  assert _metrics(tmp_path, 0, [1]) == [1]


def test_a_line_cut_short_is_dropped(tmp_path):
  path = tmp_path / metrics.NAME
  path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
  assert [x["step"] for x in metrics.read(path)] == [1]
  assert _metrics(tmp_path, 2, [3]) == [1, 3]
  for line in path.read_text().splitlines():
    json.loads(line)


def test_tensorboard_events_are_written(tmp_path):
  _metrics(tmp_path, 0, [1])
  (events,) = (tmp_path / "tensorboard").iterdir()
  assert events.stat().st_size > 0


def _state(value):
  return {"params": {"w": jnp.full((2, 3), value)}, "step": jnp.int32(value)}


def test_checkpoints_keep_the_newest_and_come_back(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  assert saved.latest() is None
  assert not checkpoint.has_checkpoint(tmp_path)
  for step in (1, 2, 3):
    saved.save(step, _state(step), {"iterator": {"next_index": step}})
  saved.close()
  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  assert saved.latest() == 3
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    _state(0),
  )
  state, extra = saved.restore(2, abstract)
  np.testing.assert_array_equal(state["params"]["w"], np.full((2, 3), 2.0))
  assert extra == {"iterator": {"next_index": 2}}
  assert checkpoint.has_checkpoint(tmp_path)
  with pytest.raises(files.UserError, match="cannot read checkpoint 1 "):
    saved.restore(1, abstract)
  saved.close()


def test_another_configuration_is_refused(tmp_path):
  checkpoint.claim(tmp_path, {"steps": 5, "options": {"a": 1}})
  # Nothing is lost while there is no checkpoint.
  checkpoint.claim(tmp_path, {"steps": 6, "options": {"a": 1}})
  saved = checkpoint.Checkpoints(tmp_path)
  saved.save(1, _state(1), {})
  saved.close()
  checkpoint.claim(tmp_path, {"steps": 6, "options": {"a": 1}})
  with pytest.raises(files.UserError) as error:
    checkpoint.claim(tmp_path, {"steps": 7, "options": {"a": 2}, "new": 1})
  text = str(error.value)
  assert "steps: 6 there, 7 now" in text
  assert "options: {'a': 1} there, {'a': 2} now" in text
  assert "new: None there, 1 now" in text
  assert "--workdir" in text and "--overwrite" in text and "\n" not in text


def test_clear_removes_outputs_only(tmp_path):
  (tmp_path / "mine.txt").write_text("keep")
  checkpoint.claim(tmp_path, {})
  _metrics(tmp_path, 0, [1])
  checkpoint.clear(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
