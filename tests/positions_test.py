"""Positions against naive loops in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxattn
from jaxattn import positions


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _rotary_loops(x, pos, base, rotated):
  out = x.astype(np.float64).copy()
  half = rotated // 2
  for b, t, n in np.ndindex(x.shape[:3]):
    for i in range(half):
      angle = float(pos[b, t]) * base ** (-2 * i / rotated)
      a, c = float(x[b, t, n, i]), float(x[b, t, n, i + half])
      out[b, t, n, i] = a * math.cos(angle) - c * math.sin(angle)
      out[b, t, n, i + half] = c * math.cos(angle) + a * math.sin(angle)
  return out


class StrictTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("strict"))
    self.enter_context(jax.numpy_rank_promotion("raise"))


class RotaryTest(StrictTestCase):
  @parameterized.parameters((10_000.0, 1.0), (500.0, 0.5))
  def test_equals_loops(self, base, fraction):
    x = _normal(0, 2, 5, 3, 8)
    pos = np.array([[0, 1, 2, 3, 4], [7, 0, 900, 1, 2]])
    want = _rotary_loops(x, pos, base, round(8 * fraction))
    got = positions.apply_rotary(
      jnp.asarray(x), jnp.asarray(pos), base=base, fraction=fraction
    )
    # Angles reach 900 radians: their float32 rounding is about 3e-5.
    np.testing.assert_allclose(got, want, atol=2e-4)

  def test_scores_depend_on_distance_only(self):
    q, k = (jnp.asarray(_normal(i, 1, 6, 2, 16)) for i in range(2))

    def scores(shift):
      pos = jnp.arange(6)[None] + shift
      a, b = (positions.apply_rotary(x, pos) for x in (q, k))
      return jnp.einsum("btnh,bsnh->bnts", a, b)

    np.testing.assert_allclose(scores(0), scores(100), atol=1e-4)
    moved = positions.apply_rotary(q, jnp.arange(6)[None])
    self.assertGreater(float(jnp.abs(moved - q).max()), 0.1)

  def test_bfloat16_is_computed_in_float32(self):
    x = jnp.asarray(_normal(0, 1, 4, 1, 8), jnp.bfloat16)
    pos = jnp.array([[0, 100, 1000, 3001]])
    got = positions.apply_rotary(x, pos)
    self.assertEqual(got.dtype, jnp.bfloat16)
    want = positions.apply_rotary(x.astype(jnp.float32), pos)
    # One rounding of the result to 8 bits; angles in bfloat16 would be lost.
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-7)

  def test_no_and_two_leading_axes(self):
    x = jnp.asarray(_normal(0, 2, 3, 5, 2, 4))
    pos = jnp.arange(5)
    want = positions.apply_rotary(x[1, 2], pos)
    got = positions.apply_rotary(x, pos[None, None])
    np.testing.assert_allclose(got[1, 2], want, rtol=1e-6)

  @parameterized.parameters(
    ((5,), jnp.int32, 1.0, "positions must have the leading axes"),
    ((2, 4), jnp.int32, 1.0, "positions must have the leading axes"),
    ((3, 5), jnp.int32, 1.0, "positions must have the leading axes"),
    ((2, 5), jnp.float32, 1.0, "positions must be integers"),
    ((2, 5), jnp.int32, 0.4, "fraction must rotate an even number"),
  )
  def test_errors(self, shape, dtype, fraction, message):
    with self.assertRaisesRegex(ValueError, message):
      positions.apply_rotary(
        jnp.ones((2, 5, 1, 8)), jnp.zeros(shape, dtype), fraction=fraction
      )


class SinusoidalTest(StrictTestCase):
  def test_equals_loops(self):
    got = positions.sinusoidal(jnp.array([[0, 3, 50]]), width=6)
    for t, p in enumerate((0, 3, 50)):
      for i in range(3):
        angle = p / 10_000 ** (2 * i / 6)
        self.assertAlmostEqual(float(got[0, t, 2 * i]), math.sin(angle), 5)
        self.assertAlmostEqual(float(got[0, t, 2 * i + 1]), math.cos(angle), 5)

  def test_odd_width_raises(self):
    with self.assertRaisesRegex(ValueError, "width must be even"):
      positions.sinusoidal(jnp.arange(2), width=3)


def _t5_formula(distance, num_buckets, max_distance, bidirectional):
  """The published code, one distance at a time in double precision."""
  bucket = 0
  if bidirectional:
    num_buckets //= 2
    bucket += num_buckets if distance > 0 else 0
    distance = abs(distance)
  else:
    distance = max(-distance, 0)
  exact = num_buckets // 2
  if distance < exact:
    return bucket + distance
  share = math.log(distance / exact) / math.log(max_distance / exact)
  # 1e-9: distances on a bound (16, 32, 64 of 128) must not fall below it.
  far = exact + int(share * (num_buckets - exact) + 1e-9)
  return bucket + min(far, num_buckets - 1)


class LabelTest(StrictTestCase):
  @parameterized.parameters(
    (32, 128, True),
    (32, 128, False),
    (8, 20, True),
    (7, 19, False),
    (4, 2, True),
    (2, 5, False),
  )
  def test_t5_buckets_equal_the_formula(self, buckets, far, bidirectional):
    distance = np.arange(-2 * far - 3, 2 * far + 4, dtype=np.int32)
    label = positions.T5Buckets(buckets, far, bidirectional)
    want = [_t5_formula(int(d), buckets, far, bidirectional) for d in distance]
    np.testing.assert_array_equal(label(distance), want)
    np.testing.assert_array_equal(jax.jit(label)(jnp.asarray(distance)), want)
    self.assertEqual(label(jnp.asarray(distance)).dtype, jnp.int32)
    self.assertEqual(label.num_labels, buckets)
    self.assertLess(max(want), buckets)

  def test_clipped_distance(self):
    label = positions.ClippedDistance(3)
    distance = np.arange(-6, 7)
    want = [max(-3, min(3, int(d))) + 3 for d in distance]
    np.testing.assert_array_equal(label(distance), want)
    np.testing.assert_array_equal(label(jnp.asarray(distance)), want)
    self.assertEqual(label.num_labels, max(want) + 1)

  def test_equal_by_value_so_that_jit_does_not_retrace(self):
    self.assertEqual(hash(positions.T5Bias()), hash(positions.T5Bias()))
    self.assertEqual(
      positions.ALiBi(max_distance=3), positions.ALiBi(max_distance=3)
    )
    self.assertNotEqual(
      positions.ShawRelative(max_distance=3),
      positions.ShawRelative(max_distance=4),
    )

  @parameterized.parameters(
    (lambda: positions.T5Buckets(7, 128, True), "num_buckets"),
    (lambda: positions.T5Bias(max_distance=3), "max_distance"),
    (lambda: positions.ALiBi(max_distance=-1), "max_distance"),
    (lambda: positions.ClippedDistance(-1), "max_distance"),
    (lambda: positions.alibi_slopes(0), "num_heads"),
  )
  def test_errors(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


def _attend_loops(q, k, v, term, causal):
  """Softmax attention of one row, with `term(n, i, j)` added to the scores."""
  length, heads, depth = q.shape
  out = np.zeros(v.shape, np.float64)
  for n in range(heads):
    for i in range(length):
      seen = range(i + 1) if causal else range(length)
      scores = [
        float(q[i, n] @ k[j, n]) / math.sqrt(depth) + term(n, i, j)
        for j in seen
      ]
      top = max(scores)
      weights = [math.exp(s - top) for s in scores]
      for w, j in zip(weights, seen, strict=True):
        out[i, n] += w / sum(weights) * v[j, n]
  return out


class SchemeTest(StrictTestCase):
  def _check(self, scheme, term, causal):
    """Compares the method that holds the scheme with loops over `term`."""
    q, k, v = (_normal(i, 2, 12, 2, 4) for i in range(3))
    shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=4)
    params = jax.tree.map(
      lambda x: jnp.asarray(_normal(7, *x.shape)),
      scheme.init(jax.random.key(0), shapes),
    )
    term = term(params)
    got, _ = jax.jit(jaxattn.dense(relative=scheme).apply)(
      params,
      (),
      *map(jnp.asarray, (q, k, v)),
      mask=jaxattn.Mask(causal=causal),
    )
    for b in range(2):
      want = _attend_loops(
        q[b], k[b], v[b], lambda *a, b=b: term(q[b], *a), causal
      )
      # float32 sums of 12 terms of size 1.
      np.testing.assert_allclose(got[b], want, atol=2e-5)

  @parameterized.parameters((True,), (False,))
  def test_t5_bias(self, causal):
    scheme = positions.T5Bias(
      num_buckets=8, max_distance=9, bidirectional=not causal
    )

    def term(params):
      table = np.asarray(params["table"])
      return lambda q, n, i, j: float(
        table[n, _t5_formula(j - i, 8, 9, not causal)]
      )

    self._check(scheme, term, causal)

  @parameterized.parameters((True, 11), (False, 11), (True, 4))
  def test_alibi(self, causal, reach):
    scheme = positions.ALiBi(max_distance=reach)

    def term(params):
      self.assertEqual(params, ())
      # Two heads: slopes 2^-4 and 2^-8.
      return lambda q, n, i, j: (
        -(2.0 ** (-4 * (n + 1))) * min(abs(j - i), reach)
      )

    self._check(scheme, term, causal)

  @parameterized.parameters((True,), (False,))
  def test_shaw(self, causal):
    scheme = positions.ShawRelative(max_distance=3)

    def term(params):
      table = np.asarray(params["table"])
      return lambda q, n, i, j: (
        float(q[i, n] @ table[n, max(-3, min(3, j - i)) + 3]) / math.sqrt(4)
      )

    self._check(scheme, term, causal)

  def test_gradient_of_the_table_counts_pairs(self):
    scheme = positions.T5Bias(num_buckets=4, max_distance=4, stddev=1.0)
    shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=4)
    params = scheme.init(jax.random.key(0), shapes)
    q, k, v = (jnp.asarray(_normal(i, 1, 6, 2, 4)) for i in range(3))

    def loss(table):
      out, _ = jaxattn.dense(relative=scheme).apply(
        {"table": table}, (), q, k, v
      )
      return jnp.sum(jnp.square(out))

    loss = jax.jit(loss)
    grad = jax.jit(jax.grad(loss))(params["table"])
    step = jnp.zeros_like(grad).at[1, 2].set(1e-2)
    numeric = loss(params["table"] + step) - loss(params["table"] - step)
    # Central difference of a float32 loss of order 10: error about 1e-3.
    self.assertAlmostEqual(float(numeric) / 2e-2, float(grad[1, 2]), 2)
    # The same number added to all scores of a head changes nothing.
    np.testing.assert_allclose(jnp.sum(grad, axis=1), 0.0, atol=1e-4)

  def test_slopes_for_twelve_heads(self):
    want = [2.0**-i for i in range(1, 9)]
    want += [2.0 ** (-0.5 * i) for i in (1, 3, 5, 7)]
    np.testing.assert_allclose(positions.alibi_slopes(12), want, rtol=1e-6)

  def test_wrong_table_raises(self):
    with self.assertRaisesRegex(ValueError, "params.*table"):
      positions.T5Bias().logits(
        {"table": jnp.ones((3, 32))}, jnp.ones((1, 4, 2, 8))
      )


if __name__ == "__main__":
  absltest.main()
