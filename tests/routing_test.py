"""Routing attention against a naive oracle; its state and its causality."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn._src import kmeans
from tests import bucketed_cases as naive
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

B, T, N, H, V, C, W = 2, 32, 2, 8, 6, 4, 10
_SHAPES = jaxattn.AttentionShapes(num_heads=N, head_dim=H, value_dim=V)


def _draw(seed=0, length=T):
  rngs = jax.random.split(jax.random.key(seed), 3)
  sizes = (H, H, V)
  return tuple(
    jax.random.normal(r, (B, length, N, size))
    for r, size in zip(rngs, sizes, strict=True)
  )


def _state(method, seed=0):
  return method.init(jax.random.key(seed), _SHAPES)[1]


def _naive(qkv, query_index, key_index, mask):
  """The mean over clusters, each a dense attention of its own."""
  query, key, value = qkv
  allowed = jnp.broadcast_to(
    mask.dense(query.shape[1], key.shape[1]),
    (B, N, query.shape[1], key.shape[1]),
  )
  total, count = 0.0, 0.0
  for c in range(query_index.shape[2]):
    inside = [
      jax.nn.one_hot(x[:, :, c], n).sum(2) > 0
      for x, n in ((query_index, query.shape[1]), (key_index, key.shape[1]))
    ]
    both = allowed & inside[0][..., None] & inside[1][..., None, :]
    out, lse = naive.attend(query, key, value, both)
    seen = ~jnp.isneginf(lse)
    total = total + jnp.where(seen[..., None], out, 0.0)
    count = count + seen.astype(jnp.float32)
  return total / jnp.maximum(count, 1.0)[..., None], count


@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_mean_over_clusters(causal):
  """In value and gradient, with padding; unrouted rows are zero."""
  method = jaxattn.routing(num_clusters=C, window=W)
  state, qkv = _state(method), _draw()
  valid = jnp.asarray(np.random.default_rng(0).random((B, T)) < 0.8)
  mask = jaxattn.Mask(causal=causal, key_valid=valid, query_valid=valid)
  index = method.select((), state, *qkv[:2], mask=mask)
  assert [x.shape for x in index] == [(B, N, C, W)] * 2
  ct = jax.random.normal(jax.random.key(9), (B, T, N, V))

  def attend(*qkv):
    return method.apply((), state, *qkv, mask=mask)[0]

  def expected(q, k, v):
    q, k = kmeans.plain_layer_norm(q), kmeans.plain_layer_norm(k)
    return _naive((q, k, v), *index, mask)[0]

  def pull(run):
    out, vjp = jax.vjp(run, *qkv)
    return out, vjp(ct)

  got, want = (
    jax.jit(functools.partial(pull, f))() for f in (attend, expected)
  )
  assert_close(got, want)
  normed = [kmeans.plain_layer_norm(x) for x in qkv[:2]]
  count = np.asarray(_naive((*normed, qkv[2]), *index, mask)[1])
  assert_zero(got[0][count == 0], *(g[~np.asarray(valid)] for g in got[1]))
  assert (count == 0).any() and (count > 1).any()


def test_one_cluster_is_dense_attention_of_normed_vectors():
  """Without a factor like the 1 / 1.01 of the authors' code."""
  method = jaxattn.routing(num_clusters=1)
  q, k, v = _draw()
  for mask in (jaxattn.FULL, jaxattn.CAUSAL):
    got, _ = method.apply((), _state(method), q, k, v, mask=mask)
    want = jaxattn.dense_attention(
      kmeans.plain_layer_norm(q), kmeans.plain_layer_norm(k), v, mask=mask
    )
    assert_close(got, want)
  whole = dataclasses.replace(method, scale=1.0)
  got, _ = whole.apply((), _state(method), q, k, v)
  want = jaxattn.dense_attention(
    kmeans.plain_layer_norm(q), kmeans.plain_layer_norm(k), v, scale=1.0
  )
  assert_close(got, want)


def test_order_of_centroids_changes_nothing():
  method, qkv = jaxattn.routing(num_clusters=C, window=W), _draw()
  state = _state(method)
  other = {"centroids": state["centroids"][:, jnp.array([2, 0, 3, 1])]}
  got, _ = method.apply((), other, *qkv)
  assert_close(got, method.apply((), state, *qkv)[0], 1e-6)


