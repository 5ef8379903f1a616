"""Attention inside listed clusters against a naive oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn._src.engines import gathered
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

B, T, S, N, K, H, V, C = 2, 19, 23, 4, 2, 8, 6, 3


def _draw(seed=0, dtype=jnp.float32):
  rngs = jax.random.split(jax.random.key(seed), 3)
  tails = ((T, N, H), (S, K, H), (S, K, V))
  return tuple(
    jax.random.normal(rng, (B, *tail)).astype(dtype)
    for rng, tail in zip(rngs, tails, strict=True)
  )


def _index(length, slots, seed):
  """Members without repetition inside a cluster, some slots empty."""
  rng = np.random.default_rng(seed)
  found = np.stack(
    [rng.permutation(length)[:slots] for _ in range(B * N * C)]
  ).reshape(B, N, C, slots)
  return jnp.asarray(np.where(rng.random(found.shape) < 0.2, -1, found))


def _mask(causal):
  rng = np.random.default_rng(2)
  fields = dict(
    key_valid=rng.random((B, S)) < 0.8,
    query_valid=rng.random((B, T)) < 0.8,
    query_segment_ids=rng.integers(0, 2, (B, T)),
    key_segment_ids=rng.integers(0, 2, (1, S)),
  )
  if causal:
    fields["query_positions"] = rng.permutation(T)[None]
  fields = {k: jnp.asarray(v) for k, v in fields.items()}
  return jaxattn.Mask(causal=causal, **fields)


def _naive(qkv, query_index, key_index, allowed):
  """`[B, N, C, w, V]` and lse, by gathering everything."""
  query, key, value = (
    jnp.repeat(x, N // x.shape[2], axis=2).swapaxes(1, 2) for x in qkv
  )
  pick = jax.vmap(jax.vmap(lambda x, at: x[at]))
  q, k, v = (
    pick(query, query_index),
    pick(key, key_index),
    pick(value, key_index),
  )
  scores = jnp.einsum("bncwh,bncuh->bncwu", q, k, precision="highest")
  scores = scores * jnp.float32(H**-0.5)
  lookup = jax.vmap(jax.vmap(lambda a, i, j: a[i[:, :, None], j[:, None]]))
  keep = lookup(allowed, query_index, key_index)
  keep = keep & (query_index >= 0)[..., None] & (key_index >= 0)[..., None, :]
  scores = jnp.where(keep, scores, -1e30)
  lse = jax.nn.logsumexp(scores, axis=-1)
  weights = jnp.where(keep, jnp.exp(scores - lse[..., None]), 0.0)
  out = jnp.einsum("bncwu,bncuv->bncwv", weights, v, precision="highest")
  return out, jnp.where(keep.any(-1), lse, 0.0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("budget", [1 << 20, 200])
def test_equals_the_oracle(causal, budget, monkeypatch):
  """In value, lse and gradient, under a mask with every field set."""
  monkeypatch.setattr("jaxattn._src.dispatch.gathered_budget", lambda: budget)
  qkv, mask = _draw(), _mask(causal)
  lists = _index(T, 7, 3), _index(S, 5, 4)
  allowed = jnp.broadcast_to(mask.dense(T, S), (B, N, T, S))
  rngs = jax.random.split(jax.random.key(5))
  ct = jax.random.normal(rngs[0], (B, N, C, 7, V))
  ct = ct, jax.random.normal(rngs[1], ct.shape[:-1])

  def pull(run):
    out, vjp = jax.vjp(run, *qkv)
    return out, vjp(ct)

  def attend(*qkv):
    found = gathered.gathered_attention(*qkv, *lists, mask=mask)
    return found.out, jnp.where(jnp.isneginf(found.lse), 0.0, found.lse)

  got = jax.jit(lambda: pull(attend))()
  want = jax.jit(lambda: pull(lambda *x: _naive(x, *lists, allowed)))()
  assert_close(got, want)
  empty = np.asarray(lists[0]) < 0
  assert_zero(got[0][0][empty])
  assert np.abs(got[0][0]).max() > 1e-2


def test_one_cluster_is_dense():
  qkv = _draw()
  everyone = [
    jnp.broadcast_to(jnp.arange(n)[None, None, None], (B, N, 1, n))
    for n in (T, S)
  ]
  found = gathered.gathered_attention(*qkv, *everyone)
  want = jaxattn.dense_attention(*qkv, return_lse=True)
  assert_close(found.out[:, :, 0].swapaxes(1, 2), want.out)
  assert_close(found.lse[:, :, 0].swapaxes(1, 2), want.lse)


def test_a_token_does_not_see_itself_where_it_must_not():
  qkv = [x[:, :T] for x in _draw()]
  index = _index(T, 6, 7)
  run = functools.partial(
    gathered.gathered_attention, *qkv, index, index, exclude_self=True
  )
  allowed = jnp.broadcast_to(~jnp.eye(T, dtype=bool), (B, N, T, T))
  want, _ = _naive(qkv, index, index, allowed)
  assert_close(run().out, want)


def test_bfloat16_and_batch_axes():
  qkv = _draw(dtype=jnp.bfloat16)
  lists = _index(T, 7, 3), _index(S, 5, 4)
  got = jax.grad(
    lambda q: gathered.gathered_attention(q, *qkv[1:], *lists).out.sum()
  )(qkv[0])
  assert got.dtype == jnp.bfloat16
  rounded = [x.astype(jnp.float32) for x in qkv]
  want = gathered.gathered_attention(*rounded, *lists)
  low = gathered.gathered_attention(*qkv, *lists)
  assert_close(low.out, want.out, 2e-2)
  many = jax.vmap(gathered.gathered_attention)(*rounded, *lists)
  assert_close(many.out, want.out, 1e-6)
  axes = [x[:, None] for x in (*rounded, *lists)]
  assert_close(gathered.gathered_attention(*axes).out[:, 0], want.out, 1e-6)


def test_wrong_arguments_are_named():
  qkv = _draw()
  query_index, key_index = _index(T, 7, 3), _index(S, 5, 4)
  run = functools.partial(gathered.gathered_attention, *qkv)
  with pytest.raises(ValueError, match="query_index must be"):
    run(query_index[0], key_index)
  with pytest.raises(ValueError, match="same clusters"):
    run(query_index, key_index[:, :, :2])
  with pytest.raises(ValueError, match="integers"):
    run(query_index, key_index.astype(jnp.float32))
