"""Runs on DNA that are stopped end where whole ones do, bit for bit."""

import pytest

from experiments.common import loop
from tests.genomics import tiny

_FORM = {"steps": 6, "warmup_steps": 2, "eval_every": 0, "log_every": 3}
_SMALL = {"pretrain": {"eval_windows": 8}}


def _run(name, workdir):
  options = _FORM | {"checkpoint_every": 2} | _SMALL.get(name, {})
  return tiny.module(name).run(tiny.config(name, **options), workdir)


def _stop_at(step, patch):
  """The process dies right after the checkpoint of a step is written."""
  save = loop.checkpoint.Checkpoints.save

  def stopping(self, at, state, extra):
    save(self, at, state, extra)
    if at == step:
      raise KeyboardInterrupt

  patch.setattr(loop.checkpoint.Checkpoints, "save", stopping)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.PROGRAMS)
def test_stopped_runs_end_as_whole_ones(name, tmp_path, monkeypatch, capsys):
  """Which rows come, what is hidden and dropped depends on the step alone."""
  pytest.importorskip("sklearn")
  whole = _run(name, tmp_path / "whole")
  with monkeypatch.context() as patch:
    _stop_at(4, patch)
    with pytest.raises(KeyboardInterrupt):
      _run(name, tmp_path / "stopped")
  assert not (tmp_path / "stopped" / "report").exists()
  capsys.readouterr()
  resumed = _run(name, tmp_path / "stopped")
  assert "resuming" in capsys.readouterr().out
  assert resumed["scores"] == whole["scores"]
  assert resumed["floors"] == whole["floors"]
