"""Spherical k-means: what moves centroids, and who belongs to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxattn._src import kmeans
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

B, T, N, C, H = 2, 24, 2, 4, 8


def _vectors(seed=0, scale=1.0):
  x = scale * jax.random.normal(jax.random.key(seed), (B, T, N, H)) + 3.0
  return kmeans.plain_layer_norm(x)


def _centroids(seed=1):
  return kmeans.draw_centroids(
    jax.random.key(seed), num_heads=N, num_clusters=C, head_dim=H
  )


def test_layer_norm_has_no_parameters_and_forgets_scale():
  x = _vectors()
  assert_close(np.mean(x, -1), np.zeros((B, T, N)), 1e-6)
  assert_close(np.linalg.norm(x, axis=-1), np.full((B, T, N), H**0.5), 1e-5)
  assert_close(kmeans.plain_layer_norm(5 * x + 2), x, 1e-5)
  assert np.all(np.isfinite(kmeans.plain_layer_norm(jnp.zeros((3, H)))))


def test_nearest_by_product_is_nearest_by_distance():
  x, mu = _vectors(), _centroids()
  distance = np.linalg.norm(
    np.asarray(kmeans.unit(x))[:, :, :, None] - np.asarray(mu), axis=-1
  )
  np.testing.assert_array_equal(kmeans.nearest(x, mu), distance.argmin(-1))


def _means(mu, vectors, valid):
  """Sums of the nearest tokens, naively."""
  sums, counts = np.zeros((N, C, H)), np.zeros((N, C))
  for x, there in zip(vectors, valid, strict=True):
    at, unit = np.asarray(kmeans.nearest(x, mu)), np.asarray(kmeans.unit(x))
    for b, t, n in np.ndindex(B, T, N):
      if there is None or there[b, t]:
        sums[n, at[b, t, n]] += unit[b, t, n]
        counts[n, at[b, t, n]] += 1
  return sums, counts


@pytest.mark.parametrize("padded", [False, True])
def test_update_is_a_moving_average_on_the_sphere(padded):
  """Of queries and keys; padding does not count, empty clusters stay."""
  mu = _centroids().at[:, 3].set(-_centroids()[:, 0])
  x = kmeans.plain_layer_norm(_vectors() + 4 * mu[None, None, :, 0] * H**0.5)
  y, valid = _vectors(5), [None, None]
  away = jnp.sum(y * mu[None, None, :, 3], -1, keepdims=True) > 0
  y = jnp.where(away, -y, y)
  if padded:
    valid = [jnp.arange(T)[None] < jnp.array([[9], [20]]), None]
  run = functools.partial(kmeans.update, mu, (x, y), valid)
  sums, counts = _means(mu, (x, y), valid)
  for decay in (0.0, 0.9, 1.0):
    got = run(decay=decay)
    mean = sums / np.maximum(counts, 1)[..., None]
    want = decay * np.asarray(mu) + (1 - decay) * mean
    want /= np.maximum(np.linalg.norm(want, axis=-1, keepdims=True), 1e-9)
    want = np.where(counts[..., None] > 0, want, mu)
    assert_close(got, want)
    assert_close(np.linalg.norm(got, axis=-1), np.ones((N, C)), 1e-5)
  assert_close(run(decay=1.0), mu, 1e-6)
  assert (counts == 0).any()  # The test shows the empty cluster.


def test_padding_that_is_zero_does_not_pull():
  """What stands at padding makes no difference."""
  mu, x = _centroids(), _vectors()
  valid = jnp.arange(T)[None] < 10
  loud = jnp.where(valid[..., None, None], x, 100.0)
  run = functools.partial(kmeans.update, mu, valid=[valid], decay=0.5)
  assert_close(run([loud]), run([x]), 0)


def test_two_devices_are_one_with_the_whole_batch():
  """Under plain jit, and under shard_map with the name of the axis."""
  if jax.device_count() < 2:
    pytest.skip("needs two devices")
  mu, x = _centroids(), _vectors()
  want = kmeans.update(mu, [x], [None], decay=0.5)
  mesh = jax.make_mesh(
    (2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  split = jax.sharding.NamedSharding(mesh, P("batch"))
  run = functools.partial(kmeans.update, valid=[None], decay=0.5)
  got = jax.jit(lambda x: run(mu, [x]))(jax.device_put(x, split))
  assert_close(got, want, 1e-6)
  mapped = jax.shard_map(
    lambda x: run(mu, [x], axis_name="batch"),
    mesh=mesh,
    in_specs=P("batch"),
    out_specs=P(),
  )
  assert_close(jax.jit(mapped)(x), want, 1e-6)
  alone = run(mu, [x[:1]])
  assert np.abs(alone - want).max() > 1e-3  # Half the batch is not the whole.


def test_clusters_are_balanced_and_never_hold_padding():
  """As many for each; -1 where fewer are valid than wanted."""
  scores = kmeans.scores(_vectors(), _centroids())
  got = np.asarray(kmeans.top_members(scores, None, size=6))
  assert got.shape == (B, N, C, 6)
  want = np.argsort(-np.asarray(scores), axis=-1)[..., :6]
  np.testing.assert_array_equal(np.sort(got, -1), np.sort(want, -1))
  count = np.array([4, 15])
  valid = jnp.asarray(np.arange(T)[None] < count[:, None])
  got = np.asarray(kmeans.top_members(scores, valid, size=6))
  for b in range(B):
    assert got[b].max() < count[b]
    np.testing.assert_array_equal((got[b] >= 0).sum(-1), min(6, count[b]))
    for row in got[b].reshape(-1, 6):
      assert len(set(row[row >= 0])) == (row >= 0).sum()
  assert kmeans.top_members(scores, None, size=99).shape[-1] == T


def test_commitment_pulls_tokens_and_not_centroids():
  x, mu = _vectors(), _centroids()
  valid = jnp.arange(T)[None] < 10
  slope = jax.grad(kmeans.commitment_loss, argnums=(0, 1))
  of_x, of_mu = slope(x, mu, jnp.tile(valid, (B, 1)))
  assert_zero(of_mu, of_x[:, 10:])
  assert np.abs(of_x[:, :10]).max() > 1e-4
  at = np.asarray(kmeans.nearest(x, mu))
  unit = np.asarray(kmeans.unit(x))
  distance = [
    np.sum((unit[b, t, n] - np.asarray(mu)[n, at[b, t, n]]) ** 2)
    for b, t, n in np.ndindex(B, T, N)
  ]
  assert_close(kmeans.commitment_loss(x, mu), np.mean(distance), 1e-5)
