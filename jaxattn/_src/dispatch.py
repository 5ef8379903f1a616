"""Which implementation serves an engine's call."""

import jax

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
