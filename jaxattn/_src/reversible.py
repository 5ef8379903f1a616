"""Reversible residual layers: activations are computed back, not kept."""

import functools
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np


class Branch(Protocol):
  """What a residual adds: `(params, x, saved) -> (delta, saved)`.

  `saved` is None in the forward pass. What is returned there in its place (the
  buckets of a hash, for example) is handed back when the branch is computed
  again, so that rounding cannot decide otherwise than before.
  """

  def __call__(self, params: Any, x: jax.Array, saved: Any) -> tuple[Any, Any]:
    """Computes the branch."""
    ...


def reversible_residuals(
  branches: Sequence[Branch],
  params: Sequence[Any],
  x1: jax.Array,
  x2: jax.Array,
  *,
  return_saved: bool = False,
) -> Any:
  """Adds branches to two streams in turn, with constant activation memory.

  The first branch adds to `x1` what it makes of `x2`, the second one adds to
  `x2` what it makes of `x1`, and so on; for attention and feed-forward in turn

      y1 = x1 + attention(x2),    y2 = x2 + feed_forward(y1).

  The backward pass subtracts from the last outputs to the first inputs, and
  computes each branch once more: what is kept between the passes are the two
  outputs, the parameters, and what branches save.

  Args:
    branches: functions `(params, x, saved) -> (delta, saved)`; see `Branch`.
      All that has a gradient must come in through `params` and `x`, and all
      that is random through `params`.
    params: for each branch a pytree; also keys and masks, which have no
      gradient.
    x1: float32 `[...]`.
    x2: float32 of the same shape.
    return_saved: whether to return what the branches saved in the forward pass
      too, as what moves with it, such as the state of a method, may be part of
      it. It has no gradient.

  Returns:
    Both streams after all branches; with `return_saved` a third one, a tuple of
    what each branch saved.

  Raises:
    ValueError: if streams are not float32 of one shape, or a branch lacks its
      params.

  Example:
    >>> def branch(w, x, saved):
    ...   return jnp.tanh(x @ w), None
    >>> params = [jnp.eye(4)] * 6
    >>> x = jnp.ones((2, 4))
    >>> y1, y2 = reversible_residuals([branch] * 6, params, x, x)
    >>> y1.shape
    (2, 4)

  Source: Gomez et al., 2017, https://arxiv.org/abs/1707.04585; Kitaev et al.,
  2020, https://arxiv.org/abs/2001.04451, section 3.
  """
  if len(branches) != len(params):
    raise ValueError(
      f"params must have one entry for each of {len(branches)} branches, got "
      f"{len(params)}."
    )
  for name, x in (("x1", x1), ("x2", x2)):
    if x.dtype != jnp.float32:
      raise ValueError(
        f"{name} must be float32, got {x.dtype}: rounded further, it could not "
        "be computed back. Let branches compute in another dtype instead."
      )
  if x1.shape != x2.shape:
    raise ValueError(f"x1 and x2 must agree, got {x1.shape} and {x2.shape}.")
  y1, y2, saved = _run(tuple(branches), tuple(params), x1, x2)
  if not return_saved:
    return y1, y2
  return y1, y2, jax.lax.stop_gradient(saved)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
  branches: tuple[Branch, ...],
  params: tuple[Any, ...],
  x1: jax.Array,
  x2: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
  return _forward(branches, params, x1, x2)[0]


def _forward(
  branches: tuple[Branch, ...],
  params: tuple[Any, ...],
  x1: jax.Array,
  x2: jax.Array,
) -> Any:
  streams, kept = [x1, x2], []
  for i, (branch, own) in enumerate(zip(branches, params, strict=True)):
    delta, saved = branch(own, streams[1 - i % 2], None)
    streams[i % 2] = streams[i % 2] + delta.astype(jnp.float32)
    kept.append(jax.lax.stop_gradient(saved))
  out = (streams[0], streams[1])
  return (*out, tuple(kept)), (params, out, kept)


def _backward(branches: tuple[Branch, ...], rest: Any, cotangent: Any) -> Any:
  params, streams, kept = rest
  streams, slopes = list(streams), list(cotangent[:2])
  of_params: list[Any] = [None] * len(branches)
  for i in reversed(range(len(branches))):
    to, source = i % 2, 1 - i % 2

    def step(own: Any, x: jax.Array, slope: jax.Array, i: int = i) -> Any:
      def again(own: Any, x: jax.Array) -> jax.Array:
        return branches[i](own, x, kept[i])[0].astype(jnp.float32)

      delta, pull = jax.vjp(again, own, x)
      return delta, *pull(slope)

    delta, of_params[i], slope = _apart(
      step, params[i], streams[source], slopes[to]
    )
    streams[to] = streams[to] - delta
    slopes[source] = slopes[source] + slope
    # Without it a branch may be scheduled before the one whose memory it needs.
    streams, slopes = jax.lax.optimization_barrier((streams, slopes))
  return tuple(of_params), slopes[0], slopes[1]


def _apart(step: Any, own: Any, x: jax.Array, slope: jax.Array) -> Any:
  """Runs a step so that all of it is done, and its memory free, before others.

  XLA's compiler for CPUs drops barriers, and would leave the gradients of
  parameters to the end of the program, with all that they need. What is inside
  a condition it cannot move.
  """
  if x.size == 0:
    return step(own, x, slope)
  traced, shapes = jax.make_jaxpr(step, return_shape=True)(own, x, slope)
  leaves, structure = jax.tree.flatten(shapes)
  numbers = [n for n in leaves if n.dtype != jax.dtypes.float0]
  call = jax.extend.core.jaxpr_as_fun(traced)

  def run(*given: Any) -> list[jax.Array]:
    return [f for f in call(*given) if f.dtype != jax.dtypes.float0]

  def nothing(*given: Any) -> list[jax.Array]:
    del given
    return [jnp.full(n.shape, jnp.nan, n.dtype) for n in numbers]

  def on_cpu(*given: Any) -> list[jax.Array]:
    first = x.reshape(-1)[0]
    return jax.lax.cond(first == first, run, nothing, *given)

  given = jax.tree.leaves((own, x, slope))
  found = jax.lax.platform_dependent(*given, cpu=on_cpu, default=run)
  done = iter(found)
  return jax.tree.unflatten(
    structure,
    [
      np.zeros(n.shape, n.dtype) if n.dtype == jax.dtypes.float0 else next(done)
      for n in leaves
    ],
  )


_run.defvjp(_forward, _backward)
