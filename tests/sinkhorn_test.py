"""Sinkhorn attention against a naive oracle, and its invariants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from tests import bucketed_cases as naive
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

B, T, N, H, V, BLOCK = 2, 24, 2, 8, 6, 4
_SHAPES = jaxattn.AttentionShapes(num_heads=N, head_dim=H, value_dim=V)
_METHOD = jaxattn.sinkhorn(max_length=T, block=BLOCK)


def _draw(seed=0, length=T):
  rngs = jax.random.split(jax.random.key(seed), 3)
  return tuple(
    jax.random.normal(r, (B, length, N, size))
    for r, size in zip(rngs, (H, H, V), strict=True)
  )


def _params(method, seed=0):
  return method.init(jax.random.key(seed), _SHAPES)[0]


@functools.partial(jax.jit, static_argnames=("method", "train"))
def _apply(method, params, qkv, mask=jaxattn.FULL, rng=None, train=False):
  return method.apply(params, (), *qkv, mask=mask, rng=rng, train=train)[0]


def _shares(method, params, q, k, causal):
  """`[B, G, n, n]`, naively."""
  n = q.shape[1] // method.block
  parts = [np.asarray(x, np.float64) for x in (q, k)]
  if method.networks == "shared":
    parts = [x.reshape(*x.shape[:2], 1, -1) for x in parts]
  x = np.concatenate(parts, axis=-1)
  sums = np.zeros((B, n, *x.shape[2:]))
  for i in range(n):
    first = i * method.block
    inside = (
      slice(0, first + 1) if causal else slice(first, first + method.block)
    )
    sums[:, i] = x[:, inside].sum(1)
  p = {k: np.asarray(v, np.float64) for k, v in params.items()}
  wide = np.einsum("bngf,gfw->bngw", sums, p["in"]) + p["in_bias"]
  logits = np.einsum("bngw,gwm->bgnm", np.maximum(wide, 0), p["out"])
  logits = (logits + p["out_bias"][:, None])[..., :n]
  return np.asarray(
    jaxattn.sinkhorn_balance(
      jnp.asarray(logits, jnp.float32),
      iterations=method.iterations,
      temperature=method.temperature,
      causal=causal,
    )
  )


def _naive(method, shares, qkv, causal):
  """One softmax over the own block and the sorted one."""
  q, k, v = qkv
  n, block = q.shape[1] // method.block, method.block
  shares = jnp.broadcast_to(jnp.asarray(shares), (B, N, n, n))

  def moved(x):
    blocks = x.reshape(B, n, block, N, -1)
    out = jnp.einsum("bkij,bjtkh->bitkh", shares, blocks, precision="highest")
    return out.reshape(x.shape)

  keys, values = (jnp.concatenate([x, moved(x)], axis=1) for x in (k, v))
  i, j = np.arange(q.shape[1])[:, None], np.arange(q.shape[1])[None]
  local = i // block == j // block
  sorted_ = local & (i >= block) if causal else local
  local = local & (j <= i) if causal else local
  allowed = np.concatenate([local, sorted_], axis=1)
  allowed = jnp.broadcast_to(jnp.asarray(allowed), (B, N, *allowed.shape))
  return naive.attend(q, keys, values, allowed)[0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("networks", ["shared", "per_head"])
def test_equals_one_softmax_over_both_blocks(causal, networks):
  """With shares computed naively from the sums of blocks."""
  method = dataclasses.replace(_METHOD, networks=networks)
  params, qkv = _params(method), _draw()
  shares = _shares(method, params, *qkv[:2], causal)
  mask = jaxattn.Mask(causal=causal)
  want = _naive(method, shares, qkv, causal)
  assert_close(_apply(method, params, qkv, mask), want, 2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_gradient_reaches_the_network_and_is_that_of_the_oracle(causal):
  """By finite differences of the naive form for a few numbers each."""
  params, qkv = _params(_METHOD), _draw()
  mask = jaxattn.Mask(causal=causal)
  ct = jax.random.normal(jax.random.key(5), (B, T, N, V))

  def loss(params, qkv):
    return jnp.sum(_apply(_METHOD, params, qkv, mask) * ct)

  of_params, of_qkv = jax.grad(loss, argnums=(0, 1))(params, qkv)
  for leaf in jax.tree.leaves(of_params):
    assert np.abs(leaf).max() > 1e-4
  rng = np.random.default_rng(0)
  for i in range(3):
    way = jnp.asarray(rng.normal(size=qkv[i].shape), jnp.float32)

    def moved(step, i=i, way=way):
      changed = list(qkv)
      changed[i] = qkv[i] + step * way
      shares = _shares(_METHOD, params, *changed[:2], causal)
      return float(jnp.sum(_naive(_METHOD, shares, changed, causal) * ct))

    step = 3e-3
    slope = (moved(step) - moved(-step)) / (2 * step)
    assert slope == pytest.approx(float(jnp.sum(of_qkv[i] * way)), rel=3e-2)


def test_equal_scores_mix_all_blocks_alike():
  """A network of zeros: every sorted block is the mean of all."""
  params = jax.tree.map(jnp.zeros_like, _params(_METHOD))
  qkv, n = _draw(), T // BLOCK
  want = _naive(_METHOD, np.full((B, 1, n, n), 1 / n), qkv, False)
  assert_close(_apply(_METHOD, params, qkv), want)


def test_identity_permutation_is_local_attention(monkeypatch):
  """Two copies of the own block count as one."""
  monkeypatch.setattr(
    "jaxattn._src.sinkhorn_sorting.sinkhorn_balance",
    lambda logits, **options: jnp.broadcast_to(
      jnp.eye(logits.shape[-1])[None, None], logits.shape
    ),
  )
  qkv = _draw()
  got = _METHOD.apply(_params(_METHOD), (), *qkv)[0]
  want = jaxattn.block_sparse(*qkv, pattern=jaxattn.patterns.Chunked(BLOCK))
  assert_close(got, want)


def test_a_permutation_of_blocks_with_their_columns_changes_nothing(
  monkeypatch,
):
  qkv, n = _draw(), T // BLOCK
  order = np.array([2, 0, 1, 5, 3, 4])
  shares = jax.nn.softmax(
    jax.random.normal(jax.random.key(3), (1, 1, n, n)), axis=-1
  )

  def with_shares(shares, k, v):
    monkeypatch.setattr(
      "jaxattn._src.sinkhorn_sorting.sinkhorn_balance",
      lambda logits, **options: jnp.broadcast_to(shares, logits.shape),
    )
    found = jaxattn.sinkhorn(max_length=T, block=BLOCK, cut=3)
    return found.apply(_params(found), (), qkv[0], k, v)[0]

  def moved(x):
    return x.reshape(B, n, BLOCK, N, -1)[:, order].reshape(x.shape)

  want = with_shares(shares, *qkv[1:])
  got = with_shares(shares[..., order], *map(moved, qkv[1:]))
  assert_close(got, want)


def test_one_block_is_full_attention():
  method = jaxattn.sinkhorn(max_length=T, block=T)
  qkv = _draw()
  for mask in (jaxattn.FULL, jaxattn.CAUSAL):
    got = _apply(method, _params(method), qkv, mask)
    assert_close(got, jaxattn.dense_attention(*qkv, mask=mask))


def test_values_are_sorted_and_not_keys():
  """With keys of zero a row is the mean of its values, sorted as they are."""
  params, (q, k, v) = _params(_METHOD), _draw()
  zero = jnp.zeros_like(k)
  shares = _shares(_METHOD, params, q, zero, False)
  blocks = np.asarray(v).reshape(B, T // BLOCK, BLOCK, N, V)
  moved = np.einsum("bij,bjtkv->bitkv", shares[:, 0], blocks)
  mean = (blocks.mean(2) + moved.mean(2)) / 2
  want = np.repeat(mean, BLOCK, axis=1)
  assert_close(_apply(_METHOD, params, (q, zero, v)), want)


def test_cut_attends_to_the_first_sorted_blocks_only():
  method = jaxattn.sinkhorn(max_length=T, block=BLOCK, cut=2)
  params, (q, k, v) = _params(method), _draw()
  shares = _shares(method, params, q, k, False)[:, 0, :2]

  def moved(x):
    blocks = np.asarray(x).reshape(B, T // BLOCK, BLOCK, N, -1)
    out = np.einsum("bij,bjtkh->bitkh", shares, blocks)
    return jnp.asarray(out.reshape(B, 2 * BLOCK, N, -1), jnp.float32)

  want = jaxattn.dense_attention(q, moved(k), moved(v))
  assert_close(_apply(method, params, (q, k, v)), want, 2e-5)
  with pytest.raises(NotImplementedError, match="causal"):
    _apply(method, params, (q, k, v), jaxattn.CAUSAL)


def test_mixture_is_the_mean_with_full_attention():
  mixture = dataclasses.replace(_METHOD, mixture=True)
  params, qkv = _params(_METHOD), _draw()
  for mask in (jaxattn.FULL, jaxattn.CAUSAL):
    own = _apply(_METHOD, params, qkv, mask)
    full = jaxattn.dense_attention(*qkv, mask=mask)
    assert_close(_apply(mixture, params, qkv, mask), 0.5 * (own + full))


def test_noise_is_for_training():
  """In evaluation the same each time, with an rng too."""
  params, qkv = _params(_METHOD), _draw()
  run = functools.partial(_apply, _METHOD, params, qkv)
  one, two = jax.random.key(1), jax.random.key(2)
  plain = run()
  assert_close(run(rng=one), plain, 0)
  assert_close(run(train=True), plain, 0)
  noisy = [run(rng=r, train=True) for r in (one, two)]
  assert np.abs(noisy[0] - noisy[1]).max() > 1e-3
  quiet = dataclasses.replace(_METHOD, noise=False)
  assert_close(_apply(quiet, params, qkv, rng=one, train=True), plain, 0)


def test_the_first_block_is_local_and_nothing_leaks():
  """Through tokens, sums or balancing: by gradient, and by loud changes."""
  params, qkv = _params(_METHOD), _draw()
  run = functools.partial(_apply, _METHOD, params, mask=jaxattn.CAUSAL)
  out = run(qkv)
  local = jaxattn.dense_attention(*qkv, mask=jaxattn.CAUSAL)
  assert_close(out[:, :BLOCK], local[:, :BLOCK])
  for t in (0, 5, 8, 14):
    slopes = jax.grad(lambda x, t=t: jnp.sum(run(x)[:, t] ** 2))(qkv)
    assert_zero(*(g[:, t + 1 :] for g in slopes))
    late = [
      x.at[:, t + 1 :].set(100 * y[:, t + 1 :])
      for x, y in zip(qkv, _draw(7), strict=True)
    ]
    assert_close(run(late)[:, : t + 1], out[:, : t + 1], 1e-6)


def test_decoding_from_a_cache_shorter_than_the_method():
  params, qkv = _params(_METHOD), _draw()
  want = _apply(_METHOD, params, qkv, jaxattn.CAUSAL)[:, :10]
  cache = _METHOD.init_cache(
    params, (), batch_shape=(B,), max_length=10, shapes=_SHAPES
  )
  for start, stop in ((0, 3), (3, 4), (4, 5), (5, 10)):
    part = [x[:, start:stop] for x in qkv]
    out, cache = _METHOD.extend(params, (), cache, *part)
    assert_close(out, want[:, start:stop], 2e-5)


def test_wrong_options_are_named():
  for options, word in (
    (dict(block=0), "block"),
    (dict(iterations=-1), "iterations"),
    (dict(temperature=0), "temperature"),
    (dict(networks="other"), "networks"),
    (dict(cut=0), "cut"),
    (dict(cut=1, mixture=True), "mixture"),
    (dict(hidden=0), "hidden"),
  ):
    with pytest.raises(ValueError, match=word):
      jaxattn.sinkhorn(**{"max_length": 8, **options})
  params = _params(_METHOD)
  with pytest.raises(ValueError, match="max_length 24"):
    _METHOD.apply(params, (), *_draw(length=25))
  with pytest.raises(ValueError, match="at most 24"):
    _METHOD.init_cache(
      params, (), batch_shape=(1,), max_length=25, shapes=_SHAPES
    )
  with pytest.raises(NotImplementedError, match="segment"):
    ids = jnp.zeros((B, T), jnp.int32)
    _METHOD.apply(params, (), *_draw(), mask=jaxattn.packed(ids))
