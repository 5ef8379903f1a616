"""The one list of methods under contract, and what their tests share.

A new method is one line in `METHODS`. Where theory says which edges it attends
to, `edges` says so independently of its pattern, and the contract compares it
with softmax attention over them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn import positions

BATCH, LENGTH, HEADS, KV_HEADS, DEPTH, VALUE = 2, 41, 4, 2, 8, 6


@dataclasses.dataclass(frozen=True)
class Case:
  """A method, and its edges if it is softmax attention over static ones.

  Attributes:
    method: the method.
    edges: maps `i [T, 1]` and `j [1, S]` to bools `[T, S]` or `[N, T, S]`.
    whole_array: whether the edges depend on the length of the array, so that a
      row is not what it is inside a longer one, and T must be S.
    self_only: whether queries are keys, so that T must be S.
    self_last: whether a token attends to itself only if it has nothing else.
    one_head: the method that stands for this one where there is one head and
      up to 8192 tokens, if its options count heads or bound the length.
    convex: whether every row is a convex combination of values, or zero.
    inert: which of "query" and "key" have no influence, by design.
    sums: whether its cache holds sums over tokens, which are float32.
    keeps_all: whether its cache holds all tokens although time is linear.
    variant: whether it is one of a method that stands here already, and runs
      among the slow tests.
  """

  method: Any
  edges: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
  whole_array: bool = False
  self_only: bool = False
  self_last: bool = False
  one_head: Any = None
  convex: bool = True
  inert: tuple[str, ...] = ()
  sums: bool = False
  keeps_all: bool = False
  variant: bool = False


def _within(left: int, right: int, step: int = 1):
  """Edges of a window, dilated or not."""
  return lambda i, j: (
    (j - i >= -left * step) & (j - i <= right * step) & ((j - i) % step == 0)
  )


def _every(i: np.ndarray, j: np.ndarray) -> np.ndarray:
  return (i >= 0) & (j >= 0)


def _longformer(i: np.ndarray, j: np.ndarray) -> np.ndarray:
  seen = (i < 2) | (j < 2)
  return np.stack([_within(3, 3, d)(i, j) | seen for d in (1, 1, 2, 2)])


def _bigbird(i: np.ndarray, j: np.ndarray) -> np.ndarray:
  row, col = i // 8, j // 8
  seen = (abs(row - col) <= 1) | np.isin(row, (0, 5)) | np.isin(col, (0, 5))
  plan = jaxattn.bigbird(block=8, num_random=1, layer=2).table(4, 6)
  plan = np.pad(plan, ((0, 0), (1, 1), (0, 0)), constant_values=-1)
  return np.stack([seen | (p[row[:, 0], 0][:, None] == col) for p in plan])


def _etc(i: np.ndarray, j: np.ndarray) -> np.ndarray:
  return (i < 3) | (j < 3) | (abs(i - j) <= 4)


METHODS = {
  "dense": Case(jaxattn.dense(), _every),
  "window": Case(jaxattn.sliding_window(left=5), _within(5, 0)),
  "dense_t5": Case(
    jaxattn.dense(
      relative=positions.T5Bias(num_buckets=8, max_distance=20, stddev=1.0)
    ),
    _every,
  ),
  "window_alibi": Case(
    jaxattn.sliding_window(
      left=5, right=2, relative=positions.ALiBi(max_distance=5)
    ),
    _within(5, 2),
    variant=True,
  ),
  "window_dilated_shaw": Case(
    jaxattn.sliding_window(
      left=3,
      dilation=2,
      relative=positions.ShawRelative(max_distance=4, stddev=1.0),
    ),
    _within(3, 0, 2),
    variant=True,
  ),
  "longformer": Case(
    jaxattn.longformer(
      window=6,
      dilation=(1, 1, 2, 2),
      num_global=2,
      relative=positions.ALiBi(max_distance=9),
    ),
    _longformer,
    one_head=jaxattn.longformer(window=6, dilation=2, num_global=2),
  ),
  "sparse_strided": Case(
    jaxattn.sparse_transformer(stride=6, kind="strided"),
    lambda i, j: (abs(i - j) < 6) | ((i - j) % 6 == 0),
  ),
  "sparse_fixed": Case(
    jaxattn.sparse_transformer(stride=8, summary=2),
    lambda i, j: (i // 8 == j // 8) | (_every(i, j) & (j % 8 >= 6)),
    variant=True,
  ),
  "bigbird": Case(
    jaxattn.bigbird(block=8, num_random=1, layer=2), _bigbird, whole_array=True
  ),
  "etc": Case(
    jaxattn.etc(
      num_global=3,
      radius=4,
      relative=positions.ShawRelative(max_distance=4, stddev=1.0),
    ),
    _etc,
  ),
  "linear": Case(jaxattn.linear_transformer(), sums=True),
  "performer": Case(jaxattn.performer(num_features=16), sums=True),
  "linformer": Case(
    jaxattn.linformer(max_length=48, k=16, sharing="none"),
    one_head=jaxattn.linformer(max_length=8192, k=64),
    convex=False,
  ),
  "linformer_max": Case(
    jaxattn.linformer(max_length=48, k=16, projection="max"),
    one_head=jaxattn.linformer(max_length=8192, k=4096, projection="max"),
    variant=True,
  ),
  "synthesizer_random": Case(
    jaxattn.synthesizer(
      max_length=44, parts=("random", "fixed_random"), stddev=1.0
    ),
    one_head=jaxattn.synthesizer(max_length=8192),
    inert=("query", "key"),
  ),
  "synthesizer_dense": Case(
    jaxattn.synthesizer(
      max_length=44,
      parts=("dense", "factorized_dense"),
      mixing="sum",
      share_heads=True,
    ),
    one_head=jaxattn.synthesizer(
      max_length=8192, parts=("dense", "factorized_dense")
    ),
    inert=("key",),
    variant=True,
  ),
  "synthesizer_mixture": Case(
    jaxattn.synthesizer(
      max_length=44,
      parts=("factorized_random", "dense", "dot_product"),
      stddev=1.0,
    ),
    one_head=jaxattn.synthesizer(
      max_length=8192, parts=("factorized_random", "dense", "dot_product")
    ),
  ),
  "reformer": Case(
    jaxattn.reformer(rounds=2, chunk=8, num_buckets=6),
    self_only=True,
    self_last=True,
    inert=("key",),
    one_head=jaxattn.reformer(rounds=2, num_buckets=(8, 8)),
  ),
  "reformer_strict": Case(
    jaxattn.reformer(chunk=6, num_buckets=(2, 4), strict=True),
    self_only=True,
    self_last=True,
    inert=("key",),
    keeps_all=True,
    one_head=jaxattn.reformer(num_buckets=(8, 8), strict=True),
    variant=True,
  ),
  "sinkhorn": Case(
    jaxattn.sinkhorn(max_length=48, block=6),
    self_only=True,
    sums=True,
    one_head=jaxattn.sinkhorn(max_length=8192, hidden=16),
    convex=False,
  ),
  "sinkhorn_per_head": Case(
    jaxattn.sinkhorn(
      max_length=48, block=6, networks="per_head", mixture=True, iterations=3
    ),
    self_only=True,
    sums=True,
    one_head=jaxattn.sinkhorn(
      max_length=8192, networks="per_head", mixture=True
    ),
    convex=False,
    variant=True,
  ),
  "sinkhorn_cut": Case(
    jaxattn.sinkhorn(max_length=48, block=6, cut=2),
    self_only=True,
    one_head=jaxattn.sinkhorn(max_length=8192, cut=4),
    convex=False,
    variant=True,
  ),
  "routing": Case(
    jaxattn.routing(num_clusters=4, window=12),
    one_head=jaxattn.routing(num_clusters=16, window=128),
  ),
  "routing_nearest": Case(
    jaxattn.routing(num_clusters=4, window=6, mode="nearest"),
    self_only=True,
    self_last=True,
    inert=("key",),
    keeps_all=True,
    one_head=jaxattn.routing(num_clusters=8, window=64, mode="nearest"),
    variant=True,
  ),
  "routing_and_local": Case(
    jaxattn.split_heads(
      (jaxattn.routing(num_clusters=3, window=16), 2),
      (jaxattn.sliding_window(left=5, right=5), 2),
    ),
    one_head=jaxattn.split_heads(
      (jaxattn.routing(num_clusters=16, window=64), 1)
    ),
    variant=True,
  ),
}

for_every = pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if case.variant else ())
    for name, case in METHODS.items()
  ],
)


def draw(seed: int, *, length: int = LENGTH, scale: float = 1.0) -> list[Any]:
  """Query, key and value of the default sizes."""
  rngs = jax.random.split(jax.random.key(seed), 3)
  tail = ((HEADS, DEPTH), (KV_HEADS, DEPTH), (KV_HEADS, VALUE))
  return [
    scale * jax.random.normal(rng, (BATCH, length, *sizes))
    for rng, sizes in zip(rngs, tail, strict=True)
  ]


def shapes(**changes: Any) -> jaxattn.AttentionShapes:
  """The shapes of `draw`."""
  base = jaxattn.AttentionShapes(
    num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DEPTH, value_dim=VALUE
  )
  return dataclasses.replace(base, **changes)


@functools.cache
def variables(name: str) -> tuple[Any, Any]:
  """Parameters and state of a method."""
  return METHODS[name].method.init(jax.random.key(7), shapes())


@functools.partial(jax.jit, static_argnames=("method",))
def _pull(method, params, state, qkv, mask, cotangent):
  def attend(params, qkv):
    return method.apply(params, state, *qkv, mask=mask)[0]

  out, vjp = jax.vjp(attend, params, tuple(qkv))
  return out, vjp(cotangent)


def pull(name: str, qkv: Any, mask: Any, cotangent: Any = None) -> Any:
  """Output, and gradients `(params, (query, key, value))`.

  One jitted function for nearly all tests, so that they share compilations.
  """
  params, state = variables(name)
  method = METHODS[name].method
  if cotangent is None:
    cotangent = jnp.ones((*qkv[0].shape[:-1], VALUE), qkv[0].dtype)
  return _pull(method, params, state, tuple(qkv), mask, cotangent)


def cotangent(seed: int = 99, length: int = LENGTH) -> jax.Array:
  """A random cotangent of the output."""
  shape = (BATCH, length, HEADS, VALUE)
  return jax.random.normal(jax.random.key(seed), shape)


def every_field(name: str, *, causal: bool, **changes: Any) -> jaxattn.Mask:
  """A mask with every honoured array set; neutral but for `changes`."""
  honours = METHODS[name].method.honours
  valid = jnp.ones((BATCH, LENGTH), bool)
  index = jnp.tile(jnp.arange(LENGTH)[None], (BATCH, 1))
  fields = dict(
    key_valid=valid,
    query_valid=valid,
    query_segment_ids=jnp.zeros_like(index),
    key_segment_ids=jnp.zeros_like(index),
  )
  if causal:
    fields |= dict(query_positions=index, key_positions=index)
  fields = {k: v for k, v in fields.items() if k in honours} | changes
  return jaxattn.Mask(causal=causal, **fields)


def random_mask(name: str, *, causal: bool) -> jaxattn.Mask:
  """A mask with every honoured array set to something that matters."""
  rng = np.random.default_rng(5)
  rows = (BATCH, LENGTH)
  fields = dict(
    key_valid=rng.random(rows) < 0.8,
    query_valid=rng.random(rows) < 0.8,
    query_segment_ids=np.sort(rng.integers(0, 3, rows)),
    key_segment_ids=np.sort(rng.integers(0, 3, rows)),
  )
  if causal:
    order = [rng.permutation(LENGTH) for _ in range(BATCH)]
    fields |= dict(query_positions=np.stack(order), key_positions=order)
  honours = METHODS[name].method.honours
  changes = {k: jnp.asarray(v) for k, v in fields.items() if k in honours}
  return every_field(name, causal=causal, **changes)


def reference(name: str, params: Any, qkv: Any, mask: Any) -> jax.Array:
  """Softmax attention over the edges of a case, written naively."""
  query, key, _ = qkv
  case = METHODS[name]
  assert case.edges is not None
  t, s = query.shape[1], key.shape[1]
  i, j = np.arange(t)[:, None], np.arange(s)[None, :]
  distance, shape = j - i, (query.shape[0], HEADS, t, s)
  allowed = jnp.asarray(np.broadcast_to(case.edges(i, j), shape))
  allowed = allowed & jnp.broadcast_to(mask.dense(t, s), shape)
  key, value = (jnp.repeat(x, HEADS // x.shape[2], axis=2) for x in qkv[1:])
  scores = jnp.einsum("btnh,bsnh->bnts", query, key, precision="highest")
  scores = scores * jnp.float32(DEPTH**-0.5)
  scheme = getattr(case.method, "relative", None)
  if scheme is not None:
    logits = scheme.logits(params, query)  # [B or 1, T or 1, N, R]
    onehot = jax.nn.one_hot(scheme.label(distance), scheme.num_labels)
    logits = jnp.broadcast_to(
      logits, (query.shape[0], t, HEADS, scheme.num_labels)
    )
    scores = scores + jnp.einsum(
      "btnr,tsr->bnts", logits, onehot, precision="highest"
    )
  weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
  weights = jnp.where(jnp.any(allowed, axis=-1, keepdims=True), weights, 0.0)
  return jnp.einsum("bnts,bsnv->btnv", weights, value, precision="highest")


@functools.partial(jax.jit, static_argnames=("name",))
def pull_reference(name, params, qkv, mask, cotangent):
  """As `pull`, of the reference."""
  out, vjp = jax.vjp(
    lambda params, qkv: reference(name, params, qkv, mask), params, qkv
  )
  return out, vjp(cotangent)


def assert_close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
  """Compares trees relative to the largest entry of each leaf, at least 1.

  A sum of products rounds relative to its largest terms, not to itself; 1e-5
  is some 80 units in the last place of float32.
  """
  got, want = jax.tree.leaves(got), jax.tree.leaves(want)
  assert len(got) == len(want)
  for g, w in zip(got, want, strict=True):
    g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
    scale = max(1.0, float(np.abs(w).max(initial=0.0)))
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * scale)


def assert_zero(*arrays: Any) -> None:
  """Exactly zero, not nearly."""
  for x in arrays:
    np.testing.assert_array_equal(np.asarray(x), 0)
