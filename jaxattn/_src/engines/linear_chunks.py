"""Causal linear attention over chunks: quadratic inside one, a state between.

Rows of a chunk are the axes `[B, K, G, t]` (batch, key head, queries of a key
head, token), its keys `[B, K, s]`. Query `i` weighs key `j <= i` of its segment
by `phi(q_i) . phi(k_j) exp(s_j - c_i)`, where `s` is the logarithm kept beside
the features of a key and `c_i` the largest `s` that the query sees: exponents
are at most zero, and nothing that a query does not see takes part.

Features are computed chunk by chunk, and again in the backward pass: the arrays
that grow with the length are those of the inputs and outputs.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxattn._src import feature_maps

LOWEST = -1e30  # Finite, so that a difference of two is a number.


class State(NamedTuple):
  """What is kept of all keys so far.

  Attributes:
    sums: `[B, K, F, V]`, of features times values, over `exp(scale)`.
    normalizer: `[B, K, F]`, of features, over `exp(scale)`.
    scale: `[B, K]`, the largest logarithm of a key, or None for maps without.
    segment: `[B]`, whose keys these are, or None where there is one segment.

  Example:
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=8)
    >>> jaxattn.linear_state((1,), shapes).normalizer.shape
    (1, 2, 8)

  Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, section
  3.4.
  """

  sums: jax.Array
  normalizer: jax.Array
  scale: jax.Array | None
  segment: jax.Array | None


class Ids(NamedTuple):
  """Per token: `[B or 1, T]` in all, `[n, B or 1, C]` in chunks, or None.

  Attributes:
    key_valid: bool, which keys are there.
    query_segment: ints.
    key_segment: ints; equal ones stand side by side, and are those of the
      queries.
  """

  key_valid: jax.Array | None = None
  query_segment: jax.Array | None = None
  key_segment: jax.Array | None = None


class Rows(NamedTuple):
  """Tokens by chunks, or one chunk without the first axis.

  Attributes:
    query: `[n, B, K, G, C, H]`.
    key: `[n, B, K, C, H]`.
    value: `[n, B, K, C, V]`.
    ids: what masks compare.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  ids: Ids


