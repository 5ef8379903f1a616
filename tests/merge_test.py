"""Merging partial attentions is exact, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

import jaxattn
from jaxattn import patterns

# Three rounded float32 sums of order one.
_ATOL = 2e-6


def _inputs(length=12):
  rng = np.random.default_rng(0)
  return tuple(
    jnp.asarray(rng.normal(size=(2, length, 3, 4)), jnp.float32)
    for _ in range(3)
  )


def _pieces():
  near, early = patterns.Window(2, 1), patterns.Global(3, rows=False)
  # Rows 5 and later see nothing of the third piece.
  third = patterns.Global(5, cols=False) - near - early
  return near, early - near, third


def _partial(pattern, query, key, value):
  return jaxattn.dense_attention(
    query, key, value, pattern=pattern, return_lse=True
  )


class MergeTest(absltest.TestCase):
  def test_equals_attention_over_the_union(self):
    union = functools.reduce(lambda a, b: a | b, _pieces())

    def merged(*qkv):
      return jaxattn.merge(*(_partial(p, *qkv) for p in _pieces()))

    def whole(*qkv):
      return _partial(union, *qkv)

    def score(fn, *qkv):
      out, lse = fn(*qkv)
      return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(lse))

    qkv = _inputs()
    for got, want in zip(merged(*qkv), whole(*qkv), strict=True):
      np.testing.assert_allclose(got, want, atol=_ATOL)
    grads = [
      jax.grad(functools.partial(score, f), argnums=(0, 1, 2))(*qkv)
      for f in (merged, whole)
    ]
    for got, want in zip(*grads, strict=True):
      np.testing.assert_allclose(got, want, atol=10 * _ATOL)

  def test_order_and_grouping_do_not_matter(self):
    a, b, c = (_partial(p, *_inputs()) for p in _pieces())
    merge = jaxattn.merge
    for other in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, b, a)):
      for got, want in zip(other, merge(a, b, c), strict=True):
        np.testing.assert_allclose(got, want, atol=_ATOL)

  def test_rows_without_edges_stay_empty_with_zero_gradient(self):
    shape = (2, 3, 4)

    def score(out, lse):
      empty = jaxattn.Partial(out, lse)
      merged = jaxattn.merge(empty, empty)
      return jnp.sum(merged.out), merged

    out, lse = jnp.zeros(shape), jnp.full(shape[:-1], -jnp.inf)
    grads, merged = jax.grad(score, argnums=(0, 1), has_aux=True)(out, lse)
    np.testing.assert_array_equal(merged.out, 0)
    np.testing.assert_array_equal(merged.lse, -np.inf)
    for grad in grads:
      np.testing.assert_array_equal(grad, 0)

  def test_large_scores_do_not_overflow(self):
    one = jaxattn.Partial(jnp.ones((1, 1, 2)), jnp.full((1, 1), 3e4))
    two = jaxattn.Partial(jnp.zeros((1, 1, 2)), jnp.full((1, 1), -3e4))
    merged = jaxattn.merge(one, two)
    np.testing.assert_array_equal(merged.out, 1)
    np.testing.assert_array_equal(merged.lse, np.float32(3e4))

  def test_bad_arguments_are_named(self):
    one = jaxattn.Partial(jnp.ones((1, 1, 2)), jnp.zeros((1, 1)))
    two = jaxattn.Partial(jnp.ones((2, 1, 2)), jnp.zeros((2, 1)))
    with self.assertRaisesRegex(ValueError, "at least one Partial"):
      jaxattn.merge()
    with self.assertRaisesRegex(ValueError, "equal shapes"):
      jaxattn.merge(one, two)
