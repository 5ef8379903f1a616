"""Which edges of a chunk there are in bucketed attention, for every backend."""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax

from jaxattn._src import dispatch
from jaxattn._src.engines import bucketed_order
from jaxattn._src.engines import pair_tiles


@dataclasses.dataclass(frozen=True)
class Call:
  """Static facts of one call.

  Attributes:
    reach: what a token sees.
    causal: whether positions are compared.
    exclude_self: whether a token does not see itself.
    tiles: how tiles are computed.
    budget: scores in flight at a time; bounds the temporary memory of XLA.
    choice: who computes the tiles.
  """

  reach: bucketed_order.Reach
  causal: bool
  exclude_self: bool
  tiles: pair_tiles.Tiles
  budget: int
  choice: dispatch.Choice

  @property
  def span(self) -> tuple[int, int]:
    """Chunks before and after the own one."""
    return self.reach.span(self.causal)

  @property
  def width(self) -> int:
    """Chunks that are seen."""
    return 1 + sum(self.span)


class Side(NamedTuple):
  """What is compared of queries or keys, or None.

  Axes are `[tiles, tokens]`, or what `keep` broadcasts.
  """

  index: jax.Array  # Keys that are not there: T.
  segment: jax.Array | None
  position: jax.Array | None
  group: jax.Array | None
  places: tuple[jax.Array, ...]  # One for each round before.
  groups: tuple[jax.Array, ...]


def keep(
  call: Call, length: int, own: Side, seen: Side, row: Any, column: Any
) -> jax.Array:
  """Which edges there are: those a round reaches, and no round before it.

  Args:
    call: static facts.
    length: T.
    own: of queries, `[..., C, 1]` each.
    seen: of the keys of their span, `[..., 1, S]` each.
    row: number of every query in its chunk, to be broadcast likewise.
    column: number of every key in the span.
  """
  indexed = call.causal and own.position is None
  if indexed and call.exclude_self:
    found = own.index > seen.index
  elif indexed:
    found = own.index >= seen.index
  else:
    found = seen.index < length
    if call.exclude_self:
      found = found & (own.index != seen.index)
  if call.causal and own.position is not None and seen.position is not None:
    found = found & (own.position >= seen.position)
  if own.segment is not None:
    found = found & (own.segment == seen.segment)
  back, ahead = call.reach.steps(call.causal)
  if call.reach.window is not None:
    step = column - (row + call.span[0] * call.reach.chunk)
    found = found & (step >= -back) & (step <= ahead)
  if own.group is not None:
    found = found & (own.group == seen.group)
  for i, (place, other) in enumerate(zip(own.places, seen.places, strict=True)):
    step = other - place
    met = (step >= -back) & (step <= ahead)
    if own.groups:
      met = met & (own.groups[i] == seen.groups[i])
    found = found & ~met
  return found
