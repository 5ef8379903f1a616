"""Benchmarks measure what they say, and never leave half a file."""

import json
import pathlib
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import timing

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_interleave_takes_turns_and_finds_the_slower():
  calls = []

  def call(name, seconds):
    calls.append(name)
    time.sleep(seconds)

  found = timing.interleave(
    {
      "slow": lambda: call("slow", 0.02),
      "quick": lambda: call("quick", 0.001),
    },
    rounds=4,
    seconds=60,
  )
  # A first round that does not count, then each round starts with another.
  turns = ["slow", "quick"]
  assert calls == turns + (turns + turns[::-1]) * 2
  assert found["slow"].rounds == 4
  assert found["slow"].min_ms >= 20 > found["quick"].min_ms
  assert found["quick"].min_ms <= found["quick"].median_ms


def test_interleave_stops_in_time():
  found = timing.interleave(
    {"one": lambda: time.sleep(0.01)}, rounds=1000, seconds=0.03
  )
  assert 1 <= found["one"].rounds < 100


def test_gemm_counts_its_flops():
  call, flops = timing.gemm(32, jnp.float32)
  assert call().shape == (32, 32)
  assert flops == 65536


def test_write_jsonl_is_whole_or_not_at_all(tmp_path):
  path = tmp_path / "new" / "results.jsonl"
  timing.write_jsonl(path, [{"a": 1}, {"a": 2}])
  assert [json.loads(x)["a"] for x in path.read_text().splitlines()] == [1, 2]
  with pytest.raises(TypeError):
    timing.write_jsonl(path, [{"a": 3}, {"a": np.zeros(2)}])
  assert path.read_text().count("\n") == 2
  assert list(path.parent.iterdir()) == [path]


def test_markdown():
  table = timing.markdown([{"n": 1, "name": "a"}, {"n": 100, "name": "bc"}])
  assert table.splitlines()[2:] == ["|   1 |    a |", "| 100 |   bc |"]


def test_block_sparse_benchmark_runs(tmp_path):
  """In small, with a memory limit that the longer length exceeds."""
  output = tmp_path / "out.jsonl"
  options = {
    "lengths": "64,256",
    "window": 16,
    "heads": 1,
    "depth": 8,
    "gemm": 64,
    "rounds": 2,
    "max_gib": 2e-4,  # 215 KB; 256 x 256 scores are 262 KB.
    "output": output,
  }
  command = [sys.executable, "-m", "benchmarks.block_sparse"]
  command += [f"--{name}={value}" for name, value in options.items()]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in output.read_text().splitlines()]
  assert [r["length"] for r in records] == [64, 64, 256, 256]
  for record in records:
    assert record["ms"] > 0 and record["gemm_share"] > 0
    if record["length"] == 64:
      want = record["dense_ms"] / record["ms"]
      assert record["speedup"] == pytest.approx(want)
    else:
      assert "speedup" not in record and "GiB" in record["note"]
  forward, both = records[:2]
  assert both["useful_gflop"] == pytest.approx(3.5 * forward["useful_gflop"])
  assert "not run" in done.stdout


@pytest.mark.slow
def test_fixed_patterns_benchmark_runs(tmp_path):
  """In small: a record for each pass, a table and a figure."""
  output = tmp_path / "out.jsonl"
  command = [sys.executable, "-m", "benchmarks.fixed_patterns"]
  command += ["--lengths=64", "--heads=1", "--depth=8", "--rounds=1"]
  command += ["--methods=bigbird,star", f"--output={output}"]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in output.read_text().splitlines()]
  names = [(r["method"], r["pass"]) for r in records]
  assert len(set(names)) == 8
  for record in records:
    assert record["ms"] > 0 and record["temporary_bytes"] >= 0
    assert ("speedup_naive" in record) == ("dense" not in record["method"])
  assert "bigbird |" in output.with_suffix(".md").read_text()
  assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_remat_benchmark_counts_what_is_kept(tmp_path):
  output = tmp_path / "out.jsonl"
  command = [sys.executable, "-m", "benchmarks.remat_depth", "--depths=1,2"]
  command += ["--length=64", "--width=16", f"--output={output}"]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in output.read_text().splitlines()]
  kept = {(r["depth"], r["kind"]): r["kept_bytes"] for r in records}
  kinds = ("none", "dots", "full", "reversible")
  added = {kind: kept[2, kind] - kept[1, kind] for kind in kinds}
  assert added["reversible"] == 0
  assert 0 < added["full"] < added["none"] / 5


