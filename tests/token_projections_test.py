"""Tokens made of tokens: draws, sums, maxima, errors; see linformer_test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from tests.method_cases import assert_zero


@pytest.mark.parametrize(
  ("init", "variance", "spread"),
  [
    ("normal", 8.0, 2.8),
    ("uniform", 8 / 3, 1.6),
    ("xavier", 8 / 9, 0.94),
    ("scaled", 1.0, 1.0),
    (None, 1 / 8, 0.35),  # Mean pooling.
  ],
)
def test_size_of_projected_keys_and_scores(init, variance, spread):
  """2048 unit keys to 256: variance of a key, standard deviation of a score.

  16384 entries, so that their variance is off by 1% or so; 4% is four times
  that. The scores are of 64 queries, whose own size is off by 2%.
  """
  rngs = jax.random.split(jax.random.key(0), 3)
  query, key = (
    jax.random.normal(rng, (n, 1, 64))
    for rng, n in zip(rngs, (64, 2048), strict=False)
  )
  if init is None:
    slots, _ = jaxattn.pool_tokens(key, 8)
  else:
    matrix = jaxattn.draw_token_projection(rngs[2], (256, 2048), init=init)
    slots = jaxattn.project_tokens(key, matrix)
  np.testing.assert_allclose(np.var(slots), variance, rtol=0.04)
  scores = jnp.einsum("tnh,cnh->tc", query, slots) / 8.0
  np.testing.assert_allclose(np.std(scores), spread, rtol=0.06)


def test_bfloat16_sums_are_float32():
  """4096 terms of 2^-12: a sum in bfloat16 would stop growing at 2^-4."""
  x = jnp.ones((1, 4096, 1, 2), jnp.bfloat16)
  matrix = jnp.full((3, 4096), 2.0**-12)
  # Processors sum in float32 anyway; devices do what they are told.
  told = str(jax.make_jaxpr(jaxattn.project_tokens)(x, matrix))
  assert "preferred_element_type=float32" in told
  made = (
    jaxattn.project_tokens(x, matrix),
    jaxattn.convolve_tokens(x, jnp.full((4096,), 2.0**-12))[0],
    jaxattn.pool_tokens(x, 4096)[0],
  )
  for out in made:
    assert out.dtype == jnp.bfloat16
    assert np.all(out.astype(jnp.float32) == 1.0)


def test_gradient_of_the_maximum_goes_to_it():
  x = jnp.array([1.0, 5.0, 9.0, 2.0, 7.0]).reshape(1, 5, 1, 1)
  valid = jnp.array([[True, True, False, True, True]])
  grad = jax.grad(
    lambda x: jnp.sum(jaxattn.pool_tokens(x, 3, kind="max", valid=valid)[0])
  )(x)
  assert grad.ravel().tolist() == [0, 1, 0, 0, 1]
  dead = jnp.zeros((1, 5), bool)
  grad = jax.grad(
    lambda x: jnp.sum(jaxattn.pool_tokens(x, 3, kind="max", valid=dead)[0])
  )(x)
  assert_zero(grad)


def test_errors():
  k = jnp.ones((1, 4, 2, 3))
  with pytest.raises(ValueError, match="kernel must be .* 2 key heads"):
    jaxattn.convolve_tokens(k, jnp.ones((3, 4)))
  with pytest.raises(ValueError, match="window must be positive"):
    jaxattn.pool_tokens(k, 0)
  with pytest.raises(ValueError, match="kind must be one of"):
    jaxattn.pool_tokens(k, 2, kind="median")
  with pytest.raises(ValueError, match="shape must be"):
    jaxattn.draw_token_projection(jax.random.key(0), (3,))
  with pytest.raises(ValueError, match="init must be one of"):
    jaxattn.draw_token_projection(jax.random.key(0), (3, 4), init="zeros")
