"""The command from end to end: reports, errors in one line, kill -9."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

import jaxattn
from experiments.common import checkpoint
from experiments.common import files
from experiments.common import metrics
from experiments.lm import train
from tests.experiments import tiny

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SMOKE = "experiments/lm/configs/smoke.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run with a BPE, to its end."""
  base = tmp_path_factory.mktemp("run")
  folder = tiny.write_corpus(base / "texts")
  config = tiny.config(
    folder, tokenizer="bpe", vocab_size=300, held_out_bytes=600
  )
  return config, base / "work", train.run(config, base / "work")


def test_report_is_complete(finished):
  config, workdir, results = finished
  folder = workdir / "report"
  assert sorted(p.name for p in folder.iterdir()) == [
    "loss.png",
    "report.md",
    "results.json",
  ]
  assert json.loads((folder / "results.json").read_text()) == results
  bits = results["bits_per_byte"]["test"]
  assert 0 < bits < 8
  assert results["floors"]["bits"].keys() == {
    *(f"Markov order {k}" for k in range(6)),
    "gzip",
    "bzip2",
    "xz",
  }
  text = (folder / "report.md").read_text()
  for name, floor in results["floors"]["bits"].items():
    assert f"| {name} | {floor:.3f} |" in text
  assert f"| **decoder, sliding_window** | {bits:.3f} |" in text
  assert "Floors that still win: " in text
  assert len(results["samples"]) == 2
  assert results["parameters"] > 0 and results["tokens_per_second"] > 0
  assert not [p for p in workdir.rglob("*.part.*")]


def test_the_final_step_is_evaluated_and_saved(finished):
  config, workdir, _ = finished
  lines = metrics.read(workdir / metrics.NAME)
  steps = [x["step"] for x in lines if "valid_bits_per_byte" in x]
  assert steps == [5, 10]
  saved = checkpoint.Checkpoints(workdir)
  assert saved.latest() == 10
  saved.close()


def test_a_finished_run_is_not_repeated(finished, capsys):
  config, workdir, results = finished
  before = (workdir / "report" / "results.json").stat().st_mtime_ns
  assert train.run(config, workdir) == results
  assert (workdir / "report" / "results.json").stat().st_mtime_ns == before
  assert "report.md" in capsys.readouterr().out


def test_a_run_killed_before_its_report_makes_it(finished):
  """From the last checkpoint, with the same numbers and samples."""
  config, workdir, results = finished
  path = workdir / "report" / "results.json"
  path.unlink()
  again = train.run(config, workdir)
  for name in ("bits_per_byte", "samples", "floors"):
    assert again[name] == results[name]
  path.write_text(json.dumps(results))


def test_another_config_or_text_is_refused(finished):
  config, workdir, _ = finished
  other = dataclasses.replace(config, width=32)
  with pytest.raises(files.UserError, match="width: 16 there, 32 now"):
    train.run(other, workdir)
  changed = pathlib.Path(config.path) / "059.txt"
  text = changed.read_text()
  try:
    changed.write_text(text + "more")
    with pytest.raises(files.UserError, match=r"text\.[a-z]+: '.*' there"):
      train.run(config, workdir)
  finally:
    changed.write_text(text)


def test_options_are_checked_before_training(tmp_path):
  for changes, message in (
    ({"top_p": 1.5}, r"--config\.top_p must lie in \(0, 1\]"),
    ({"eval_windows": -1}, "--config.eval_windows must not be negative"),
    ({"seed": -1}, "--config.seed must not be negative"),
  ):
    with pytest.raises(files.UserError, match=message):
      train.run(tiny.config(tmp_path / "none", **changes), tmp_path / "work")
  assert not (tmp_path / "work").exists()


def test_a_length_that_a_method_cannot_take_is_named(tmp_path):
  config = tiny.config(tmp_path)
  model = train.make_model(config, 257)
  refusing = _Refusing()
  model = model.clone(cfg=dataclasses.replace(model.cfg, methods=(refusing,)))
  with pytest.raises(files.UserError, match="rows of --config.length 16: odd"):
    train.check_lengths(config, model)


@dataclasses.dataclass(frozen=True)
class _Refusing(jaxattn.Dense):
  """A method that takes no rows at all."""

  def apply(self, *args, **kwargs):
    raise ValueError("odd")