@pytest.mark.slow
def test_decoding_benchmark_runs(tmp_path):
  """In small: three models in turns, and two caches."""
  output = tmp_path / "out.jsonl"
  command = [sys.executable, "-m", "benchmarks.decoding", "--batch=2"]
  command += ["--lengths=16,32", "--again=16", "--whole=16", "--positions=40"]
  command += ["--width=16", "--layers=1", "--memory_layers=1", "--heads=2"]
  command += ["--methods=linear,dense", "--steps=2", "--rounds=1"]
  command += [f"--output={output}"]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in output.read_text().splitlines()]
  found = [(r["part"], r.get("length"), r["model"]) for r in records]
  assert found == [
    ("throughput", 16, "linear"),
    ("throughput", 16, "softmax, cache"),
    ("throughput", 16, "softmax, no cache"),
    ("throughput", 32, "linear"),
    ("throughput", 32, "softmax, cache"),
    ("memory", None, "linear"),
    ("memory", None, "dense"),
  ]
  for record in records[:5]:
    speed = record["images_per_second"] * record["length"]
    assert speed == pytest.approx(record["tokens_per_second"])
    assert ("linear_speedup" in record) == (record["model"] != "linear")
  assert "whole_images_per_second" in records[0]
  assert "whole_images_per_second" not in records[3]
  # 42 keys and values of 16 numbers, and twice the length of the row.
  assert records[6]["cache_bytes"] == 42 * 2 * 16 * 4 + 8
  assert "linear is faster by" in output.with_suffix(".md").read_text()
  assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_linformer_benchmark_makes_the_table_of_ratios(tmp_path):
  output = tmp_path / "out.jsonl"
  command = [sys.executable, "-m", "benchmarks.linformer", "--lengths=64,128"]
  command += ["--k=16,64", "--heads=1", "--depth=8", "--rounds=1"]
  command += ["--max_gib=1e-4", f"--output={output}"]  # 128 x 128 is 64 KiB.
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in output.read_text().splitlines()]
  by = {(r["method"], r["k"], r["length"], r["pass"]): r for r in records}
  assert len(by) == 2 * (3 + 1) + 2 * (3 + 2)
  for which in ("forward", "forward+backward"):
    assert ("linformer", 64, 64, which) not in by  # k is below the length.
    one, full = (
      by[method, k, 64, which]
      for method, k in (("linformer", 16), ("naive", None))
    )
    assert one["speed_naive"] == pytest.approx(full["ms"] / one["ms"])
    want = full["temporary_bytes"] / one["temporary_bytes"]
    assert one["memory_naive"] == pytest.approx(want)
  late = by["linformer", 16, 128, "forward+backward"]
  assert "speed_naive" not in late and "memory_naive" in late
  assert "speed, k=16" in output.with_suffix(".md").read_text()
  assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def _records(name, output, *arguments):
  """Runs a benchmark of trainings in small."""
  command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
  command += ["--steps=3", f"--output={output}"]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.slow
