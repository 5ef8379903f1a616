"""The block-sparse engine against the dense oracle."""

import dataclasses
import functools
import zlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from hypothesis import strategies as st

import jaxattn
from jaxattn import patterns
from jaxattn._src import dispatch
from tests import pattern_strategies

# Sums of up to 64 products of order one, rounded in another order than the
# oracle's: a few hundred roundings of 6e-8.
_ATOL = 2e-5


@dataclasses.dataclass(frozen=True)
class _Distance:
  """Distances clipped to [-3, 3]."""

  def __call__(self, distance):
    return jnp.clip(distance, -3, 3) + 3


@dataclasses.dataclass(frozen=True)
class _Pair:
  """A label of two ids below 3."""

  def __call__(self, query_id, key_id):
    return (3 * query_id + key_id) % 7


def _floats(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def _ids(rng, batch, length):
  return jnp.asarray(rng.integers(0, 3, (batch, length)), jnp.int32)


def _score(attend, cotangents, *arrays):
  """A number whose gradient has the given cotangents of out and lse."""
  out, lse = attend(*arrays)
  dout, dlse = cotangents
  lse = jnp.where(jnp.isneginf(lse), 0.0, lse)
  return jnp.sum(out * dout) + jnp.sum(lse * dlse), (out, lse)


def _compare(case, ours, oracle, cotangents, *arrays, atol=_ATOL):
  """Asserts equal value, lse and gradients."""
  results = []
  for attend in (ours, oracle):
    run = jax.value_and_grad(
      functools.partial(_score, attend, cotangents),
      argnums=tuple(range(len(arrays))),
      has_aux=True,
    )
    (_, (out, lse)), grads = jax.jit(run)(*arrays)
    results.append((out, jnp.where(jnp.isneginf(lse), -99.0, lse), *grads))
  for got, want in zip(*results, strict=True):
    case.assertTrue(np.isfinite(got).all())
    np.testing.assert_allclose(got, want, atol=atol, rtol=1e-5)
  return results[0]


def _mask(draw, rng, batch, q_len, k_len):
  given = {}
  if draw(st.booleans()):
    given["key_valid"] = jnp.asarray(rng.random((batch, k_len)) < 0.7)
  if draw(st.booleans()):
    given["query_valid"] = jnp.asarray(rng.random((1, q_len)) < 0.7)
  if draw(st.booleans()):
    given["query_segment_ids"] = _ids(rng, batch, q_len)
    given["key_segment_ids"] = _ids(rng, batch, k_len)
  if draw(st.booleans()):
    given["causal"] = True
    if draw(st.booleans()):
      given["query_positions"] = jnp.asarray(
        rng.integers(0, 30, (batch, q_len)), jnp.int32
      )
  return jaxattn.Mask(**given)


def _relative(draw, rng, batch, q_len, k_len, heads):
  """Logits, and a function from them to the term."""
  kind = draw(st.sampled_from(["none", "own", "table", "ids"]))
  if kind == "none":
    return (), lambda: None
  if kind == "ids":
    q_ids, k_ids = _ids(rng, batch, q_len), _ids(rng, batch, k_len)
    logits = _floats(rng, batch, draw(st.sampled_from([1, q_len])), heads, 7)
    return (logits,), lambda x: jaxattn.Relative(
      logits=x, label=_Pair(), query_ids=q_ids, key_ids=k_ids
    )
  shape = (batch, q_len) if kind == "own" else (1, 1)
  logits = _floats(rng, *shape, heads, 7)
  return (logits,), lambda x: jaxattn.Relative(logits=x, label=_Distance())


class BlockSparseTest(parameterized.TestCase):
  @hypothesis.given(data=st.data())
  def test_equals_the_oracle(self, data):
    """Values, lse and all gradients, over patterns, masks, heads and terms."""
    draw = data.draw
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    heads, batch = kv_heads * group, draw(st.integers(1, 2))
    q_len = draw(st.sampled_from(pattern_strategies.LENGTHS))
    k_len = draw(st.sampled_from((q_len, *pattern_strategies.LENGTHS)))
    one = pattern_strategies.patterns_strategy()
    pattern = draw(st.one_of(one, st.tuples(*[one] * heads)))
    rng = np.random.default_rng(zlib.crc32(repr((pattern, q_len)).encode()))
    mask = _mask(draw, rng, batch, q_len, k_len)
    logits, term = _relative(draw, rng, batch, q_len, k_len, heads)
    arrays = (
      _floats(rng, batch, q_len, heads, 8),
      _floats(rng, batch, k_len, kv_heads, 8),
      _floats(rng, batch, k_len, kv_heads, 6),
      *logits,
    )
    cotangents = (
      _floats(rng, batch, q_len, heads, 6),
      _floats(rng, batch, q_len, heads),
    )

    def attend(op, query, key, value, *logits):
      return op(
        query,
        key,
        value,
        pattern=pattern,
        mask=mask,
        relative=term(*logits),
        return_lse=True,
      )

    ours = functools.partial(
      jaxattn.block_sparse, tile=draw(st.sampled_from([8, None]))
    )
    # A tiny budget takes the chunked paths that long inputs take.
    with self._budget(draw(st.sampled_from([1, 1 << 20]))):
      _compare(
        self,
        functools.partial(attend, ours),
        functools.partial(attend, jaxattn.dense_attention),
        cotangents,
        *arrays,
      )

  def _budget(self, scores):
    return _patched(dispatch._SCORE_BUDGET, "cpu", scores)

  @parameterized.parameters(False, True)
  def test_rows_without_keys_are_zero_with_zero_gradient(self, lse):
    rng = np.random.default_rng(0)
    query, key, value = (_floats(rng, 1, 20, 2, 8) for _ in range(3))
    valid = jnp.arange(20)[None] >= 9  # Rows before 5 see only keys before 9.

    def score(query, key, value):
      found = jaxattn.block_sparse(
        query,
        key,
        value,
        pattern=patterns.Window(3, 3),
        mask=jaxattn.Mask(key_valid=valid),
        return_lse=True,
        tile=8,
      )
      total = jnp.sum(found.out) + (jnp.sum(found.lse[:, 10:]) if lse else 0.0)
      return total, found

    grads, found = jax.grad(score, argnums=(0, 1, 2), has_aux=True)(
      query, key, value
    )
    np.testing.assert_array_equal(found.out[:, :5], 0)
    np.testing.assert_array_equal(found.lse[:, :5], -np.inf)
    self.assertTrue((np.abs(found.out[:, 6:]) > 0).any(axis=(2, 3)).all())
    np.testing.assert_array_equal(grads[0][:, :5], 0)
    np.testing.assert_array_equal(grads[1][:, :9], 0)
    np.testing.assert_array_equal(grads[2][:, :9], 0)
    for grad in grads:
      self.assertTrue(np.isfinite(grad).all())

  def test_bfloat16_is_near_float32(self):
    """2e-2: bfloat16 has 8 bits, and gradients multiply three such factors."""
    rng = np.random.default_rng(1)
    arrays = [_floats(rng, 1, 48, 2, 16) for _ in range(4)]
    pattern = patterns.Window(9, 0) | patterns.Global(2)

    def grads(dtype):
      query, key, value, dout = (x.astype(dtype) for x in arrays)

      def score(*qkv):
        out = jaxattn.block_sparse(*qkv, pattern=pattern, tile=8)
        self.assertEqual(out.dtype, dtype)
        return jnp.sum((out * dout).astype(jnp.float32)), out

      found, out = jax.grad(score, argnums=(0, 1, 2), has_aux=True)(
        query, key, value
      )
      self.assertEqual(found[0].dtype, dtype)
      return [x.astype(jnp.float32) for x in (out, *found)]

    for got, want in zip(grads(jnp.bfloat16), grads(jnp.float32), strict=True):
      error = np.linalg.norm(got - want) / np.linalg.norm(want)
      self.assertLess(error, 2e-2)

  def test_full_pattern_is_jax_nn_attention(self):
    rng = np.random.default_rng(2)
    query, key, value = (_floats(rng, 2, 33, 4, 8) for _ in range(3))
    got = jaxattn.block_sparse(query, key, value, pattern=patterns.Full())
    want = jax.nn.dot_product_attention(query, key, value)
    np.testing.assert_allclose(got, want, atol=_ATOL)
    got = jaxattn.block_sparse(
      query, key, value, pattern=patterns.Full(), mask=jaxattn.CAUSAL
    )
    want = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    np.testing.assert_allclose(got, want, atol=_ATOL)

  def test_leading_axes_vmap_and_jit_agree(self):
    rng = np.random.default_rng(3)
    query, key, value = (_floats(rng, 2, 3, 17, 2, 8) for _ in range(3))
    attend = functools.partial(
      jaxattn.block_sparse, pattern=patterns.Window(4, 2), tile=8
    )
    got = attend(query, key, value)
    for other in (jax.vmap(attend), jax.jit(attend), jax.remat(attend)):
      np.testing.assert_allclose(other(query, key, value), got, atol=_ATOL)

  def test_scale_and_constant_values(self):
    rng = np.random.default_rng(4)
    query, key, value = (_floats(rng, 1, 17, 2, 8) for _ in range(3))
    for pattern in (patterns.Full(), patterns.Window(2, 3)):
      attend = functools.partial(
        jaxattn.block_sparse, query, key, pattern=pattern
      )
      want = jaxattn.dense_attention(
        query, key, value, pattern=pattern, scale=0.3
      )
      np.testing.assert_allclose(attend(value, scale=0.3), want, atol=_ATOL)
      np.testing.assert_allclose(attend(jnp.ones_like(value)), 1.0, atol=1e-6)

  @parameterized.parameters("tpu", "cuda")
  def test_lowers_for_accelerators(self, platform):
    """No device is needed to find an operation that one does not have."""
    pattern = patterns.Window(31, 0) | patterns.Strided(32)

    def score(query, key, value):
      out = jaxattn.block_sparse(query, key, value, pattern=pattern)
      return jnp.sum(out.astype(jnp.float32))

    x = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    traced = jax.jit(jax.grad(score, argnums=(0, 1, 2))).trace(x, x, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    self.assertIn("dot_general", text)

  def test_the_second_call_does_not_trace(self):
    traces = []

    @jax.jit
    def run(query):
      traces.append(1)
      return jaxattn.block_sparse(
        query, query, query, pattern=patterns.Window(2, 0)
      )

    x = jnp.ones((1, 9, 1, 8))
    run(x), run(2 * x)
    self.assertLen(traces, 1)

  @parameterized.named_parameters(
    ("rank", {"key": (9, 2, 8)}, {}, "one rank"),
    (
      "heads",
      {"key": (1, 9, 3, 8), "value": (1, 9, 3, 8)},
      {},
      "key/value heads must divide",
    ),
    ("depth", {"key": (1, 9, 2, 4)}, {}, "last axis"),
    (
      "mask",
      {},
      {"mask": jaxattn.Mask(key_valid=jnp.ones((1, 8), bool))},
      r"mask.key_valid must have shape \(1, 9\), got \(1, 8\)",
    ),
    ("pattern", {}, {"pattern": 3}, "pattern must be a jaxattn.patterns"),
    ("per head", {}, {"pattern": (patterns.Full(),) * 3}, "each of 2 heads"),
    ("name", {}, {"implementation": "cuda"}, "implementation must be"),
    ("tile", {}, {"tile": 12}, "tile must be a positive multiple of 8"),
  )
  def test_bad_arguments_are_named(self, shapes, options, message):
    shape = {"query": (1, 9, 2, 8), "key": (1, 9, 2, 8), "value": (1, 9, 2, 8)}
    arrays = [jnp.ones(s) for s in (shape | shapes).values()]
    options = {"pattern": patterns.Full()} | options
    with self.assertRaisesRegex(ValueError, message):
      jaxattn.block_sparse(*arrays, **options)

  def test_a_named_kernel_that_cannot_serve_says_so(self):
    x = jnp.ones((1, 9, 2, 8))
    with self.assertRaisesRegex(NotImplementedError, "implementation=None"):
      jaxattn.block_sparse(
        x, x, x, pattern=patterns.Full(), implementation="pallas"
      )


class _patched:
  """Sets an entry of a dict for a while."""

  def __init__(self, where, key, value):
    self._where, self._key, self._value = where, key, value

  def __enter__(self):
    self._old = self._where[self._key]
    self._where[self._key] = self._value

  def __exit__(self, *_):
    self._where[self._key] = self._old