def test_a_tokenizer_of_another_run_is_not_kept(tmp_path):
  """That run was killed before it saved anything else."""
  checkpoint.claim(tmp_path, {"vocab_size": 300})
  (tmp_path / "tokenizer.json").write_text("{}")
  checkpoint.claim(tmp_path, {"vocab_size": 300})
  assert (tmp_path / "tokenizer.json").exists()
  checkpoint.claim(tmp_path, {"vocab_size": 400})
  assert not (tmp_path / "tokenizer.json").exists()


def test_checkpoints_without_their_config_are_refused(tmp_path):
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  with pytest.raises(files.UserError, match="no config.json"):
    checkpoint.claim(tmp_path, {})


def _command(*arguments, workdir, env=None, **options):
  command = [sys.executable, "-m", "experiments.lm.main", *arguments]
  env = os.environ | {"XLA_FLAGS": ""} | (env or {})  # One device.
  env.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".jax_cache"))
  return subprocess.Popen(
    [*command, f"--workdir={workdir}"],
    cwd=_ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      [f"--config={_SMOKE}:nope"],
      "unknown method 'nope'; known: bigbird, dense, ",
    ),
    (
      ["--config.corpus=file", "--config.path=missing.txt"],
      "cannot read missing.txt: No such file",
    ),
  ],
)
def test_errors_are_one_line(tmp_path, arguments, message):
  if not arguments[0].startswith("--config="):
    arguments = [f"--config={_SMOKE}", *arguments]
  process = _command(*arguments, workdir=tmp_path / "w")
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 1, errors
  (line,) = [x for x in errors.splitlines() if x.startswith("error: ")]
  assert message in line
  assert "Traceback" not in errors
  assert not (tmp_path / "w" / "report").exists()


def _wait(process, condition):
  end = time.monotonic() + 300
  while not condition():
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < end, "the run hangs"
    time.sleep(0.005)


@pytest.mark.slow
def test_killed_runs_end_bitwise_as_one_that_was_not(tmp_path):
  """Killed while computing, while saving, and right after a save."""
  arguments = [
    f"--config={_SMOKE}",
    "--config.steps=40",
    "--config.checkpoint_every=4",
    "--config.log_every=3",
    "--config.eval_every=10",
  ]
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  process = _command(*arguments, workdir=whole)
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors

  def last_step():
    lines = metrics.read(broken / metrics.NAME)
    return lines[-1]["step"] if lines else 0

  def saving():
    return last_step() > 20 and list(broken.glob("checkpoints/*tmp*"))

  def saved():
    steps = [
      int(p.name) for p in broken.glob("checkpoints/*") if p.name.isdigit()
    ]
    return max(steps, default=0) >= 28

  resumed_from = []
  for condition in (lambda: last_step() >= 9, saving, saved):
    process = _command(*arguments, workdir=broken, process_group=0)
    _wait(process, condition)
    os.killpg(process.pid, signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed_from += [x for x in out.splitlines() if x.startswith("resuming")]
    assert not (broken / "report").exists()
  process = _command(*arguments, workdir=broken)
  out, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  resumed_from += [x for x in out.splitlines() if x.startswith("resuming")]
  assert len(resumed_from) == 3
  assert len(set(resumed_from)) > 1

  def outcome(workdir):
    results = files.read_bytes(workdir / "report" / "results.json")
    results = json.loads(results)
    lines = metrics.read(workdir / metrics.NAME)
    for line in lines:
      line.pop("tokens_per_second", None)
    same = ("bits_per_byte", "samples", "floors", "test_digest")
    return lines, {name: results[name] for name in same}

  assert outcome(broken) == outcome(whole)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  """As Open MPI would start them, each with half of the rows."""
  arguments = [f"--config={_SMOKE}", "--config.steps=8", "--config.log_every=1"]
  one, two = tmp_path / "one", tmp_path / "two"
  process = _command(*arguments, workdir=one)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  processes = [
    _command(
      *arguments,
      "--distributed",
      workdir=two,
      env={
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_PORT": str(port),
        "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
      },
    )
    for rank in range(2)
  ]
  for process in processes:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors

  def losses(workdir):
    lines = metrics.read(workdir / metrics.NAME)
    name = "train_bits_per_token"
    return [x[name] for x in lines if name in x]

  assert len(losses(two)) == 8
  assert losses(two) == pytest.approx(losses(one), rel=1e-5)
  results = [
    json.loads((w / "report" / "results.json").read_text()) for w in (one, two)
  ]
  assert results[1]["bits_per_byte"] == pytest.approx(
    results[0]["bits_per_byte"], rel=1e-4
  )