@pytest.mark.parametrize("mode", ["balanced", "random", "nearest"])
def test_causality(mode):
  """By gradient, and by loud changes of all that is later.

  Slots of a cluster that see no key leak nothing, as a softmax over masked
  scores would. Where a cluster is balanced, later queries and keys may take the
  places of earlier ones; values never matter.
  """
  method = jaxattn.routing(num_clusters=C, window=8, mode=mode)
  state, (q, k, v) = _state(method), _draw()
  run = jax.jit(
    lambda q, k, v: method.apply((), state, q, k, v, mask=jaxattn.CAUSAL)[0]
  )
  for t in (0, 9, 20):
    dq, dk, dv = jax.grad(
      lambda *qkv, t=t: jnp.sum(run(*qkv)[:, t] ** 2), argnums=(0, 1, 2)
    )(q, k, v)
    assert_zero(*(g[:, t + 1 :] for g in (dq, dk, dv)))
  out, cut = run(q, k, v), 15
  loud = v.at[:, cut:].set(1e4)
  assert_close(run(q, k, loud)[:, :cut], out[:, :cut], 1e-6)
  change = []
  for seed in range(5, 9):
    late = [x.at[:, cut:].set(9 * y[:, cut:]) for x, y in
            zip((q, k, v), _draw(seed), strict=True)]  # fmt: skip
    change.append(float(np.abs(run(*late) - out)[:, :cut].max()))
  if mode == "balanced":
    assert max(change) > 1e-3  # The documented exception.
  else:
    assert max(change) < 1e-5


def test_nearest_sees_the_last_members_of_the_own_cluster():
  """Queries are keys; a token sees itself if it has nothing else."""
  window = 5
  method = jaxattn.routing(num_clusters=C, window=window, mode="nearest")
  state, (q, _, v) = _state(method), _draw()
  normed = kmeans.plain_layer_norm(q)
  groups = np.asarray(kmeans.nearest(normed, state["centroids"]))
  allowed = np.zeros((B, N, T, T), bool)
  for b, n, i in np.ndindex(B, N, T):
    members = [j for j in range(i + 1) if groups[b, j, n] == groups[b, i, n]]
    allowed[b, n, i, members[-window:-1]] = True
  out, lse = naive.attend(normed, normed, v, jnp.asarray(allowed))
  want = jnp.where(jnp.isneginf(lse)[..., None], v, out)
  got, _ = method.apply((), state, q, q, v, mask=jaxattn.CAUSAL)
  assert_close(got, want)
  with pytest.raises(ValueError, match="32.*31"):
    method.apply((), state, q, q[:, 1:], v[:, 1:])


def test_state_moves_in_training_only_and_has_no_gradient():
  qkv = q, k, v = _draw()
  for mode in ("balanced", "nearest"):
    method = jaxattn.routing(num_clusters=C, window=W, mode=mode, decay=0.5)
    state = _state(method)
    run = functools.partial(method.apply, (), state, *qkv)
    out, same = run()
    assert_close(same, state, 0)
    trained, moved = run(train=True)
    # The step works with the centroids before it.
    assert_close(trained, out, 0)
    sides = (q,) if mode == "nearest" else (q, k)
    want = kmeans.update(
      state["centroids"],
      [kmeans.plain_layer_norm(x) for x in sides],
      [None] * len(sides),
      decay=0.5,
    )
    assert_close(moved["centroids"], want, 1e-6)
    slope = jax.grad(lambda s, run=method.apply: jnp.sum(run((), s, *qkv)[0]))(
      state
    )
    assert_zero(slope["centroids"])
  method = jaxattn.routing(num_clusters=C, window=W, mode="random")
  state = _state(method)
  out, moved = method.apply((), state, q, k, v, train=True)
  assert_close(moved, state, 0)
  again, _ = method.apply((), state, 3 * q, -k, v)  # Content does not matter,
  index = method.select((), state, q, k)
  np.testing.assert_array_equal(index, method.select((), state, -q, k * 2))
  assert np.abs(again - out).max() > 1e-3  # but scores do.


def test_selection_takes_the_place_of_choosing():
  for mode in ("balanced", "nearest"):
    method = jaxattn.routing(num_clusters=C, window=W, mode=mode)
    state, (q, k, v) = _state(method), _draw()
    want, _ = method.apply((), state, q, k, v, mask=jaxattn.CAUSAL)
    chosen = method.select((), state, q, k, mask=jaxattn.CAUSAL)
    other = _state(method, seed=5)
    got, _ = method.apply(
      (), other, q, k, v, mask=jaxattn.CAUSAL, selection=chosen
    )
    assert_close(got, want, 1e-6)
    changed, _ = method.apply((), other, q, k, v, mask=jaxattn.CAUSAL)
    assert np.abs(changed - want).max() > 1e-3


def test_wrong_options_are_named():
  for options, word in (
    (dict(num_clusters=0), "num_clusters"),
    (dict(num_clusters=2, window=0), "window"),
    (dict(num_clusters=2, mode="other"), "mode"),
    (dict(num_clusters=2, decay=1.5), "decay"),
    (dict(num_clusters=2, mode="nearest"), "window"),
  ):
    with pytest.raises(ValueError, match=word):
      jaxattn.routing(**options)
  method, (q, k, v) = jaxattn.routing(num_clusters=C, window=W), _draw()
  other = _state(jaxattn.routing(num_clusters=3))
  with pytest.raises(ValueError, match="centroids must be"):
    method.apply((), other, q, k, v)
  with pytest.raises(NotImplementedError, match="mode='nearest'"):
    method.extend((), {}, {}, q, k, v)
