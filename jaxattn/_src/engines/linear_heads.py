"""Linear attention with all chunks of a row at once.

Chunks are one batch of matrix products instead of a loop over small ones: on
GPUs and TPUs of all heads together, on CPUs of one key head after the other,
whose features fit a cache where those of all do not.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import dispatch
from jaxattn._src.engines import head_loop
from jaxattn._src.engines import linear_chunks as chunks

_CHUNK = 128
# Numbers of the features and states in flight, above which chunks are better
# taken one after the other; on CPUs those of one head.
_MOST = {"cpu": 1 << 21, "gpu": 1 << 29, "tpu": 1 << 28}


def pays(
  feature_map: Any, query: jax.Array, key: jax.Array, causal: bool
) -> bool:
  """Whether chunks should be taken all at once.

  Args:
    feature_map: a `Partial`.
    query: `[B, T, N, H]`.
    key: `[B, S, K, H]`.
    causal: whether queries see earlier keys only.
  """
  batch, length, heads, _ = query.shape
  group = heads // key.shape[2]
  found = jax.eval_shape(chunks.features, feature_map, key)
  size = found.values.shape[-1]
  numbers = batch * max(length * group, key.shape[1]) * size
  if causal:
    numbers += batch * -(-length // _CHUNK) * size * key.shape[-1]
  platform = dispatch.platform()
  if platform != "cpu":
    return numbers * key.shape[2] <= _MOST.get(platform, 0)
  return numbers <= _MOST["cpu"] and head_loop.pays(
    batch * length * group, key.shape[2]
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
  causal: bool,
  precision: Any,
  feature_map: Any,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array | None,
) -> jax.Array:
  """Attention of every head over all keys, or over earlier ones.

  Args:
    causal: whether queries see earlier keys only; lengths agree then.
    precision: of the matrix products.
    feature_map: a `Partial`.
    query: `[B, T, N, H]`.
    key: `[B, S, K, H]`.
    value: `[B, S, K, V]`.
    valid: `[B or 1, S]` bool, or None for all.

  Returns:
    `[B, T, N, V]` float32.
  """

  def run(*x: jax.Array) -> tuple[jax.Array]:
    return (_heads(causal, precision, feature_map, valid, *x),)

  return _over_heads(run, [query, key, value])[0]


def _over_heads(function: Any, arrays: list[jax.Array]) -> Any:
  """Runs a function of arrays with heads on axis 2, by heads on CPUs."""
  if dispatch.platform() != "cpu":
    return function(*arrays)
  return head_loop.run(function, arrays[1].shape[2], arrays)


def _forward(
  causal: bool, precision: Any, feature_map: Any, *rest: Any
) -> tuple[jax.Array, Any]:
  out = attend(causal, precision, feature_map, *rest)
  return out, (feature_map, *rest)


def _backward(
  causal: bool, precision: Any, kept: Any, cotangent: jax.Array
) -> Any:
  feature_map, query, key, value, valid = kept
  leaves, structure = jax.tree.flatten(feature_map)

  def pulled(query: Any, key: Any, value: Any, ct: Any) -> list[jax.Array]:
    def one(leaves: Any, *x: Any) -> jax.Array:
      given = jax.tree.unflatten(structure, leaves)
      return _heads(causal, precision, given, valid, *x)

    _, pull = jax.vjp(one, leaves, query, key, value)
    of_map, *grads = pull(ct)
    # Each head's share of the map's gradient, to be summed.
    return [*grads, *(x[None, None, None] for x in of_map)]

  grads = _over_heads(pulled, [query, key, value, cotangent])
  of_map = jax.tree.unflatten(structure, [x[0, 0].sum(0) for x in grads[3:]])
  return of_map, *grads[:3], None


attend.defvjp(_forward, _backward)


def _heads(
  causal: bool,
  precision: Any,
  feature_map: Any,
  valid: jax.Array | None,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
) -> jax.Array:
  """Some key heads: `[B, T, N, H]`, `[B, S, K, H]` and `[B, S, K, V]`."""
  if valid is not None:
    valid = jnp.broadcast_to(valid, (key.shape[0], key.shape[1]))
  rows, length, heads, depth = query.shape
  query = query.reshape(rows, length, key.shape[2], -1, depth)
  run = functools.partial(_causal if causal else _whole, precision, feature_map)
  by_head = jax.vmap(run, in_axes=(1, 1, 1, None), out_axes=1)
  out = jax.vmap(by_head)(query, key, value, valid)
  return out.reshape(rows, length, heads, value.shape[-1])


def _whole(
  precision: Any,
  feature_map: Any,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array | None,
) -> jax.Array:
  """Every query `[T, G, H]` sees every valid key `[S, H]`."""
  dot = functools.partial(jnp.matmul, precision=precision)
  keys = chunks.features(feature_map, key)
  weight = _weights(keys.log_scale, valid)
  value = value.astype(jnp.float32)
  # On the values, of which there are fewer, and which no fusion needs bare.
  if weight is None:
    sums, counts = dot(keys.values.T, value), jnp.sum(keys.values, axis=0)
  else:
    sums = dot(keys.values.T, value * weight[:, None])
    counts = dot(weight, keys.values)
  flat = query.reshape(-1, query.shape[-1])
  queries = chunks.features(feature_map, flat).values
  total = dot(queries, counts)
  out = chunks.normalize(dot(queries, sums), total)
  return out.reshape(*query.shape[:2], value.shape[-1])


def _weights(
  scale: jax.Array | None, valid: jax.Array | None
) -> jax.Array | None:
  """The factor of every key, at most one; None for one."""
  if scale is None:
    return None if valid is None else valid.astype(jnp.float32)
  if valid is not None:
    scale = jnp.where(valid, scale, chunks.LOWEST)
  weight = jnp.exp(scale - jax.lax.stop_gradient(jnp.max(scale)))
  return weight if valid is None else jnp.where(valid, weight, 0.0)


def _causal(
  precision: Any,
  feature_map: Any,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array | None,
) -> jax.Array:
  """Every query `[T, G, H]` sees the valid keys `[T, H]` up to its own."""
  length, group = query.shape[:2]
  size = min(_CHUNK, length)
  missing = -length % size
  if missing:
    valid = jnp.ones(length, bool) if valid is None else valid
    query, key, value, valid = (
      jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
      for x in (query, key, value, valid)
    )
  num = (length + missing) // size
  dot = functools.partial(jnp.einsum, precision=precision)
  queries = chunks.features(feature_map, query.reshape(num, size * group, -1))
  keys = chunks.features(feature_map, key.reshape(num, size, -1))
  if valid is not None:
    valid = valid.reshape(num, size)
  factors = _factors(keys.log_scale, valid, num, size)
  value = value.reshape(num, size, -1).astype(jnp.float32)
  if factors.write is None:
    written, counts = value, jnp.sum(keys.values, axis=1)
  else:
    weight = factors.write[:, 0]
    written = value * weight[..., None]
    counts = dot("ns,nsf->nf", weight, keys.values)
  sums = dot("nsf,nsv->nfv", keys.values, written)
  keep = None if factors.keep is None else factors.keep[:, 0]
  before, count = _before((sums, counts), keep)
  scores = dot("nqf,nsf->nqs", queries.values, keys.values)
  within = jnp.repeat(factors.within[:, 0], group, axis=-2)
  scores = scores * within
  read = dot("nqf,nfv->nqv", queries.values, before)
  total = dot("nqf,nf->nq", queries.values, count)
  if factors.read is not None:
    factor = jnp.repeat(factors.read[:, 0], group, axis=-1)
    read, total = read * factor[..., None], total * factor
  out = dot("nqs,nsv->nqv", scores, value) + read
  out = chunks.normalize(out, total + jnp.sum(scores, axis=-1))
  return out.reshape(num * size, group, -1)[:length]


def _factors(
  scale: jax.Array | None, valid: jax.Array | None, num: int, size: int
) -> chunks.Weights:
  """The factors of all chunks, one as a batch row with one head."""
  within = jnp.tril(jnp.ones((1, 1, size, size), bool))
  write = None if valid is None else valid[:, None]
  if write is not None:
    within = within & write[..., None, :]
  allowed = chunks.Weights(within, None, write, None)
  if scale is None:
    return jax.tree.map(lambda x: x.astype(jnp.float32), allowed)
  scale = scale.reshape(num, 1, size)
  seen = scale if write is None else jnp.where(write, scale, chunks.LOWEST)
  tops = jax.lax.cummax(jax.lax.stop_gradient(jnp.max(seen, axis=-1)))
  first = jnp.full((1, 1), chunks.LOWEST, jnp.float32)
  return chunks.scaled(allowed, jnp.concatenate([first, tops[:-1]]), scale)[0]


def _before(
  sums: tuple[jax.Array, jax.Array], keep: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """For every chunk the sums of those before it, chunks first."""
  if dispatch.platform() != "cpu":
    return _before_in_parallel(sums, keep)

  def step(state: Any, chunk: Any) -> Any:
    more, keep = chunk
    old = state if keep is None else jax.tree.map(lambda x: keep * x, state)
    return jax.tree.map(jnp.add, more, old), state

  start = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], jnp.float32), sums)
  return jax.lax.scan(step, start, (sums, keep))[1]


def _before_in_parallel(
  sums: tuple[jax.Array, jax.Array], keep: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """The same in a number of steps that grows with the logarithm."""
  if keep is None:
    return jax.tree.map(lambda x: jnp.cumsum(x, axis=0) - x, sums)

  def join(first: Any, second: Any) -> Any:
    (old, kept), (new, keep) = first, second

    def add(x: jax.Array, y: jax.Array) -> jax.Array:
      return y + x * jnp.expand_dims(keep, tuple(range(1, x.ndim)))

    return jax.tree.map(add, old, new), kept * keep

  after, _ = jax.lax.associative_scan(join, (sums, keep))
  return jax.tree.map(
    lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), after
  )
