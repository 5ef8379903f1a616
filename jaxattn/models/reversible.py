"""Blocks in two residual streams, computed back in the backward pass."""

import dataclasses
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import masks
from jaxattn._src import reversible
from jaxattn.models import blocks as blocks_lib

_STREAMS = ("dropout", "attention")  # Of random numbers.


class Arguments(NamedTuple):
  """What all blocks are given; arrays may be None.

  Attributes:
    mask: as of the blocks.
    positions: as of the blocks.
    context: as of the blocks.
    context_mask: as of the blocks.
  """

  mask: masks.Mask
  positions: jax.Array | None
  context: jax.Array | None
  context_mask: masks.Mask


@dataclasses.dataclass(frozen=True)
class _Branch:
  """A branch of a block as a pure function, as of `reversible_residuals`.

  Its parameters are a dictionary: the block's `variables`, the `arguments`, and
  the keys `rngs` of its random streams. It saves what its method selected, and
  the method's new state.
  """

  block: blocks_lib.Block
  name: str
  train: bool

  def __call__(self, own: Any, x: jax.Array, saved: Any) -> tuple[Any, Any]:
    arguments: Arguments = own["arguments"]
    (delta, selection), moved = self.block.apply(
      own["variables"],
      self.name,
      x.astype(self.block.cfg.dtype),
      train=self.train,
      selection=None if saved is None else saved["selection"],
      method="branch",
      mutable=["attention"] if self.train else [],
      rngs=own["rngs"],
      **arguments._asdict(),
    )
    return delta, {"selection": selection, "moved": moved}


def run(
  blocks: Sequence[blocks_lib.Block],
  x: jax.Array,
  arguments: Arguments,
  *,
  train: bool,
) -> tuple[jax.Array, jax.Array]:
  """Runs bound blocks in two streams, with memory that depth does not add to.

  Both streams start as `x`; the branches of all blocks add to them in turn:
  `y1 = x1 + attention(x2)`, `y2 = x2 + feed_forward(y1)`. The backward pass
  computes the streams back; the selections of methods (hash buckets, clusters)
  and the keys of random streams are kept, so that it decides as before.

  Args:
    blocks: bound modules, with the norm before each branch.
    x: `[B, T, D]`.
    arguments: of all blocks.
    train: whether dropout and the state of methods are active.

  Returns:
    Both streams, float32.
  """
  branches, params = [], []
  for block in blocks:
    for name in block.branches:
      branches.append(_Branch(block.clone(parent=None), name, train))
      params.append(
        {
          "variables": block.variables,
          "arguments": arguments,
          "rngs": _keys(block),
        }
      )
  x = x.astype(jnp.float32)
  y1, y2, saved = reversible.reversible_residuals(
    branches, params, x, x, return_saved=True
  )
  if train:
    _move_states(blocks, saved)
  return y1, y2


def run_plainly(
  blocks: Sequence[blocks_lib.Block],
  x: jax.Array,
  arguments: Arguments,
  *,
  train: bool,
  decode: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """The same streams by plain residuals: to initialise, and to decode."""
  streams, turn = [x.astype(jnp.float32)] * 2, 0
  for block in blocks:
    for name in block.branches:
      delta, _ = block.branch(
        name,
        streams[1 - turn].astype(block.cfg.dtype),
        train=train,
        decode=decode,
        **arguments._asdict(),
      )
      streams[turn] = streams[turn] + delta.astype(jnp.float32)
      turn = 1 - turn
  return streams[0], streams[1]


def _keys(block: nn.Module) -> dict[str, jax.Array]:
  return {n: block.make_rng(n) for n in _STREAMS if block.has_rng(n)}


def _move_states(blocks: Sequence[blocks_lib.Block], saved: Any) -> None:
  """Writes the methods' new states, where they have any."""
  firsts = iter(saved)
  for block in blocks:
    for name in block.branches:
      moved = next(firsts)["moved"].get("attention", {})
      if name == "attention" and moved:
        state = moved["attention"]["state"]
        block.attention.put_variable("attention", "state", state)
