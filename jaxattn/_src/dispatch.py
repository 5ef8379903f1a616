"""Which implementation serves an engine's call."""

import contextlib
import contextvars
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxattn._src import base

# Scores in flight at a time. CPU: what stays in the last-level cache; GPU and
# TPU: enough work per loop step to fill the device.
_SCORE_BUDGET = {"cpu": 1 << 20, "gpu": 1 << 26, "tpu": 1 << 25}

_WHERE = {"hopper": "an NVIDIA Hopper GPU", "tpu": "a TPU"}


class Choice(NamedTuple):
  """Who serves a call, and why.

  Attributes:
    name: "xla", or the kernels of a device: "hopper" or "tpu".
    reason: why it is they.
    interpret: parameters of the kernels' interpreter, or None.
  """

  name: str
  reason: str
  interpret: Any = None


class _Emulation(NamedTuple):
  device: str
  interpret: Any


_emulation: contextvars.ContextVar[_Emulation | None] = contextvars.ContextVar(
  "emulation", default=None
)


@contextlib.contextmanager
def emulate(device: str, interpret: Any = None) -> Iterator[None]:
  """Chooses as on another device, for tests and ahead-of-time compilation.

  Args:
    device: "hopper" or "tpu".
    interpret: parameters of the interpreter; None compiles the kernels.

  Yields:
    Nothing.
  """
  token = _emulation.set(_Emulation(device, interpret))
  try:
    yield
  finally:
    _emulation.reset(token)


def kernel_device() -> str:
  """The device as kernels see it: "hopper", "tpu" or another platform."""
  emulated = _emulation.get()
  if emulated is not None:
    return emulated.device
  platform = jax.default_backend()
  if platform == "gpu":
    capability = getattr(jax.devices()[0], "compute_capability", "")
    return "hopper" if str(capability) == "9.0" else "gpu"
  return platform


def platform() -> str:
  """The platform that sizes are chosen for: "cpu", "gpu" or "tpu"."""
  device = kernel_device()
  return "gpu" if device == "hopper" else device


def choose(
  engine: str,
  implementation: base.Implementation,
  kernels: Mapping[str, str | None] | None = None,
) -> Choice:
  """Chooses who serves a call of `engine`.

  Args:
    engine: name of the engine.
    implementation: "xla", "pallas" or None for the best that serves.
    kernels: for each device that the engine has kernels for, why they cannot
      serve this call, or None if they can.

  Returns:
    The choice.

  Raises:
    NotImplementedError: if the named one does not serve the call.
    ValueError: if the name is unknown.
  """
  if implementation not in (None, "xla", "pallas"):
    raise ValueError(
      f"implementation must be 'xla', 'pallas' or None, got {implementation!r}."
    )
  kernels, device = kernels or {}, kernel_device()
  if implementation == "xla":
    return Choice("xla", "asked for")
  if not kernels:
    why = f"{engine} has no Pallas kernel"
  elif device not in kernels:
    known = " or ".join(_WHERE[d] for d in kernels)
    why = f"the kernels of {engine} need {known}, and this is {device}"
  elif kernels[device] is not None:
    why = f"the {device} kernel of {engine} does not serve: {kernels[device]}"
  elif implementation is None and _may_be_partitioned():
    why = (
      f"there are {jax.device_count()} devices, among which the compiler "
      "cannot divide a kernel: call it inside jax.shard_map, or with "
      "implementation='pallas' for one device"
    )
  else:
    emulated = _emulation.get()
    interpret = None if emulated is None else emulated.interpret
    return Choice(device, f"{_WHERE[device]} is here", interpret)
  if implementation == "pallas":
    raise NotImplementedError(f"{why}; pass implementation=None.")
  return Choice("xla", why)


def _may_be_partitioned() -> bool:
  """Whether the compiler may divide the call among devices."""
  if _emulation.get() is not None or jax.device_count() == 1:
    return False
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or set(mesh.manual_axes) != set(mesh.axis_names)


def score_budget() -> int:
  """Scores that an XLA engine holds at a time on the default backend."""
  return _SCORE_BUDGET.get(platform(), 1 << 20)


# The same for engines whose tiles are gathered or joined first, so that a step
# holds them beside its scores.
_GATHERED_BUDGET = {"cpu": 1 << 18, "gpu": 1 << 25, "tpu": 1 << 24}


def gathered_budget() -> int:
  """Scores that an engine of gathered tiles holds at a time."""
  return _GATHERED_BUDGET.get(platform(), 1 << 18)


# Tokens in a chunk of causal linear attention. CPU: what keeps features and
# products in the cache; GPU and TPU: fewer steps, each filling the device.
_LINEAR_CHUNK = {"cpu": 64, "gpu": 128, "tpu": 128}


def linear_chunk() -> int:
  """Tokens in a chunk of causal linear attention on the default backend."""
  return _LINEAR_CHUNK.get(platform(), 64)


def precision(dtype: Any) -> Any:
  """Precision of the matrix products for queries of a dtype."""
  # Without this a float32 product is rounded to bfloat16 or TF32 on devices
  # that do so by default, which would break the float32 tolerance.
  asked = getattr(jax.config, "jax_default_matmul_precision", None)
  if asked is None and dtype == jnp.float32:
    return jax.lax.Precision.HIGHEST
  return None
