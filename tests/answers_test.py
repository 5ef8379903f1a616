"""Heads and scores of question answering, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxattn
from jaxattn.models import answers
from tests import jaxpr_walker
from tests.method_cases import assert_close


def _logits(seed, batch, length, closed=0.3):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(batch, length)).astype(np.float32)
  return jnp.asarray(np.where(rng.random(x.shape) < closed, -np.inf, x))


class SpanTest(parameterized.TestCase):
  @parameterized.parameters((1, 1, 1), (7, 3, 4), (13, 40, 500), (13, 5, 20))
  def test_best_spans_equal_all_spans_sorted(self, length, max_length, k):
    start, end = _logits(1, 2, length), _logits(2, 2, length)
    got = answers.best_spans(start, end, max_length=max_length, num_spans=k)
    for row in range(2):
      every = [
        (float(start[row, i] + end[row, j]), i, j)
        for i in range(length)
        for j in range(i, min(i + max_length, length))
      ]
      want = sorted((s for s in every if s[0] > -np.inf), key=lambda s: -s[0])
      want = want[:k]
      count = len(want)
      np.testing.assert_allclose(
        got.score[row, :count], [s[0] for s in want], rtol=1e-6
      )
      np.testing.assert_array_equal(
        got.start[row, :count], [s[1] for s in want]
      )
      np.testing.assert_array_equal(got.end[row, :count], [s[2] for s in want])
      self.assertTrue(bool(jnp.isneginf(got.score[row, count:]).all()))
      self.assertLess(int(jnp.max(got.end[row])), length)

  def test_best_spans_make_no_square(self):
    length = 4096
    logits = jnp.zeros((1, length))

    def best(start, end):
      return answers.best_spans(start, end, max_length=30)

    jaxpr = jax.make_jaxpr(best)(logits, logits)
    jaxpr_walker.assert_no_intermediate(jaxpr, at_least=length**2 // 8)

  def test_loss_is_of_any_answer(self):
    start, end = _logits(3, 3, 9, 0.0), _logits(4, 3, 9, 0.0)
    start = start.at[0, 8].set(-jnp.inf)
    # The second answer of row 0 may not start there; row 2 has none.
    spans = jnp.array(
      [[[1, 2], [8, 8], [4, 4]], [[0, 0], [-1, -1], [-1, -1]], [[-1, -1]] * 3]
    )

    def loss(start, end):
      return answers.span_loss(start, end, spans)

    got = loss(start, end)
    p = np.asarray(jax.nn.softmax(start), np.float64)
    q = np.asarray(jax.nn.softmax(end), np.float64)
    want = [
      -np.log(p[0, 1] * q[0, 2] + p[0, 4] * q[0, 4]),
      -np.log(p[1, 0] * q[1, 0]),
      0.0,
    ]
    assert_close(got, np.asarray(want))
    grads = jax.grad(lambda *x: loss(*x).sum(), argnums=(0, 1))(start, end)
    for grad in grads:
      self.assertTrue(bool(jnp.isfinite(grad).all()))
      np.testing.assert_array_equal(grad[2], 0.0)
      assert_close(grad.sum(-1), np.zeros(3))
    # d loss / d start = p - posterior of the start.
    posterior = p[0, [1, 4]] * q[0, [2, 4]]
    posterior /= posterior.sum()
    want = p[0].copy()
    want[[1, 4]] -= posterior
    assert_close(grads[0][0], want)

  def test_a_row_without_any_place_is_finite(self):
    closed = jnp.full((1, 4), -jnp.inf)
    spans = jnp.array([[[0, 1]]])
    value, grad = jax.value_and_grad(
      lambda x: answers.span_loss(x, x, spans).sum()
    )(closed)
    self.assertEqual(float(value), 0.0)
    np.testing.assert_array_equal(grad, 0.0)
    found = answers.best_spans(closed, closed, max_length=2)
    self.assertTrue(bool(jnp.isneginf(found.score).all()))

  def test_the_head_masks_and_ignores_padding(self):
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    allowed = jnp.arange(6)[None] < jnp.array([[6], [4]])
    mask = jaxattn.Mask(key_valid=allowed, query_valid=allowed)
    head = answers.SpanHead(num_types=3)
    variables = nn.unbox(head.init(jax.random.key(1), x, allowed))
    got = head.apply(variables, x, allowed, mask=mask)
    for logits in (got.start, got.end):
      np.testing.assert_array_equal(jnp.isneginf(logits), ~allowed)
    other = jnp.where(allowed[..., None], x, 7.0)
    again = head.apply(variables, other, allowed, mask=mask)
    jax.tree.map(np.testing.assert_array_equal, got, again)
    # The mask alone closes what is padding.
    again = head.apply(variables, other, jnp.ones_like(allowed), mask=mask)
    jax.tree.map(np.testing.assert_array_equal, got, again)
    self.assertIsNone(
      answers.SpanHead()
      .init_with_output(jax.random.key(1), x, allowed)[0]
      .types
    )

  def test_bad_shapes_are_refused(self):
    x = jnp.zeros((2, 5))
    spans = jnp.zeros((2, 1, 2), int)
    with self.assertRaisesRegex(
      ValueError, "start and end must have one shape"
    ):
      answers.span_loss(x, x[:, :4], spans)
    with self.assertRaisesRegex(
      ValueError, r"spans must be integers \[B, A, 2\]"
    ):
      answers.span_loss(x, x, spans[:1])
    with self.assertRaisesRegex(ValueError, "max_length and num_spans"):
      answers.best_spans(x, x, max_length=0)
    with self.assertRaisesRegex(ValueError, "allowed must be bool"):
      answers.SpanHead().init(jax.random.key(0), x[..., None], x)
    with self.assertRaisesRegex(ValueError, "places must be integers"):
      answers.mention_means(x[..., None], jnp.zeros((1, 2, 3), int))


class MentionTest(parameterized.TestCase):
  def test_logits_are_of_the_mean_of_the_mentions(self):
    x = jax.random.normal(jax.random.key(0), (2, 6, 4))
    places = jnp.array(
      [
        [[0, 5, 2], [3, -1, -1], [-1, -1, -1]],
        [[1, 1, -1], [4, 0, -1], [2, 3, 4]],
      ]
    )
    head = answers.MentionHead()
    variables = nn.unbox(head.init(jax.random.key(1), x, places))
    got = head.apply(variables, x, places)
    score = variables["params"]["score"]["out"]
    kernel, bias = (
      np.asarray(score[n], np.float64) for n in ("kernel", "bias")
    )
    for row in range(2):
      for c in range(3):
        index = [int(i) for i in places[row, c] if i >= 0]
        if not index:
          self.assertTrue(bool(jnp.isneginf(got[row, c])))
          continue
        mean = np.asarray(x[row], np.float64)[index].mean(0)
        assert_close(got[row, c], (mean @ kernel + bias)[0])


if __name__ == "__main__":
  absltest.main()
