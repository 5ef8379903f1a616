"""The command that measures floors, on what is small."""

import json

from genomics import floors


def test_floors_are_printed_and_written(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(
    floors,
    "_measure",
    lambda which: {"a": {"f1": 0.5, "interval": [0.25, 1.0]}},
  )
  path = tmp_path / "a.json"
  monkeypatch.setattr("sys.argv", ["floors", "promoter", f"--output={path}"])
  assert floors.main() == 0
  assert "| a | 0.500 | 0.250 to 1.000 |" in capsys.readouterr().out
  assert json.loads(path.read_text())["floors"]["promoter"]["a"]["f1"] == 0.5
  monkeypatch.setattr("sys.argv", ["floors", "gc"])
  assert floors.main() == 1
  assert "unknown 'gc'" in capsys.readouterr().err
