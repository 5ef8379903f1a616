"""Synthetic tasks: their rows and floors, and a run from end to end."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.common import files
from experiments.common import metrics
from experiments.synthetic import masked_summation
from experiments.synthetic import task as task_lib
from experiments.synthetic import train
from experiments.synthetic.configs import masked_summation as masked_config
from experiments.synthetic.configs import smoke

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TASK = masked_summation.MaskedSummation(n=20, k=3, width=4)


def _config(**changes):
  return dataclasses.replace(smoke.get_config(), mesh="data=1", **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "work"
  config = _config()
  return config, workdir, train.run(config, workdir)


def test_report_is_complete(finished):
  config, workdir, results = finished
  folder = workdir / "report"
  assert sorted(p.name for p in folder.iterdir()) == [
    "curve.png",
    "report.md",
    "results.json",
  ]
  assert json.loads((folder / "results.json").read_text()) == results
  text = (folder / "report.md").read_text()
  assert f"| **star** | {results['value']:.3f} |" in text
  assert "| always the mean | 0.250 |" in text
  assert "| least squares on the sum of all | 0.188 |" in text
  assert results["parameters"] > 0
  lines = metrics.read(workdir / metrics.NAME)
  assert [x["step"] for x in lines if "mse" in x] == [5, 10]


def test_a_finished_run_is_not_repeated(finished, capsys):
  config, workdir, results = finished
  path = workdir / "report" / "results.json"
  before = path.stat().st_mtime_ns
  assert train.run(config, workdir) == results
  assert path.stat().st_mtime_ns == before
  out = capsys.readouterr().out
  assert f"result: mse {results['value']:.4f} on 24 held-out rows" in out


def test_a_run_goes_on_with_the_same_numbers(finished, tmp_path):
  """Stopped after step 5: bitwise the losses and the result."""
  config, workdir, results = finished
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / "10")
  shutil.rmtree(tmp_path / "report")
  again = train.run(config, tmp_path)
  assert again["value"] == results["value"]

  def losses(folder):
    lines = metrics.read(folder / metrics.NAME)
    return [
      {k: v for k, v in line.items() if k != "tokens_per_second"}
      for line in lines
    ]

  assert losses(tmp_path) == losses(workdir)


def test_another_config_is_refused(finished):
  config, workdir, _ = finished
  other = dataclasses.replace(config, seed=1)
  with pytest.raises(files.UserError, match="seed: 0 there, 1 now"):
    train.run(other, workdir)


def test_rows_are_sums_of_flagged_vectors():
  rows = _TASK.draw(np.random.default_rng(0), 50)
  flags, values = rows["inputs"][..., 0], rows["inputs"][..., 1:]
  assert rows["inputs"].shape == (50, 20, 4)
  assert rows["inputs"].dtype == rows["targets"].dtype == np.float32
  np.testing.assert_array_equal(np.unique(flags), [0, 1])
  np.testing.assert_array_equal(flags.sum(axis=1), 3)
  # Every place is flagged at times: the order is drawn too.
  assert np.all(flags.sum(axis=0) > 0)
  want = [v[f > 0].sum(axis=0) for f, v in zip(flags, values, strict=True)]
  np.testing.assert_allclose(rows["targets"], want, rtol=1e-5)


def test_rows_depend_on_seed_and_step_alone():
  one = task_lib.draw(_TASK, 0, 7, 4)
  np.testing.assert_array_equal(
    one["inputs"], task_lib.draw(_TASK, 0, 7, 4)["inputs"]
  )
  others = [
    task_lib.draw(_TASK, 1, 7, 4),
    task_lib.draw(_TASK, 0, 8, 4),
    task_lib.held_out(_TASK, 4),
  ]
  for other in others:
    assert not np.any(one["inputs"][..., 1:] == other["inputs"][..., 1:])


def test_processes_share_every_batch():
  def stream(**options):
    found = task_lib.batches(_TASK, steps=5, batch_size=4, seed=3, **options)
    iterator = iter(found)
    return [next(iterator)["targets"] for _ in range(3)]

  whole = stream()
  np.testing.assert_array_equal(
    whole[2], task_lib.draw(_TASK, 3, 2, 4)["targets"]
  )
  for index in range(2):
    part = stream(process_index=index, process_count=2)
    for got, want in zip(part, whole, strict=True):
      np.testing.assert_array_equal(got, want[index::2])


def test_floors_are_what_the_answers_reach():
  """4096 rows of 3 coordinates: 4 standard errors are about 5 percent."""
  rows = _TASK.draw(np.random.default_rng(1), 4096)
  targets, total = rows["targets"], rows["inputs"][..., 1:].sum(axis=1)
  floors = _TASK.floors()
  mean = np.mean((targets - targets.mean(axis=0)) ** 2)
  assert mean == pytest.approx(floors["always the mean"], rel=0.05)
  x = np.concatenate([total, np.ones((4096, 1), np.float32)], axis=1)
  weights = np.linalg.lstsq(x, targets, rcond=None)[0]
  fitted = np.mean((targets - x @ weights) ** 2)
  name = "least squares on the sum of all"
  assert fitted == pytest.approx(floors[name], rel=0.05)
  assert masked_summation.MaskedSummation().floors()[
    "always the mean"
  ] == pytest.approx(10 / 12)


def test_methods_differ_in_their_edges():
  star, ring, radical = (
    _TASK.make_model(name, {}, dtype=jnp.float32).cfg.encoder
    for name in ("star", "star_ring_only", "star_radical_only")
  )
  assert (star.ring, star.radical) == ("cyclic", True)
  assert dataclasses.replace(star, radical=False) == ring
  assert dataclasses.replace(star, ring="none") == radical


@pytest.mark.slow
def test_learns_to_sum(tmp_path):
  """Two of five numbers, beyond what answers without flags reach."""
  config = _config(
    task_options={"n": 5, "k": 2, "width": 2},
    steps=150,
    batch_size=32,
    learning_rate=1e-2,
    warmup_steps=10,
    log_every=50,
    eval_every=0,
    checkpoint_every=0,
    eval_rows=256,
  )
  results = train.run(config, tmp_path)
  assert results["value"] < 0.5 * min(results["floors"].values())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"task": "sums"}, "unknown task 'sums'; known: .*masked_summation"),
    ({"task_options": {"m": 3}}, "has no option 'm'; it has: n, k, width"),
    ({"task_options": {"n": 4, "k": 5}}, r"k must lie in \[1, n = 4\]"),
    ({"task_options": {"width": 1}}, "width must be at least 2"),
    ({"method": "stars"}, "unknown method 'stars' .*star_ring_only.*dense"),
    (
      {"method": "longformer", "method_options": {"window": 3}},
      "method 'longformer': .*even",
    ),
    ({"method_options": {"heads": 2}}, "has no option 'heads'; it has: .*ring"),
    ({"method_options": {"ring": "x"}}, "method 'star': ring must be one of"),
    (
      {"method_options": {"positions": "learned", "max_length": 4}},
      "does not take rows of 12 tokens: .*max_length 4",
    ),
    ({"eval_rows": 0}, "--config.eval_rows must be positive"),
    ({"seed": -1}, "--config.seed must not be negative"),
    ({"warmup_steps": 10}, "warmup_steps 10 must be less"),
  ],
)
def test_options_are_checked_before_training(tmp_path, changes, message):
  with pytest.raises(files.UserError, match=message) as error:
    train.run(_config(**changes), tmp_path / "work")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
  "method", ["bigbird", "etc", "sliding_window", "sparse_transformer", "star"]
)
def test_configurations_name_every_method(method):
  config = masked_config.get_config(method)
  task = train.make_task(config)
  model = train.make_model(config, task)  # Traces it on a row.
  assert isinstance(model, nn.Module)


@pytest.mark.parametrize(
  ("method", "options"),
  [("dense", {}), ("longformer", {"window": 4, "num_global": 1})],
)
def test_other_methods_in_an_encoder(tmp_path, method, options):
  config = _config(method=method, method_options=options)
  model = train.make_model(config, _TASK)
  batch = task_lib.held_out(_TASK, 2)
  out, _ = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), batch)
  )
  assert out.shape == (2, 3)
  results = train.run(
    dataclasses.replace(config, steps=4, eval_every=0), tmp_path
  )
  assert np.isfinite(results["value"])


def test_activations_take_the_dtype_of_the_config():
  model = train.make_model(_config(dtype="bfloat16"), _TASK)
  assert model.cfg.encoder.dtype == jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class _Sign:
  """Another task: whether a number is positive, judged by accuracy."""

  length: int = 1
  metric = "accuracy"
  lower_is_better = False

  def draw(self, rng, rows):
    x = rng.normal(size=(rows, 1)).astype(np.float32)
    return {"x": x, "label": (x[:, 0] > 0).astype(np.int32)}

  def make_model(self, method, options, *, dtype):
    return _Linear()

  def measure(self, outputs, batch):
    sign = 2.0 * batch["label"] - 1.0
    loss = jnp.logaddexp(0.0, -sign * outputs)
    return loss, (outputs * sign > 0).astype(jnp.float32)

  def floors(self):
    return {"always positive": 0.5, "never wrong": 1.0}


class _Linear(nn.Module):
  @nn.compact
  def __call__(self, batch, *, train=False):
    return nn.Dense(1)(batch["x"])[:, 0]


def test_a_task_is_one_more_entry(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(train.TASKS, "sign", _Sign)
  assert isinstance(_Sign(), task_lib.SyntheticTask)
  config = _config(task="sign", task_options={}, learning_rate=0.5)
  results = train.run(config, tmp_path)
  assert results["metric"] == "accuracy"
  assert 0.5 < results["value"] <= 1.0
  out = capsys.readouterr().out
  assert "floors that still win: never wrong (1.000)" in out
  assert "floors beaten: always positive (0.500)" in out
  text = (tmp_path / "report" / "report.md").read_text()
  assert "Higher is better." in text


def test_errors_are_one_line(tmp_path):
  command = [
    sys.executable,
    "-m",
    "experiments.synthetic.main",
    "--config=experiments/synthetic/configs/smoke.py:nope",
    f"--workdir={tmp_path / 'w'}",
  ]
  done = subprocess.run(
    command,
    cwd=_ROOT,
    env=os.environ | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 1, done.stderr
  (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert "unknown method 'nope' of masked_summation" in line
  assert "Traceback" not in done.stderr
