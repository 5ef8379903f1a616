"""What masked language models are given to predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.models import masking

_LENGTH = 400


def _rows(seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, 50, (3, _LENGTH)).astype(np.int32)
  begins = rng.random((3, _LENGTH)) < 0.4
  candidates = np.arange(_LENGTH) < np.array([[400], [300], [7]])
  return jnp.asarray(tokens), jnp.asarray(begins), jnp.asarray(candidates)


def _hide(key, rate=0.15):
  tokens, begins, candidates = _rows()
  return masking.hide_words(
    key, tokens, begins, candidates, mask_id=50, vocab_size=50, rate=rate
  )


def test_whole_words_within_the_budget():
  tokens, begins, candidates = map(np.asarray, _rows())
  hidden = jax.jit(_hide)(jax.random.key(1))
  assert hidden.places.shape == (3, 60)
  for row in range(3):
    real = np.asarray(hidden.weights[row])
    places = np.asarray(hidden.places[row])[real]
    assert len(set(places)) == len(places)
    assert candidates[row, places].all()
    assert len(places) <= max(0.15 * candidates[row].sum(), 1)
    word = np.cumsum(begins[row])
    inside = np.isin(word, word[places]) & candidates[row]
    assert sorted(places) == np.flatnonzero(inside).tolist()
    np.testing.assert_array_equal(
      np.asarray(hidden.targets[row])[real], tokens[row, places]
    )
    others = np.setdiff1d(np.arange(_LENGTH), places)
    np.testing.assert_array_equal(
      np.asarray(hidden.tokens)[row, others], tokens[row, others]
    )


def test_each_key_draws_anew_and_evenly():
  """0.8 masks, 0.1 random, 0.1 as it was; all places alike."""
  tokens = jnp.arange(20, dtype=jnp.int32)
  true = jnp.ones(20, bool)

  def draw(key):
    return masking.hide_words(
      key, tokens, true, true, mask_id=99, vocab_size=1000, rate=0.5
    )

  found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 2000))
  assert bool(jnp.all(found.weights))
  counts = np.bincount(np.asarray(found.places).ravel(), minlength=20)
  np.testing.assert_allclose(counts / 2000, 0.5, atol=0.05)
  shown = jnp.take_along_axis(found.tokens, found.places, axis=-1)
  same = np.mean(np.asarray(shown == found.targets))
  masked = np.mean(np.asarray(shown == 99))
  np.testing.assert_allclose([masked, same], [0.8, 0.1], atol=0.01)


def test_refuses_what_does_not_fit():
  row = jnp.zeros(4, jnp.int32)
  true = jnp.ones(4, bool)
  with pytest.raises(ValueError, match="begins must have shape"):
    masking.hide_words(
      jax.random.key(0), row, true[:3], true, mask_id=1, vocab_size=1
    )
  with pytest.raises(ValueError, match="rate must lie"):
    _hide(jax.random.key(0), rate=0.0)