def test_duplication_benchmark_makes_the_table_of_rounds(tmp_path):
  output = tmp_path / "out.jsonl"
  records = _records(
    "duplication", output, "--word=3", "--chunk=4", "--rows=32",
    "--train=full,1", "--evaluate=full,2", "--seeds=0,1",
  )  # fmt: skip
  found = [(r["train"], r["seed"], r["evaluate"]) for r in records]
  assert found == [
    (train, seed, evaluate)
    for train in ("full", "1")
    for seed in (0, 1)
    for evaluate in ("full", "2")
  ]
  # A row fits in a chunk and the one before: rounds make no difference.
  assert all(0 <= r["accuracy"] <= 1 and r["loss"] > 0 for r in records)
  assert "eval 2" in output.with_suffix(".md").read_text()


@pytest.mark.slow
def test_recall_and_sorting_benchmarks_compare_methods(tmp_path):
  output = tmp_path / "recall.jsonl"
  records = _records(
    "associative_recall", output, "--length=32", "--clusters=4", "--rows=16",
    "--methods=routing+local,random", "--seeds=3",
  )  # fmt: skip
  assert [r["method"] for r in records] == ["routing+local", "random"]
  assert {r["window"] for r in records} == {8}
  assert "recalled" in output.with_suffix(".md").read_text()
  output = tmp_path / "sorting.jsonl"
  records = _records(
    "sorting", output, "--count=8", "--symbols=5", "--block=4", "--rows=16",
    "--methods=sinkhorn,local", "--seeds=0",
  )  # fmt: skip
  assert [r["method"] for r in records] == ["sinkhorn", "local"]
  assert all(0 <= r["exact"] <= r["accuracy"] for r in records)
  assert "rows right" in output.with_suffix(".md").read_text()


@pytest.mark.slow
def test_content_based_benchmark_runs(tmp_path):
  output = tmp_path / "out.jsonl"
  command = [sys.executable, "-m", "benchmarks.content_based"]
  command += ["--lengths=128", "--heads=1", "--depth=8", "--rounds=1"]
  command += [f"--output={output}"]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in output.read_text().splitlines()]
  assert len({r["method"] for r in records}) == 11
  assert all(r["ms"] > 0 for r in records)


@pytest.mark.slow
def test_peers_benchmark_reports_what_is_not_installed(tmp_path):
  """Ours beside a package that tests do not install, and one that they do."""
  output = tmp_path / "out.jsonl"
  command = [sys.executable, "-m", "benchmarks.peers", "--lengths=256"]
  command += ["--only=jaxattn_window512,hf_longformer,jax_nn_window512"]
  command += ["--rounds=1", "--calls=1", "--passes=forward"]
  command += [f"--output={output}"]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  lines = output.read_text().splitlines()
  records = {r["name"]: r for r in map(json.loads, lines)}
  assert records["jaxattn_window512"]["ms"] > 0
  assert records["jax_nn_window512"]["mib"] > 0
  if "ms" not in records["hf_longformer"]:
    assert "PackageNotFoundError" in records["hf_longformer"]["error"]
  table = output.with_suffix(".md").read_text()
  assert "hf_longformer" in table and "jax_nn_window512" in table


@pytest.mark.slow
def test_accelerator_benchmark_says_where_there_is_no_kernel(tmp_path):
  output = tmp_path / "out.jsonl"
  command = [sys.executable, "-m", "benchmarks.accelerator", "--lengths=256"]
  command += ["--cases=window,linear", "--nopeers", "--seconds=0.01"]
  command += [f"--output={output}"]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in output.read_text().splitlines()]
  window = [r for r in records if r["case"] == "window"]
  assert all("an NVIDIA Hopper GPU or a TPU" in r["error"] for r in window)
  linear = [r for r in records if r["by"] == "jaxattn, xla"]
  assert len(linear) == 2 and all(r["seconds"] > 0 for r in linear)
  assert "not run" in output.with_suffix(".md").read_text()
  command[3] = "--lengths=128"
  subprocess.run([*command, "--keep"], cwd=_ROOT, check=True)
  records = [json.loads(line) for line in output.read_text().splitlines()]
  assert {r["length"] for r in records} == {128, 256}
