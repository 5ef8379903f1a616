"""The losses of pretraining, against loops over their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from jaxattn.models import losses


class MaskedLossTest(parameterized.TestCase):
  def test_is_the_weighted_mean(self):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 7))
    targets = rng.integers(0, 7, (2, 5))
    weights = rng.random((2, 5)) * (rng.random((2, 5)) < 0.6)
    want = 0.0
    for b in range(2):
      for t in range(5):
        p = np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
        want -= weights[b, t] * np.log(p[targets[b, t]])
    args = [jnp.asarray(x) for x in (logits, targets, weights)]
    got = losses.masked_language_model_loss(*args)
    np.testing.assert_allclose(got, want / weights.sum(), rtol=1e-5)

  def test_tokens_without_weight_are_inert(self):
    logits = jnp.zeros((3, 4)).at[0].set(jnp.nan)
    targets = jnp.array([-100, 1, 2])
    weights = jnp.array([False, True, True])
    logits = logits.at[0].set(5.0)
    got, grad = jax.value_and_grad(losses.masked_language_model_loss)(
      logits, targets, weights
    )
    np.testing.assert_allclose(got, np.log(4), rtol=1e-6)
    np.testing.assert_array_equal(grad[0], 0)
    none = losses.masked_language_model_loss(
      logits, targets, jnp.zeros(3, bool)
    )
    self.assertEqual(none, 0)
    with self.assertRaisesRegex(ValueError, "weights must have shape"):
      losses.masked_language_model_loss(logits, targets, weights[1:])


class ContrastiveLossTest(parameterized.TestCase):
  def test_is_noise_contrastive_over_the_batch(self):
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    valid = np.array([[True, True, False], [True, False, True]])
    rows = [(b, m) for b in range(2) for m in range(3) if valid[b, m]]
    want = 0.0
    for p in rows:
      scores = np.array([a[p] @ c[q] / 2 for q in rows])
      want += np.log(np.exp(scores).sum()) - a[p] @ c[p] / 2
    got = losses.cpc_loss(*(jnp.asarray(x) for x in (a, c, valid)))
    np.testing.assert_allclose(got, want / len(rows), rtol=1e-5)
    loud = np.where(valid[..., None], 0, 1e4).astype(np.float32)
    noisy = losses.cpc_loss(
      jnp.asarray(a + loud), jnp.asarray(c + loud), jnp.asarray(valid)
    )
    np.testing.assert_allclose(noisy, got, rtol=1e-6)

  def test_nothing_valid_is_zero(self):
    x = jnp.ones((2, 4))
    found = jax.value_and_grad(losses.cpc_loss)(x, x, jnp.zeros(2, bool))
    for leaf in jax.tree.leaves(found):
      np.testing.assert_array_equal(leaf, 0)

  def test_weights_of_the_sum(self):
    one, ten = jnp.float32(1), jnp.float32(10)
    np.testing.assert_allclose(losses.etc_pretraining_loss(one, ten), 2.8)
    with self.assertRaisesRegex(ValueError, "cpc_weight"):
      losses.etc_pretraining_loss(one, ten, cpc_weight=2.0)

  def _text(self):
    rng = np.random.default_rng(0)
    ids = np.full((3, 30), -1)
    ids[0, :28] = np.repeat(np.arange(14), 2)
    ids[1, :10] = np.repeat(np.arange(2), 5)
    tokens = np.where(ids >= 0, rng.integers(1, 12, ids.shape), 0)
    return jnp.asarray(tokens), jnp.asarray(ids)

  def test_hidden_sentences(self):
    tokens, ids = self._text()
    hide = jax.jit(
      functools.partial(
        losses.hide_sentences,
        num_sentences=14,
        max_hidden=3,
        max_length=4,
        mask_id=12,
      )
    )
    drawn = set()
    for seed in range(20):
      found = hide(jax.random.key(seed), tokens, ids)
      # 14 sentences: two; 2: one; none: none.
      counts = np.sum(found.sentences >= 0, axis=1)
      np.testing.assert_array_equal(counts, [2, 1, 0])
      drawn |= set(np.asarray(found.sentences[0, :2]).tolist())
      hidden = np.zeros((3, 30), bool)
      for b in range(3):
        for m in range(3):
          s = int(found.sentences[b, m])
          own = np.asarray(ids[b]) == s if s >= 0 else np.zeros(30, bool)
          hidden[b] |= own
          want = np.asarray(tokens[b])[own][:4]
          valid = np.asarray(found.sentence_valid[b, m])
          np.testing.assert_array_equal(valid, np.arange(4) < len(want))
          alone = np.asarray(found.sentence_tokens[b, m])
          np.testing.assert_array_equal(alone[valid], want)
          np.testing.assert_array_equal(alone[~valid], 0)
      np.testing.assert_array_equal(found.hidden, hidden)
      np.testing.assert_array_equal(
        found.tokens, np.where(hidden, 12, np.asarray(tokens))
      )
    assert len(drawn) > 9  # Of 14, in 40 draws: all but 0.7 are expected.

  def test_bad_options_are_named(self):
    tokens, ids = self._text()
    good = dict(num_sentences=14, max_hidden=3, max_length=4, mask_id=12)
    for change, message in (
      (dict(rate=1.5), "rate must be in"),
      (dict(max_hidden=15), "max_hidden must be in"),
      (dict(max_length=31), "max_length must be in"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        losses.hide_sentences(jax.random.key(0), tokens, ids, **(good | change))
    with self.assertRaisesRegex(ValueError, "one shape"):
      losses.hide_sentences(jax.random.key(0), tokens, ids[:, 1:], **good)