class Weights(NamedTuple):
  """The factors of one chunk beside the features; None is one.

  Attributes:
    within: `[B or 1, K or 1, t, s]`, of key s for query t; 0 where unseen.
    read: `[B, K or 1, t]`, of the state for query t.
    write: `[B or 1, K or 1, s]`, of key s in the next state.
    keep: `[B, K or 1]`, of the state in the next one.
  """

  within: jax.Array
  read: jax.Array | None
  write: jax.Array | None
  keep: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Engine:
  """The passes over the chunks of one call.

  Attributes:
    scaled: whether the feature map keeps a logarithm.
    precision: of the matrix products.
  """

  scaled: bool
  precision: Any

  def empty(self, feature_map: Any, rows: Rows) -> State:
    """The state before any key."""
    batch, heads, _, depth = rows.value.shape[1:]
    size = jax.eval_shape(features, feature_map, rows.key[0]).values.shape[-1]
    segment = rows.ids.key_segment
    return State(
      jnp.zeros((batch, heads, size, depth), jnp.float32),
      jnp.zeros((batch, heads, size), jnp.float32),
      jnp.full((batch, heads), LOWEST, jnp.float32) if self.scaled else None,
      None if segment is None else segment[0, :, 0],
    )

  def forward(
    self, feature_map: Any, rows: Rows, state: State
  ) -> tuple[State, jax.Array, jax.Array]:
    """The last state, outputs `[n, B, K, G, C, V]`, normalisers without V."""

    def step(state: State, chunk: Rows) -> Any:
      queries = features(feature_map, chunk.query)
      keys = features(feature_map, chunk.key)
      weights, new = self._weigh(state, chunk.ids, keys)
      scores = self._scores(queries, keys, weights)
      sums = self._dot("bkgtf,bkfv->bkgtv", queries.values, state.sums)
      total = self._dot("bkgtf,bkf->bkgt", queries.values, state.normalizer)
      value = chunk.value.astype(jnp.float32)
      sums = _times(sums, weights.read, (2, 4)) + self._dot(
        "bkgts,bksv->bkgtv", scores, value
      )
      total = _times(total, weights.read, (2,)) + jnp.sum(scores, axis=-1)
      out = normalize(sums, total)
      return self._advance(state, new, weights, keys, value), (out, total)

    state, (out, total) = jax.lax.scan(step, state, rows)
    return state, out, total

  def backward(
    self, feature_map: Any, rows: Rows, state: State, cotangent: "Cotangent"
  ) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """Gradients of the feature map's arrays, queries, keys and values."""
    of_map, query, states = self._query_pass(
      feature_map, rows, state, cotangent
    )
    of_map, key, value = self._key_pass(
      feature_map, rows, states, cotangent, of_map
    )
    return of_map, query, key, value

  def _query_pass(
    self, feature_map: Any, rows: Rows, state: State, cotangent: "Cotangent"
  ) -> tuple[Any, jax.Array, Any]:
    """From first to last chunk, with the sums over earlier keys."""

    def step(carry: Any, chunk: Any) -> Any:
      (state, of_map), (rows, ct) = carry, chunk
      queries, pull = jax.vjp(features, feature_map, rows.query)
      keys = features(feature_map, rows.key)
      weights, new = self._weigh(state, rows.ids, keys)
      value = rows.value.astype(jnp.float32)
      slopes = self._slopes(ct, value, weights)
      slope = self._dot("bkgtv,bkfv->bkgtf", ct.out, state.sums)
      slope += ct.total[..., None] * state.normalizer[:, :, None, None]
      slope = _times(slope, weights.read, (2, 4))
      slope += self._dot("bkgts,bksf->bkgtf", slopes, keys.values)
      # Factors of a query cancel: its logarithm has no gradient.
      none = jax.tree.map(jnp.zeros_like, queries.log_scale)
      more, query = pull(feature_maps.Features(slope, none))
      at = (state.scale, state.segment)
      state = self._advance(state, new, weights, keys, value)
      return (state, jax.tree.map(jnp.add, of_map, more)), (query, at)

    zero = jax.tree.map(jnp.zeros_like, feature_map)
    (_, of_map), (query, states) = jax.lax.scan(
      step, (state, zero), (rows, cotangent)
    )
    return of_map, query, states

  def _key_pass(
    self,
    feature_map: Any,
    rows: Rows,
    states: Any,
    cotangent: "Cotangent",
    of_map: Any,
  ) -> tuple[Any, jax.Array, jax.Array]:
    """From last to first chunk, with the sums over later queries."""

    def step(carry: Any, chunk: Any) -> Any:
      (later, of_map), (rows, at, ct) = carry, chunk
      queries = features(feature_map, rows.query)
      keys, pull = jax.vjp(features, feature_map, rows.key)
      weights, _ = self._weigh(State(*later, *at), rows.ids, keys)
      value = rows.value.astype(jnp.float32)
      scores = self._scores(queries, keys, weights)
      slopes = self._slopes(ct, value, weights)
      sums, normalizer = later
      slope = self._dot("bksv,bkfv->bksf", value, sums)
      slope += normalizer[:, :, None]
      slope = _times(slope, weights.write, (3,))
      slope += self._dot("bkgts,bkgtf->bksf", slopes, queries.values)
      of_value = self._dot("bksf,bkfv->bksv", keys.values, sums)
      of_value = _times(of_value, weights.write, (3,))
      of_value += self._dot("bkgts,bkgtv->bksv", scores, ct.out)
      more, key = pull(_of_keys(keys, slope))
      read = _times(queries.values, weights.read, (2, 4))
      sums = _times(sums, weights.keep, (2, 3)) + self._dot(
        "bkgtf,bkgtv->bkfv", read, ct.out
      )
      normalizer = _times(normalizer, weights.keep, (2,)) + self._dot(
        "bkgtf,bkgt->bkf", read, ct.total
      )
      of_map = jax.tree.map(jnp.add, of_map, more)
      return ((sums, normalizer), of_map), (key, of_value)

    start = self.empty(feature_map, rows)
    (_, of_map), (key, value) = jax.lax.scan(
      step,
      ((start.sums, start.normalizer), of_map),
      (rows, states, cotangent),
      reverse=True,
    )
    return of_map, key, value

  def _dot(self, equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, precision=self.precision)

  def _scores(self, queries: Any, keys: Any, weights: Weights) -> jax.Array:
    scores = self._dot("bkgtf,bksf->bkgts", queries.values, keys.values)
    return scores * weights.within[:, :, None]

  def _slopes(
    self, cotangent: "Cotangent", value: jax.Array, weights: Weights
  ) -> jax.Array:
    """Gradients of the scores, before their factors."""
    slopes = self._dot("bkgtv,bksv->bkgts", cotangent.out, value)
    slopes += cotangent.total[..., None]
    return slopes * weights.within[:, :, None]

  def _weigh(
    self, state: State, ids: Ids, keys: feature_maps.Features
  ) -> tuple[Weights, tuple[Any, Any]]:
    """The factors of a chunk, and scale and segment of the next state."""
    size = keys.values.shape[-2]
    allowed = jnp.tril(jnp.ones((1, 1, size, size), bool))
    read = write = keep = segment = None
    if ids.key_segment is not None:
      assert ids.query_segment is not None
      assert state.segment is not None
      of_query, of_key = ids.query_segment[:, None], ids.key_segment[:, None]
      allowed = allowed & (of_query[..., None] == of_key[..., None, :])
      segment = ids.key_segment[:, -1]
      read = of_query == state.segment[:, None, None]
      write = of_key == segment[:, None, None]
      keep = (state.segment == segment)[:, None]
    if ids.key_valid is not None:
      valid = ids.key_valid[:, None]
      allowed = allowed & valid[..., None, :]
      write = valid if write is None else write & valid
    weights = Weights(allowed, read, write, keep)
    if not self.scaled:
      as_float = jax.tree.map(lambda x: x.astype(jnp.float32), weights)
      return as_float, (None, segment)
    assert state.scale is not None
    assert keys.log_scale is not None
    weights, scale = scaled(weights, state.scale, keys.log_scale)
    return weights, (scale, segment)

  def _advance(
    self,
    state: State,
    new: tuple[Any, Any],
    weights: Weights,
    keys: feature_maps.Features,
    value: jax.Array,
  ) -> State:
    """The state after a chunk."""
    written = _times(keys.values, weights.write, (3,))
    sums = self._dot("bksf,bksv->bkfv", written, value)
    return State(
      _times(state.sums, weights.keep, (2, 3)) + sums,
      _times(state.normalizer, weights.keep, (2,)) + jnp.sum(written, axis=-2),
      *new,
    )


