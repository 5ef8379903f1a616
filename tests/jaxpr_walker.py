"""What a traced computation costs: its intermediates and its matrix products.

`cost_analysis` of a compiled function counts the body of a loop once, and says
nothing of the arrays in between. The walker reads the jaxpr instead, down to
the bodies of scan, cond, jit, custom derivatives, remat, shard_map and
pallas_call, and multiplies by the trip counts.

  closed = jax.make_jaxpr(fn)(*args)
  jaxpr_walker.matmul_flops(closed)
  jaxpr_walker.assert_no_intermediate(closed, at_least=4096**2)
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Intermediate:
  """An array that some equation makes.

  Attributes:
    size: its number of elements.
    shape: its shape.
    dtype: its dtype.
    path: the enclosing primitives and the one that makes it.
  """

  size: int
  shape: tuple[int, ...]
  dtype: str
  path: str


def intermediates(jaxpr: Any, path: str = "") -> Iterator[Intermediate]:
  """Yields every array made in `jaxpr`: results and constants, not arguments.

  Inside a loop an array counts once, as it is freed before the next turn.
  Results that the loop stacks are results of the loop itself.
  """
  jaxpr, consts = _open(jaxpr)
  for const in consts:
    yield _intermediate(const, f"{path}/constant")
  for eqn in jaxpr.eqns:
    here = f"{path}/{eqn.primitive.name}"
    for atom in eqn.invars:
      if hasattr(atom, "val"):  # A literal; newer versions inline constants.
        yield _intermediate(atom.aval, f"{here}/constant")
    for var in eqn.outvars:
      yield _intermediate(var.aval, here)
    for sub in _subjaxprs(eqn):
      yield from intermediates(sub, here)


def largest(jaxpr: Any, count: int = 5) -> list[Intermediate]:
  """Returns the `count` largest intermediates, largest first."""
  return sorted(intermediates(jaxpr), key=lambda x: x.size, reverse=True)[
    :count
  ]


def assert_no_intermediate(jaxpr: Any, *, at_least: int) -> None:
  """Fails if some intermediate has `at_least` elements or more."""
  found = [x for x in largest(jaxpr) if x.size >= at_least]
  if found:
    lines = "\n".join(f"  {x.dtype}{list(x.shape)} at {x.path}" for x in found)
    raise AssertionError(f"intermediates of {at_least} elements:\n{lines}")


def matmul_flops(jaxpr: Any, *, while_trips: int | None = None) -> int:
  """Returns the FLOPs of all matrix products and convolutions.

  A multiply-add counts two. The body of a scan counts once per turn, of a
  pallas_call once per point of its grid; of a cond the dearest branch counts,
  of a shard_map the work of one device.

  Args:
    jaxpr: from `jax.make_jaxpr`.
    while_trips: turns of every while loop, whose count no jaxpr tells.

  Raises:
    ValueError: if products stand in a while loop and `while_trips` is None.
  """
  jaxpr, _ = _open(jaxpr)
  total = 0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    inner = [
      matmul_flops(sub, while_trips=while_trips) for sub in _subjaxprs(eqn)
    ]
    if name == "dot_general":
      total += _dot_flops(eqn)
    elif name == "conv_general_dilated":
      total += _conv_flops(eqn)
    elif name == "cond":
      total += max(inner)
    elif name == "scan":
      total += eqn.params["length"] * sum(inner)
    elif name == "pallas_call":
      total += math.prod(eqn.params["grid_mapping"].grid) * sum(inner)
    elif name == "while" and any(inner):
      if while_trips is None:
        raise ValueError("a while loop holds products: give while_trips.")
      total += while_trips * sum(inner)
    else:
      total += sum(inner)
  return total


def growth(sizes: list[int], costs: list[float]) -> float:
  """Exponent by which `costs` grow over the last doubling of `sizes`."""
  return math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2])


def _dot_flops(eqn: Any) -> int:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  left = eqn.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return 2 * depth * math.prod(eqn.outvars[0].aval.shape)


def _conv_flops(eqn: Any) -> int:
  kernel = eqn.invars[1].aval.shape
  features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
  taps = math.prod(kernel) // features
  return 2 * taps * math.prod(eqn.outvars[0].aval.shape)


def _intermediate(array: Any, path: str) -> Intermediate:
  shape = tuple(getattr(array, "shape", ()))
  dtype = str(getattr(array, "dtype", "opaque"))
  return Intermediate(math.prod(shape), shape, dtype, path)


def _open(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
  """The equations' owner and the constants, of a closed or an open jaxpr."""
  consts = tuple(getattr(jaxpr, "consts", ()))
  return (jaxpr if hasattr(jaxpr, "eqns") else jaxpr.jaxpr), consts


def _subjaxprs(eqn: Any) -> Iterator[Any]:
  """The jaxprs among an equation's parameters, in whichever wrapping."""
  for param in eqn.params.values():
    for value in param if isinstance(param, tuple | list) else (param,):
      if hasattr(value, "eqns") or hasattr(
        getattr(value, "jaxpr", None), "eqns"
      ):
        yield value
