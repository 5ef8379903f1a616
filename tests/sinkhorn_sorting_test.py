"""Sinkhorn balancing and the sorting network, each against what it must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxattn
from jaxattn._src import sinkhorn_sorting as sorting
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

n = 8


def _logits(seed=0, *lead):
  return jax.random.normal(jax.random.key(seed), (*lead, n, n))


def _balance(logits, iterations=7, temperature=0.75, **options):
  return jaxattn.sinkhorn_balance(
    logits, iterations=iterations, temperature=temperature, **options
  )


def test_is_what_the_definition_says():
  logits = np.asarray(_logits(), np.float64)
  x = np.exp(logits / 0.75)
  for k in range(4):
    assert_close(_balance(jnp.asarray(logits, jnp.float32), k), x)
    x = x / x.sum(1, keepdims=True)
    x = x / x.sum(0, keepdims=True)


def test_columns_sum_to_one_and_rows_come_near():
  """5e-5 after 7 rounds, from raw logits; not the 0.1 of logs of a ReLU."""
  errors = []
  for k in (1, 3, 5, 7):
    shares = _balance(_logits(3, 20), k)
    assert_close(jnp.sum(shares, -2), jnp.ones((20, n)), 1e-5)
    errors.append(float(np.abs(jnp.sum(shares, -1) - 1).mean()))
  assert errors == sorted(errors, reverse=True)
  assert errors[-1] < 1e-3 < errors[0]


def test_what_a_row_adds_to_its_scores_does_not_matter():
  """Of a column it does not once balanced."""
  rows = jax.random.normal(jax.random.key(1), (n, 1))
  assert_close(_balance(_logits() + rows), _balance(_logits()), 1e-5)
  assert_close(_balance(_logits() + rows, 1), _balance(_logits(), 1), 1e-5)
  columns = _logits() + rows.T
  assert np.abs(_balance(columns, 1) - _balance(_logits(), 1)).max() > 1e-3
  assert_close(_balance(columns, 40), _balance(_logits(), 40), 1e-4)


def test_a_low_temperature_gives_the_best_permutation():
  """That of the Hungarian algorithm."""
  logits = _logits(5)
  rows, columns = scipy.optimize.linear_sum_assignment(-np.asarray(logits))
  want = np.zeros((n, n))
  want[rows, columns] = 1
  errors = [
    np.abs(np.asarray(_balance(logits, 200, t)) - want).max()
    for t in (0.3, 0.1, 0.03)
  ]
  assert errors == sorted(errors, reverse=True)
  assert errors[-1] < 0.1


def test_absent_blocks_take_and_give_nothing():
  """As if they were not there at all."""
  valid = jnp.arange(n) < 5
  shares = _balance(_logits(2), valid=valid)
  assert_close(shares[:5, :5], _balance(_logits(2)[:5, :5]), 1e-6)
  assert_zero(shares[5:], shares[:, 5:])
  none = _balance(_logits(2), valid=jnp.zeros(n, bool))
  assert_zero(none)
  slope = jax.grad(lambda x: jnp.sum(_balance(x, valid=valid) ** 2))(_logits(2))
  assert np.all(np.isfinite(slope))
  assert_zero(slope[5:], slope[:, 5:])


def test_causal_shares_are_of_earlier_blocks_and_known_in_time():
  """Nothing of a row depends on a later one, by gradient or loud change.

  A column's sum over all rows would: that is no rounding error but 0.2.
  """
  logits = _logits(4)
  shares = _balance(logits, causal=True)
  assert_zero(np.triu(shares), shares[0])
  assert np.all(np.asarray(shares) >= 0)
  assert_close(shares[1, 0], 1.0, 1e-6)
  for row in (1, 4, 7):
    slope = jax.grad(
      lambda x, row=row: jnp.sum(_balance(x, causal=True)[row] ** 2)
    )(logits)
    assert_zero(slope[row + 1 :])
    assert np.all(np.isfinite(slope))
    late = logits.at[row + 1 :].set(50.0 * _logits(9)[row + 1 :])
    assert_zero(_balance(late, causal=True)[: row + 1] - shares[: row + 1])
  # The last normalisation makes a column's sum 1 up to every row.
  once = np.asarray(_balance(logits, 1, causal=True))
  x = np.tril(np.exp(np.asarray(logits) / 0.75), -1)
  x = x / np.maximum(x.sum(1, keepdims=True), 1e-30)
  assert_close(once, x / np.maximum(np.cumsum(x, 0), 1e-30))


def test_causal_blocks_that_are_absent():
  valid = jnp.array([False, True, True, False, True, True, True, True])
  logits = _logits(6)
  shares = _balance(logits, causal=True, valid=valid)
  kept = np.flatnonzero(valid)
  alone = jaxattn.sinkhorn_balance(
    logits[kept][:, kept], iterations=7, temperature=0.75, causal=True
  )
  assert_close(np.asarray(shares)[np.ix_(kept, kept)], alone, 1e-6)
  assert_zero(shares[0], shares[3], shares[:, 3])


def test_block_sums():
  x = jax.random.normal(jax.random.key(0), (2, 12, 3))
  valid = jnp.asarray(np.random.default_rng(0).random((2, 12)) < 0.7)
  shown = jnp.where(valid[..., None], x, 0.0)
  got = sorting.block_sums(x, valid, block=4, causal=False)
  assert_close(got, shown.reshape(2, 3, 4, 3).sum(2))
  got = sorting.block_sums(x, valid, block=4, causal=True)
  for i in range(3):
    assert_close(got[:, i], shown[:, : 4 * i + 1].sum(1))


def test_network_is_two_layers_with_a_relu():
  params = sorting.init_network(
    jax.random.key(0), nets=2, inputs=6, hidden=5, blocks=n, dtype=jnp.float32
  )
  params["in_bias"] = jnp.linspace(-1, 1, 10).reshape(2, 5)
  params["out_bias"] = jnp.linspace(-1, 1, 2 * n).reshape(2, n)
  x = jax.random.normal(jax.random.key(1), (3, 4, 2, 6))
  got = sorting.sort_logits(params, x)
  assert got.shape == (3, 2, 4, 4)
  p = {k: np.asarray(v) for k, v in params.items()}
  for g in range(2):
    wide = np.maximum(np.asarray(x)[:, :, g] @ p["in"][g] + p["in_bias"][g], 0)
    want = wide @ p["out"][g] + p["out_bias"][g]
    assert_close(got[:, g], want[..., :4])


def test_blocks_are_moved_whole():
  """A permutation of blocks, the same for all of them; for every head."""
  blocks = jax.random.normal(jax.random.key(0), (2, n, 3, 4, 5))
  order = np.array([3, 0, 2, 1, 7, 6, 5, 4])
  shares = jnp.asarray(np.eye(n)[order], jnp.float32)
  one = sorting.sort_blocks(jnp.tile(shares[None, None], (2, 1, 1, 1)), blocks)
  assert_close(one, blocks[:, order], 1e-6)
  heads = jnp.stack([shares, jnp.eye(n), shares, jnp.eye(n)])
  many = sorting.sort_blocks(jnp.tile(heads[None], (2, 1, 1, 1)), blocks)
  assert_close(many[:, :, :, ::2], blocks[:, order][:, :, :, ::2], 1e-6)
  assert_close(many[:, :, :, 1::2], blocks[:, :, :, 1::2], 1e-6)


def test_wrong_arguments_are_named():
  for logits, options, word in (
    (jnp.ones((3, 4)), {}, r"\[..., n, n\]"),
    (_logits(), dict(iterations=-1), "iterations"),
    (_logits(), dict(temperature=0.0), "temperature"),
  ):
    with pytest.raises(ValueError, match=word):
      _balance(logits, **options)
