"""Forward and backward of one piece, between whole arrays and its tiles."""

import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax

from jaxattn._src import merge
from jaxattn._src.engines import tile_maps
from jaxattn._src.engines import tile_passes


class Inputs(NamedTuple):
  """What attention is computed of.

  Attributes:
    query: `[B, T, N, H]`.
    key: `[B, S, K, H]`.
    value: `[B, S, K, V]`.
    query_ids: `[B or 1, T]` each.
    key_ids: `[B or 1, S]` each.
    logits: `[B or 1, T or 1, N, L]` of the relative term, or None.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  query_ids: tile_passes.Ids
  key_ids: tile_passes.Ids
  logits: jax.Array | None


class Rows(NamedTuple):
  """What the backward pass knows of every query.

  Attributes:
    dout: `[B, T, N, V]` cotangent of the merged output.
    lse: `[B, T, N]` merged lse, finite.
    delta: `[B, T, N]`, `sum(out * dout)` minus the cotangent of lse.
  """

  dout: jax.Array
  lse: jax.Array
  delta: jax.Array


@dataclasses.dataclass(frozen=True)
class Task:
  """A piece, and what its passes must know.

  Attributes:
    plan: the piece and static facts.
    q_len: T.
    k_len: S.
    stacked: whether every head has a layout of its own.
    interpret: parameters of a kernel's interpreter, or None.
  """

  plan: tile_passes.Plan
  q_len: int
  k_len: int
  stacked: bool
  interpret: Any = None

  @property
  def piece(self) -> Any:
    """The piece."""
    return self.plan.piece


def forward(task: Task, inputs: Inputs, passes: Any = tile_passes) -> Any:
  """The piece's partial attention of all queries, `[B, T, N, V]`.

  Args:
    task: the piece.
    inputs: whole arrays.
    passes: who computes tiles; has the functions of `tile_passes`.

  Returns:
    A `Partial`.
  """
  out, lse = passes.query_pass(task.plan, _cut(task, inputs))
  put = functools.partial(
    tile_maps.put_heads,
    index_map=task.piece.query,
    length=task.q_len,
    heads=inputs.query.shape[2],
    stacked=task.stacked,
  )
  return merge.Partial(put(out), put(lse[..., None])[..., 0])


def backward(
  task: Task, inputs: Inputs, rows: Rows, passes: Any = tile_passes
) -> list[jax.Array]:
  """Gradients of query, key, value and, if there are any, relative logits.

  Args:
    task: the piece.
    inputs: whole arrays.
    rows: of the queries.
    passes: who computes tiles; has the functions of `tile_passes`.

  Returns:
    Arrays of the shapes of the inputs.
  """
  piece, plan = task.piece, task.plan
  heads, kv_heads = inputs.query.shape[2], inputs.key.shape[2]
  data = _cut(task, inputs)
  cut = functools.partial(
    tile_maps.cut_heads,
    index_map=piece.query,
    kv_heads=kv_heads,
    stacked=task.stacked,
  )
  tiles = (
    cut(rows.dout),
    cut(rows.lse[..., None])[..., 0],
    cut(rows.delta[..., None])[..., 0],
  )
  dq, dlogits = passes.query_gradient_pass(plan, data, *tiles)
  dk, dv = passes.key_pass(plan, data, *tiles)
  put = functools.partial(tile_maps.put_heads, stacked=task.stacked)
  found = [
    put(dq * plan.scale, piece.query, task.q_len, heads),
    put(dk * plan.scale, piece.key, task.k_len, kv_heads),
    put(dv, piece.key, task.k_len, kv_heads),
  ]
  if inputs.logits is None:
    return found
  if plan.shared:
    return [*found, dlogits.reshape(inputs.logits.shape)]
  return [*found, put(dlogits, piece.query, task.q_len, heads)]


def _cut(task: Task, inputs: Inputs) -> tile_passes.Operands:
  """Tiles of all inputs of a piece."""
  kv_heads, piece = inputs.key.shape[2], task.piece

  def heads(x: jax.Array, index_map: tile_maps.Map) -> jax.Array:
    return tile_maps.cut_heads(x, index_map, kv_heads, stacked=task.stacked)

  def ids(found: tile_passes.Ids, index_map: tile_maps.Map) -> tile_passes.Ids:
    return tile_passes.Ids(
      *(None if x is None else tile_maps.cut(x, index_map) for x in found)
    )

  logits = inputs.logits
  if logits is not None:
    if task.plan.shared:
      rows, _, num, size = logits.shape
      logits = logits.reshape(rows, kv_heads, 1, num // kv_heads, 1, size)
    else:
      logits = heads(logits, piece.query)
  return tile_passes.Operands(
    query=heads(inputs.query, piece.query),
    key=heads(inputs.key, piece.key),
    value=heads(inputs.value, piece.key),
    query_ids=ids(inputs.query_ids, piece.query),
    key_ids=ids(inputs.key_ids, piece.key),
    logits=logits,
  )
