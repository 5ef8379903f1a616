"""The rounds of bucketed attention: sorted tiles, and their gradients."""

import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import merge
from jaxattn._src.engines import bucketed_edges
from jaxattn._src.engines import bucketed_order
from jaxattn._src.engines import pair_tiles

_NOWHERE = -(1 << 30)  # The place of a token in a round that is not compared.


class Order(NamedTuple):
  """The sorted orders of all rounds, `[R, B, N, T]` each.

  Attributes:
    index: the token at every place.
    rank: the place of every token.
    group: the group of every token, or None where none are compared.
  """

  index: jax.Array
  rank: jax.Array
  group: jax.Array | None


@dataclasses.dataclass(frozen=True)
class _Round:
  """One round: tokens in its order, cut into chunks of `[F, C]`.

  F counts the chunks of all rows and heads.
  """

  call: bucketed_edges.Call
  shape: tuple[int, int, int]  # B, N, T
  index: jax.Array  # [B, N, T]
  rank: jax.Array  # [B, N, T]
  # Of queries and keys, padded.
  sides: tuple[bucketed_edges.Side, bucketed_edges.Side]

  @property
  def chunks(self) -> int:
    """Chunks of a row and head."""
    return -(-self.shape[2] // self.call.reach.chunk)

  @property
  def count(self) -> int:
    """Chunks of all."""
    return self.shape[0] * self.shape[1] * self.chunks

  @property
  def size(self) -> int:
    """Tiles at a time."""
    if self.call.choice.name != "xla":
      return 1  # A kernel walks over them itself.
    chunk, seen = self.call.reach.chunk, self.call.width
    return pair_tiles.group_size(
      self.count, unit=chunk * chunk * seen, budget=self.call.budget
    )

  def sorted(self, x: jax.Array) -> jax.Array:
    """Rows of `x [B, T, heads, size]` in sorted order, `[F, C, size]`."""
    batch, heads, length = self.shape
    own = x.shape[2]
    lead = jnp.arange(batch, dtype=jnp.int32)[:, None, None] * length
    head = jnp.arange(heads, dtype=jnp.int32)[None, :, None] // (heads // own)
    at = (lead + self.index) * own + head
    x = pair_tiles.take_rows(x.reshape(-1, *x.shape[3:]), at)
    return _cut(x, self.call.reach.chunk)

  def unsorted(self, x: jax.Array) -> jax.Array:
    """`[F, C, ...]` in the order of the tokens, `[B, T, N, ...]`."""
    batch, heads, _ = self.shape
    x = x.reshape(-1, *x.shape[2:])
    row = jnp.arange(batch * heads, dtype=jnp.int32).reshape(batch, heads, 1)
    at = row * (self.chunks * self.call.reach.chunk) + self.rank
    return pair_tiles.take_rows(x, jnp.swapaxes(at, 1, 2))

  def padded_keys(self, x: jax.Array) -> jax.Array:
    """Chunks of keys with what is seen before the first and after the last."""
    before, after = self.call.span
    return _pad(x, before, after + -self.count % self.size)

  def padded_queries(self, x: jax.Array) -> jax.Array:
    """Chunks of queries, as many as there are in all groups of tiles."""
    return _pad(x, 0, -self.count % self.size)

  @property
  def starts(self) -> jax.Array:
    """The first tile of every step."""
    steps = -(-self.count // self.size)
    return jnp.arange(steps, dtype=jnp.int32) * self.size

  def own(self, x: jax.Array, start: jax.Array) -> jax.Array:
    """Tiles of queries from `start` on."""
    return jax.lax.dynamic_slice_in_dim(x, start, self.size)

  def seen(self, x: jax.Array, start: jax.Array) -> jax.Array:
    """Tiles of keys that the queries from `start` on see."""
    width = self.call.width
    x = jax.lax.dynamic_slice_in_dim(x, start, self.size + width - 1)
    return jnp.concatenate([x[i : i + self.size] for i in range(width)], axis=1)

  def add_seen(
    self, total: jax.Array, start: jax.Array, x: jax.Array
  ) -> jax.Array:
    """Adds tiles of keys to the chunks that they are made of."""
    width, chunk = self.call.width, self.call.reach.chunk
    size = self.size + width - 1
    part = jax.lax.dynamic_slice_in_dim(total, start, size)
    for i in range(width):
      one = x[:, i * chunk : (i + 1) * chunk]
      part = part.at[i : i + self.size].add(one)
    return jax.lax.dynamic_update_slice_in_dim(total, part, start, 0)

  def keep(self, start: jax.Array) -> jax.Array:
    """Which edges there are, `[tiles, queries, keys]`."""
    own, seen = self.sides
    own = jax.tree.map(lambda x: self.own(x, start)[:, :, None], own)
    seen = jax.tree.map(lambda x: self.seen(x, start)[:, None], seen)
    tile = start + jnp.arange(self.size, dtype=jnp.int32)
    there = self.exists(tile)[:, None]
    seen = seen._replace(index=jnp.where(there, seen.index, self.shape[2]))
    chunk = self.call.reach.chunk
    row = np.arange(chunk, dtype=np.int32)[None, :, None]
    column = np.arange(self.call.width * chunk, dtype=np.int32)[None, None]
    return bucketed_edges.keep(self.call, self.shape[2], own, seen, row, column)

  def facts(self) -> tuple[bucketed_edges.Side, bucketed_edges.Side]:
    """What is compared in every chunk, `[F, C]` and `[F, S]`."""
    own, seen = self.sides
    width, count = self.call.width, self.count
    seen = jax.tree.map(
      lambda x: jnp.concatenate([x[i : i + count] for i in range(width)], 1),
      seen,
    )
    there = self.exists(jnp.arange(count, dtype=jnp.int32))
    index = jnp.where(there, seen.index, self.shape[2])
    return own, seen._replace(index=index)

  def of_keys(self, x: jax.Array, heads: int) -> jax.Array:
    """Sums of padded chunks of keys, in the order of the tokens."""
    at = self.call.span[0]
    return _grouped(self.unsorted(x[at : at + self.count]), heads)

  def exists(self, tile: jax.Array) -> jax.Array:
    """Whether what a tile sees is of its own row, `[tiles, keys]`."""
    before, after = self.call.span
    step = jnp.arange(-before, after + 1, dtype=jnp.int32)[None]
    number = (tile % self.chunks)[:, None] + step
    there = (number >= 0) & (number < self.chunks)
    there = there & (tile < self.count)[:, None]
    return jnp.repeat(there, self.call.reach.chunk, axis=1)


def _cut(x: jax.Array, chunk: int, fill: int = 0) -> jax.Array:
  """`[B, N, T, ...]` as `[F, C, ...]`, the last chunk of a row filled up."""
  missing = -x.shape[2] % chunk
  if missing:
    widths = [(0, 0)] * x.ndim
    widths[2] = (0, missing)
    x = jnp.pad(x, widths, constant_values=fill)
  return x.reshape(-1, chunk, *x.shape[3:])


def _pad(x: jax.Array, before: int, after: int) -> jax.Array:
  if not before and not after:
    return x
  return jnp.pad(x, [(before, after)] + [(0, 0)] * (x.ndim - 1))


def _round(
  call: bucketed_edges.Call,
  ids: bucketed_order.Ids,
  order: Order,
  number: jax.Array | int,
  own: Order,
) -> _Round:
  """The round `number`, of which `own` holds the order."""
  batch, heads, length = own.index.shape
  row = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
  line = row * heads + jnp.arange(heads, dtype=jnp.int32)[None, :, None]

  def of_token(x: jax.Array | None, fill: int = 0) -> Any:
    if x is None:
      return None
    x = pair_tiles.take_rows(x.reshape(-1), row * length + own.index)
    return _cut(x, call.reach.chunk, fill)

  def of_head(x: jax.Array) -> jax.Array:
    x = pair_tiles.take_rows(x.reshape(-1), line * length + own.index)
    return _cut(x, call.reach.chunk)

  query_index = _cut(own.index, call.reach.chunk)
  key_index = _cut(own.index, call.reach.chunk, length)
  there = of_token(ids.there)
  if there is not None:
    key_index = jnp.where(there, key_index, length)
  group = None if own.group is None else of_head(own.group)
  before = range(order.index.shape[0] - 1)
  places = tuple(of_head(call.reach.place(order.rank[i])) for i in before)
  groups: tuple[jax.Array, ...] = ()
  if order.group is not None:
    groups = tuple(of_head(order.group[i]) for i in before)
  compared = tuple(
    jnp.where(i < number, x, _NOWHERE) for i, x in enumerate(places)
  )
  query = bucketed_edges.Side(
    query_index,
    of_token(ids.query_segment),
    of_token(ids.query_position),
    group,
    compared,
    groups,
  )
  key = bucketed_edges.Side(
    key_index,
    of_token(ids.key_segment),
    of_token(ids.key_position),
    group,
    places,
    groups,
  )
  found = _Round(
    call, (batch, heads, length), own.index, own.rank, (query, key)
  )
  sides = (
    jax.tree.map(found.padded_queries, query),
    jax.tree.map(found.padded_keys, key),
  )
  return dataclasses.replace(found, sides=sides)


def _over_rounds(order: Order, one: Any, start: Any, add: Any) -> Any:
  """Adds up what `one(number, order of the round)` gives for every round."""
  if order.index.shape[0] == 1:
    return one(0, jax.tree.map(lambda x: x[0], order))

  def step(carry: Any, x: Any) -> tuple[Any, None]:
    return add(carry, one(*x)), None

  numbers = jnp.arange(order.index.shape[0], dtype=jnp.int32)
  return jax.lax.scan(step, start(), (numbers, order))[0]


def _kernels() -> Any:
  """The module of the kernels."""
  # Imported where they are used: a version of JAX or a platform without them
  # still has the others.
  from jaxattn._src.pallas import bucketed_tpu

  return bucketed_tpu


def forward(
  call: bucketed_edges.Call,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  order: Order,
  ids: bucketed_order.Ids,
) -> merge.Partial:
  """Attention over the union of all rounds, in the order of the tokens.

  Args:
    call: static facts.
    query: `[B, T, N, H]`.
    key: `[B, T, K, H]`.
    value: `[B, T, K, V]`.
    order: of all rounds.
    ids: what masks compare.
  """

  def one(number: Any, own: Order) -> merge.Partial:
    found = _round(call, ids, order, number, own)
    q = found.padded_queries(found.sorted(query))
    k, v = (found.padded_keys(found.sorted(x)) for x in (key, value))
    if call.choice.name != "xla":
      done = _kernels().forward(call, query.shape[1], (q, k, v), found.facts())
      return merge.Partial(*map(found.unsorted, done))

    def visit(start: jax.Array) -> tuple[jax.Array, jax.Array]:
      return call.tiles.forward(
        found.own(q, start),
        found.seen(k, start),
        found.seen(v, start),
        found.keep(start),
      )

    done = jax.lax.map(visit, found.starts)
    done = (x.reshape(-1, *x.shape[2:])[: found.count] for x in done)
    return merge.Partial(*map(found.unsorted, done))

  def start() -> merge.Partial:
    shape = (*query.shape[:-1], value.shape[-1])
    return merge.Partial(
      jnp.zeros(shape, jnp.float32),
      jnp.full(shape[:-1], -jnp.inf, jnp.float32),
    )

  return _over_rounds(order, one, start, merge.merge)


def backward(
  call: bucketed_edges.Call,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  order: Order,
  ids: bucketed_order.Ids,
  rows: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, ...]:
  """Gradients of query, key and value, float32; `rows` as of `Tiles`."""
  dout, lse, delta = rows
  numbers = jnp.stack([lse, delta], axis=-1)

  def one(number: Any, own: Order) -> tuple[jax.Array, ...]:
    found = _round(call, ids, order, number, own)
    q, do, line = (
      found.padded_queries(found.sorted(x)) for x in (query, dout, numbers)
    )
    k, v = (found.padded_keys(found.sorted(x)) for x in (key, value))
    if call.choice.name != "xla":
      dq, *others = _kernels().backward(
        call, query.shape[1], (q, k, v), found.facts(), (do, line)
      )
      return (
        found.unsorted(dq),
        *(found.of_keys(x, key.shape[2]) for x in others),
      )

    def visit(total: Any, start: jax.Array) -> tuple[Any, jax.Array]:
      line_rows = found.own(line, start)
      dq, *others = call.tiles.backward(
        found.own(q, start),
        found.seen(k, start),
        found.seen(v, start),
        found.keep(start),
        (found.own(do, start), line_rows[..., 0], line_rows[..., 1]),
      )
      total = [
        found.add_seen(t, start, x) for t, x in zip(total, others, strict=True)
      ]
      return total, dq

    zero = [jnp.zeros(x.shape, jnp.float32) for x in (k, v)]
    total, dq = jax.lax.scan(visit, zero, found.starts)
    dq = found.unsorted(dq.reshape(-1, *dq.shape[2:])[: found.count])
    return (dq, *(found.of_keys(x, key.shape[2]) for x in total))

  def start() -> tuple[jax.Array, ...]:
    return tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))

  return _over_rounds(
    order, one, start, functools.partial(jax.tree.map, jnp.add)
  )


def _grouped(x: jax.Array, heads: int) -> jax.Array:
  """`[B, T, N, size]` summed over the queries of each key head."""
  if x.shape[2] == heads:
    return x
  return x.reshape(*x.shape[:2], heads, -1, x.shape[-1]).sum(3)