class Cotangent(NamedTuple):
  """What the gradient of sums and normalisers is, with the chunks first.

  Attributes:
    out: `[n, B, K, G, C, V]`.
    total: `[n, B, K, G, C]`.
  """

  out: jax.Array
  total: jax.Array


def cotangent_of(
  out: jax.Array, total: jax.Array, cotangent: jax.Array
) -> Cotangent:
  """The gradient of sums and normalisers from that of the outputs."""
  over = _inverse(total)
  return Cotangent(
    cotangent * over[..., None], -jnp.sum(cotangent * out, axis=-1) * over
  )


def features(feature_map: Any, x: jax.Array) -> feature_maps.Features:
  """The features of `x`, in float32."""
  found = feature_map(x)
  if not isinstance(found, feature_maps.Features):
    found = feature_maps.Features(found)
  return jax.tree.map(lambda y: y.astype(jnp.float32), found)


@jax.custom_vjp
def normalize(sums: jax.Array, total: jax.Array) -> jax.Array:
  """`sums [..., V] / total [...]`, and zero for a row that sees nothing.

  With a gradient of its own, since that of a division squares the inverse,
  which can overflow.
  """
  return sums * _inverse(total)[..., None]


def _normalize_forward(sums: jax.Array, total: jax.Array) -> Any:
  out = normalize(sums, total)
  return out, (out, total)


def _normalize_backward(kept: Any, cotangent: jax.Array) -> Any:
  out, total = kept
  return tuple(cotangent_of(out, total, cotangent))


normalize.defvjp(_normalize_forward, _normalize_backward)


def _inverse(total: jax.Array) -> jax.Array:
  seen = jnp.abs(total) > feature_maps.LEAST
  return jnp.where(seen, 1.0 / jnp.where(seen, total, 1.0), 0.0)


def scaled(
  allowed: Weights, old: jax.Array, scale: jax.Array
) -> tuple[Weights, jax.Array]:
  """The factors with the logarithms of the keys `[B, K, s]`, and their top.

  Args:
    allowed: which of them count, bool.
    old: `[B, K]`, the top before this chunk.
    scale: the logarithms.
  """

  def masked(where: jax.Array | None, x: jax.Array) -> jax.Array:
    return x if where is None else jnp.where(where, x, LOWEST)

  def factor(where: jax.Array | None, x: jax.Array) -> jax.Array:
    # An exponent is at most zero where it counts; elsewhere it may be anything.
    x = jnp.exp(jnp.where(x > 0.0, 0.0, x))
    return x if where is None else jnp.where(where, x, 0.0)

  before = masked(allowed.read, old[..., None])  # [B, K, t or 1]
  seen = jnp.max(masked(allowed.within, scale[..., None, :]), axis=-1)
  seen = jnp.maximum(seen, before)  # [B, K, t]; cancels, so has no gradient.
  seen = jax.lax.stop_gradient(seen)
  top = jnp.max(masked(allowed.write, scale), axis=-1)
  top = jax.lax.stop_gradient(jnp.maximum(top, masked(allowed.keep, old)))
  weights = Weights(
    within=factor(allowed.within, scale[..., None, :] - seen[..., None]),
    read=factor(allowed.read, old[..., None] - seen),
    write=factor(allowed.write, scale - top[..., None]),
    keep=factor(allowed.keep, old - top),
  )
  return weights, top


def _times(
  x: jax.Array, factor: jax.Array | None, axes: tuple[int, ...]
) -> jax.Array:
  """`x` times a factor that lacks the given axes of it, or times one."""
  return x if factor is None else x * jnp.expand_dims(factor, axes)


def _of_keys(
  found: feature_maps.Features, slope: jax.Array
) -> feature_maps.Features:
  """The cotangent of keys whose values have the gradient `slope`."""
  if found.log_scale is None:
    return feature_maps.Features(slope)
  # A sum of `values * exp(log_scale)` has this gradient by its logarithm.
  return feature_maps.Features(slope, jnp.sum(slope * found.values, axis=-1))
