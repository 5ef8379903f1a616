"""Compiles the kernels for devices that are not here, and checks what came out.

  pip install --no-deps jax-cuda13-plugin==JAX jax-cuda13-pjrt==JAX \
    nvidia-cuda-nvcc nvidia-nvvm        # JAX: the version of jax
  python -m tests.ahead_of_time hopper
  pip install libtpu                    # of the version that jax[tpu] names
  python -m tests.ahead_of_time tpu

For Hopper (jax 0.11 and newer) it prints registers, bytes spilled and shared
memory of every kernel, and fails if more is spilled than is known to be
harmless or if memory does not fit. For TPU v5e and v6e it fails if a kernel
does not compile. Neither says that a kernel is right: interpreters do.
"""

import argparse
import functools
import importlib.util
import os
import pathlib
import re
import site
import sys
import tempfile
import time
from typing import Any

# Before JAX is imported: it reads these.
_DUMP = tempfile.mkdtemp()
os.environ |= {
  "JAX_PLATFORMS": "cpu",
  "MOSAIC_GPU_DUMP_PTXAS": "1",
  "MOSAIC_GPU_DUMP_TO": _DUMP,
  "TF_CPP_MIN_LOG_LEVEL": "2",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
}

# ruff: noqa: E402
import jax
import jax.numpy as jnp
from jax.experimental import topologies

import jaxattn
from jaxattn import patterns
from jaxattn._src import dispatch

# Most bytes that a kernel spills: those of keys' gradients with heads of
# 128, which hold two sums of 64 x 128 in registers, and of masks at run time.
_SPILLS = {64: 16, 128: 320}
_TOPOLOGIES = ("v5e:2x2", "v6e:2x2")

# What the compiler must know of the device, as XLA describes an H200.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""


def _cases() -> dict[str, tuple[Any, bool]]:
  """Patterns by name, and whether there are masks at run time.

  None is causal linear attention, a `Reach` bucketed attention (TPU only).
  """
  bigbird = (
    patterns.Window(192, 192)
    | patterns.Global(64)
    | patterns.RandomBlocks(3, 64)
  )
  by_head = tuple(
    patterns.RandomBlocks(1, 64, seed=i) | patterns.Window(64, 64)
    for i in range(8)
  )
  return {
    "window": (patterns.Window(1023, 0), False),
    "causal, masks": (patterns.Causal(), True),
    "bigbird": (bigbird, False),
    "by head": (by_head, False),
    "linear": (None, False),
    "bucketed": (jaxattn.Reach(chunk=64), True),
    "bucketed, window": (jaxattn.Reach(chunk=256, window=256), False),
  }


def _compile(device: str, sharding: Any, name: str, depth: int) -> None:
  """Compiles forward and backward of a case."""
  pattern, masked = _cases()[name]

  def loss(query: Any, key: Any, value: Any, ids: Any) -> Any:
    mask = jaxattn.FULL
    if masked:
      mask = jaxattn.Mask(
        causal=True,
        key_valid=ids > 0,
        query_segment_ids=ids,
        key_segment_ids=ids,
        query_positions=ids,
        key_positions=ids,
      )
    given = {"mask": mask, "implementation": "pallas"}
    if pattern is None:
      given["mask"] = jaxattn.CAUSAL
      attend = jaxattn.linear_attention
    elif isinstance(pattern, jaxattn.Reach):
      groups = jnp.zeros((2, *query.shape[:-1]), jnp.int32) + ids[..., None]
      out = jaxattn.bucketed_attention(
        query, key, value, groups, reach=pattern, **given
      ).out
      return jnp.sum(out)
    else:
      attend = functools.partial(jaxattn.block_sparse, pattern=pattern)
    out = attend(query, key, value, **given)
    return jnp.sum(out.astype(jnp.float32))

  make = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  query = make((1, 4096, 8, depth), jnp.bfloat16)
  key = make((1, 4096, 2, depth), jnp.bfloat16)
  ids = make((1, 4096), jnp.int32)
  with dispatch.emulate(device):
    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    run.lower(query, key, key, ids).compile()


def _hopper() -> list[str]:
  """Compiles for an H200; returns what is wrong."""
  folders = [pathlib.Path(s, "nvidia") for s in site.getsitepackages()]
  found = [str(p.parent) for f in folders for p in f.glob("**/bin/ptxas")]
  os.environ["PATH"] = os.pathsep.join([*found, os.environ["PATH"]])
  topology = topologies.get_topology_desc(
    platform="cuda", target_config=_H200, topology="1x1x1"
  )
  mesh = topologies.make_mesh(topology, (1,), ("x",))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  wrong = []
  names = [n for n in _cases() if not n.startswith("bucketed")]
  for name in names:
    for depth, allowed in _SPILLS.items():
      start = time.monotonic()
      for old in pathlib.Path(_DUMP).iterdir():
        old.unlink()
      _compile("hopper", sharding, name, depth)
      reports = [p.read_text() for p in pathlib.Path(_DUMP).glob("*.ptxas")]
      text = "\n".join(reports)
      spills = [int(x) for x in re.findall(r"(\d+) bytes spill stores", text)]
      registers = re.findall(r"Used (\d+) registers", text)
      seconds = time.monotonic() - start
      print(
        f"hopper {name:14} {depth:4} {len(reports)} kernels, registers "
        f"{registers}, bytes spilled {spills}, {seconds:.1f} s",
        flush=True,
      )
      if len(reports) < 3:
        wrong.append(f"{name}, {depth}: {len(reports)} kernels were compiled")
      if max(spills, default=0) > allowed:
        wrong.append(f"{name}, {depth}: {max(spills)} bytes spilled")
  return wrong


def _tpu() -> list[str]:
  """Compiles for TPUs; returns what is wrong."""
  wrong = []
  for place in _TOPOLOGIES:
    topology = topologies.get_topology_desc(platform="tpu", topology_name=place)
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    for name in _cases():
      start = time.monotonic()
      try:
        _compile("tpu", sharding, name, 128)
      except Exception as error:
        wrong.append(f"{place}, {name}: {str(error).splitlines()[0]}")
      seconds = time.monotonic() - start
      print(f"{place} {name:14} {seconds:.1f} s", flush=True)
  return wrong


def main() -> int:
  """Compiles for the devices asked for; returns whether something is wrong."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("device", choices=["hopper", "tpu"])
  device = parser.parse_args().device
  package = {"hopper": "jax_plugins.xla_cuda13", "tpu": "libtpu"}[device]
  try:
    there = importlib.util.find_spec(package) is not None
  except ModuleNotFoundError:
    there = False
  if not there:
    print(f"{package} is not installed: nothing is compiled for {device}.")
    return 0
  wrong = _hopper() if device == "hopper" else _tpu()
  for line in wrong:
    print("WRONG", line)
  return bool(wrong)


if __name__ == "__main__":
  sys.exit(main())
