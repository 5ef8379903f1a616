"""Which implementation serves an engine's call."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base

# Scores in flight at a time. CPU: what stays in the last-level cache; GPU and
# TPU: enough work per loop step to fill the device.
_SCORE_BUDGET = {"cpu": 1 << 20, "gpu": 1 << 26, "tpu": 1 << 25}


def choose(engine: str, implementation: base.Implementation) -> str:
  """Returns the implementation that serves a call of `engine`.

  Args:
    engine: name of the engine.
    implementation: "xla", "pallas" or None for the best that serves.

  Returns:
    The name of the implementation.

  Raises:
    NotImplementedError: if the named one does not serve the engine.
    ValueError: if the name is unknown.
  """
  if implementation in (None, "xla"):
    return "xla"
  if implementation == "pallas":
    raise NotImplementedError(
      f"no Pallas kernel serves {engine} yet; pass implementation=None."
    )
  raise ValueError(
    f"implementation must be 'xla', 'pallas' or None, got {implementation!r}."
  )


def score_budget() -> int:
  """Scores that an XLA engine holds at a time on the default backend."""
  return _SCORE_BUDGET.get(jax.default_backend(), 1 << 20)


# The same for engines whose tiles are gathered or joined first, so that a step
# holds them beside its scores.
_GATHERED_BUDGET = {"cpu": 1 << 18, "gpu": 1 << 25, "tpu": 1 << 24}


def gathered_budget() -> int:
  """Scores that an engine of gathered tiles holds at a time."""
  return _GATHERED_BUDGET.get(jax.default_backend(), 1 << 18)


# Tokens in a chunk of causal linear attention. CPU: what keeps features and
# products in the cache; GPU and TPU: fewer steps, each filling the device.
_LINEAR_CHUNK = {"cpu": 64, "gpu": 128, "tpu": 128}


def linear_chunk() -> int:
  """Tokens in a chunk of causal linear attention on the default backend."""
  return _LINEAR_CHUNK.get(jax.default_backend(), 64)


def precision(dtype: Any) -> Any:
  """Precision of the matrix products for queries of a dtype."""
  # Without this a float32 product is rounded to bfloat16 or TF32 on devices
  # that do so by default, which would break the float32 tolerance.
  asked = getattr(jax.config, "jax_default_matmul_precision", None)
  if asked is None and dtype == jnp.float32:
    return jax.lax.Precision.HIGHEST
  return None
