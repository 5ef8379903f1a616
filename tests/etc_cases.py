"""Random inputs of ETC attention, and one dense softmax over both streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import etc
from jaxattn._src import etc_labels

HEADS, DEPTH, VALUE = 2, 4, 3
FAR = 3  # k
ROWS = 2 * FAR + 4
# Sums of up to 36 products of order one, in another order than the oracle's,
# and their gradients, which pass two more products.
ATOL = 2e-5


def floats(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def heads(rng, length, *, cross=True, batch=2, kv_heads=HEADS):
  """Random projections of a stream."""
  shapes = [(HEADS, DEPTH), (kv_heads, DEPTH), (kv_heads, VALUE)]
  if cross:
    shapes += shapes[1:]
  return etc.EtcHeads(*(floats(rng, batch, length, *s) for s in shapes))


def tables(rng):
  return tuple(
    etc.EtcTable(floats(rng, ROWS, HEADS, DEPTH), 2 * floats(rng, ROWS, HEADS))
    for _ in range(2)
  )


def fields(rng, long_len, global_len, batch=2):
  """Every field of a structure, set to something that matters."""
  long, both = (batch, long_len), (batch, global_len, long_len)
  return dict(
    long_valid=rng.random(long) < 0.8,
    global_valid=rng.random((batch, global_len)) < 0.8,
    long_segment_ids=np.sort(rng.integers(0, 2, long)),
    global_segment_ids=np.sort(rng.integers(0, 2, (batch, global_len))),
    paragraph_ids=rng.integers(-1, 2, long),
    sentence_ids=rng.integers(-1, global_len, long),
    membership=rng.random(both) < 0.3,
    sees_all=rng.random((batch, global_len)) < 0.3,
    global_to_long=rng.random(both) < 0.8,
    long_to_global=rng.random((batch, long_len, global_len)) < 0.8,
    context_ids=rng.integers(0, 2, (batch, global_len)),
  )


def structure(fields, **options):
  return etc_labels.EtcStructure(
    **{k: jnp.asarray(v) for k, v in fields.items()}, **options
  )


def _distance_label(distance):
  if distance >= 0:
    return min(distance, FAR)
  return FAR + min(-distance, FAR)


def _edge(fields, hard, radius, b, i, j, long_len):
  """Whether token i sees j, and the label; long tokens come first."""
  get = lambda name, *at: fields[name][b][at] if name in fields else None  # noqa: E731
  sides = [("long", i) if i < long_len else ("global", i - long_len)]
  sides += [("long", j) if j < long_len else ("global", j - long_len)]
  (q_side, q), (k_side, k) = sides
  seen = True
  for side, at in sides:
    if f"{side}_valid" in fields:
      seen = seen and get(f"{side}_valid", at)
  if "long_segment_ids" in fields:
    seen = seen and get(f"{q_side}_segment_ids", q) == get(
      f"{k_side}_segment_ids", k
    )
  if q_side == k_side == "long":
    seen = seen and abs(q - k) <= radius
    if "paragraph_ids" in fields:
      seen = seen and get("paragraph_ids", q) == get("paragraph_ids", k)
    return seen, _distance_label(k - q)
  if q_side == k_side == "global":
    if "context_ids" in fields:
      if get("context_ids", q) != get("context_ids", k):
        return seen, 2 * FAR + 3
    return seen, _distance_label(k - q)
  g, t = (q, k) if q_side == "global" else (k, q)
  member = get("sentence_ids", t) == g or bool(get("membership", g, t))
  if q_side == "global":
    if hard[0]:
      seen = seen and (member or bool(get("sees_all", g)))
    if "global_to_long" in fields:
      seen = seen and get("global_to_long", g, t)
  else:
    if hard[1]:
      seen = seen and member
    if "long_to_global" in fields:
      seen = seen and get("long_to_global", t, g)
  return seen, 2 * FAR + 1 + member


def edges(fields, hard, radius, long_len, global_len, batch=2):
  size = long_len + global_len
  found = np.array(
    [
      [
        [_edge(fields, hard, radius, b, i, j, long_len) for j in range(size)]
        for i in range(size)
      ]
      for b in range(batch)
    ]
  )
  return found[..., 0].astype(bool), found[..., 1].astype(np.int32)


def oracle(long, global_, tables, allowed, labels):
  """One softmax over all tokens, with every array written out."""
  length = long.query.shape[1]
  group = long.query.shape[2] // long.key.shape[2]

  def scores(query, key, table, labels):
    key = jnp.repeat(key, group, axis=2)
    dot = functools.partial(jnp.einsum, precision="highest")
    found = dot("btnh,bsnh->bnts", query, key)
    if table is not None:
      vectors = dot("btnh,rnh->bntr", query, table.vectors)
      by_label = vectors + table.bias.T[None, :, None, :]
      index = jnp.broadcast_to(labels[:, None], found.shape)
      found = found + jnp.take_along_axis(by_label, index, axis=-1)
    return found / np.float32(DEPTH**0.5)

  outs = []
  cut = slice(0, length), slice(length, None)
  for own, other, at, table in (
    (long, global_, cut[0], tables[0]),
    (global_, long, cut[1], tables[1]),
  ):
    cross = (
      other.key if other.cross_key is None else other.cross_key,
      other.value if other.cross_value is None else other.cross_value,
    )
    key = [own.key, cross[0]]
    value = [own.value, cross[1]]
    if own is global_:  # Long tokens first.
      key, value = key[::-1], value[::-1]
    key, value = (jnp.concatenate(x, axis=1) for x in (key, value))
    seen = jnp.asarray(allowed[:, at])[:, None]
    logits = scores(own.query, key, table, jnp.asarray(labels[:, at]))
    weights = jax.nn.softmax(jnp.where(seen, logits, -1e30), axis=-1)
    weights = jnp.where(jnp.any(seen, axis=-1, keepdims=True), weights, 0.0)
    outs.append(
      jnp.einsum(
        "bnts,bsnv->btnv",
        weights,
        jnp.repeat(value, group, axis=2),
        precision="highest",
      )
    )
  return tuple(outs)


def pull(attend, inputs, seed=9):
  """Outputs, and gradients of a random combination of them."""

  @jax.jit
  def run(*inputs):
    outs, vjp = jax.vjp(attend, *inputs)
    rng = np.random.default_rng(seed)
    return outs, vjp(tuple(floats(rng, *x.shape) for x in outs))

  return run(*inputs)


def assert_close(got, want, atol=ATOL):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    b = np.asarray(b)
    scale = max(1.0, np.abs(b).max(initial=0.0))
    np.testing.assert_allclose(a, b, rtol=0, atol=atol * scale)
