"""Heads split among methods: each part is what its method alone would be."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxattn
from tests import stateful_method
from tests.method_cases import assert_close

B, T, H = 2, 20, 8
_LOCAL = jaxattn.sliding_window(left=3)
_SHAPES = jaxattn.AttentionShapes(num_heads=6, num_kv_heads=3, head_dim=H)


def _draw():
  rngs = jax.random.split(jax.random.key(0), 3)
  return [
    jax.random.normal(r, (B, T, heads, H))
    for r, heads in zip(rngs, (6, 3, 3), strict=True)
  ]


def test_each_part_has_its_heads():
  reformer = jaxattn.reformer(chunk=4, num_buckets=6)
  method = jaxattn.split_heads((reformer, 2), (_LOCAL, 4))
  params, state = method.init(jax.random.key(1), _SHAPES)
  q, k, v = _draw()
  run = functools.partial(method.apply, params, state, q, k, v)
  got, moved = run(mask=jaxattn.CAUSAL, train=True)
  first, new = reformer.apply(
    (), state[0], q[:, :, :2], k[:, :, :1], v[:, :, :1],
    mask=jaxattn.CAUSAL, train=True,
  )  # fmt: skip
  second, _ = _LOCAL.apply(
    (), (), q[:, :, 2:], k[:, :, 1:], v[:, :, 1:], mask=jaxattn.CAUSAL
  )
  assert_close(got, jnp.concatenate([first, second], axis=2), 1e-6)
  assert_close(moved[0], new, 0)
  chosen = method.select(params, state, q, k, train=True)
  assert chosen[1] is None
  given, _ = run(mask=jaxattn.CAUSAL, train=True, selection=chosen)
  assert_close(given, got, 1e-6)
  assert not method.shares_query_key  # The window needs keys.
  assert jaxattn.split_heads((reformer, 6)).shares_query_key


def test_it_declares_what_its_parts_do():
  sinkhorn = jaxattn.sinkhorn(max_length=T, block=5)
  method = jaxattn.split_heads((_LOCAL, 2), (sinkhorn, 2))
  assert method.honours == sinkhorn.honours
  assert method.causality == "strict"
  assert method.time_exponent == 2
  routing = jaxattn.routing(num_clusters=2)
  assert jaxattn.split_heads((_LOCAL, 1), (routing, 1)).causality == "values"
  cut = jaxattn.sinkhorn(max_length=T, block=5, cut=1)
  assert jaxattn.split_heads((_LOCAL, 1), (cut, 1)).causality == "none"
  with pytest.raises(NotImplementedError, match="honour"):
    q, k, v = _draw()
    ids = jnp.zeros((B, T), jnp.int32)
    six = jaxattn.split_heads((_LOCAL, 2), (sinkhorn, 4))
    params, state = six.init(jax.random.key(1), _SHAPES)
    six.apply(params, state, q, k, v, mask=jaxattn.packed(ids))


@pytest.mark.slow
def test_parts_keep_caches_of_their_own():
  method = jaxattn.split_heads((_LOCAL, 4), (jaxattn.dense(), 2))
  params, state = method.init(jax.random.key(1), _SHAPES)
  qkv = _draw()
  want, _ = method.apply(params, state, *qkv, mask=jaxattn.CAUSAL)
  cache = method.init_cache(
    params, state, batch_shape=(B,), max_length=T, shapes=_SHAPES
  )
  for start, stop in ((0, 7), (7, 8), (8, T)):
    part = [x[:, start:stop] for x in qkv]
    out, cache = method.extend(params, state, cache, *part)
    assert_close(out, want[:, start:stop])
  assert cache["length"].tolist() == [T] * B
  assert cache["parts"][0]["key"].shape == (B, 4, 2, H)


def test_random_numbers_reach_the_parts():
  method = jaxattn.split_heads((stateful_method.Stateful(), 6))
  params, state = method.init(jax.random.key(1), _SHAPES)
  run = functools.partial(method.apply, params, state, *_draw())
  one, two = (run(rng=jax.random.key(s))[0] for s in (0, 1))
  assert jnp.abs(one - two).max() > 0.1


def test_wrong_parts_are_named():
  with pytest.raises(ValueError, match="at least one"):
    jaxattn.split_heads()
  with pytest.raises(ValueError, match="positive"):
    jaxattn.split_heads((_LOCAL, 0))
  shared = jaxattn.linformer(max_length=8, k=2, sharing="layerwise")
  with pytest.raises(ValueError, match="shares"):
    jaxattn.split_heads((shared, 2))
  q, k, v = _draw()
  for counts, word in (((2, 2), "layer"), ((1, 5), "multiples of 2")):
    method = jaxattn.split_heads(*((_LOCAL, n) for n in counts))
    with pytest.raises(ValueError, match=word):
      method.apply(((), ()), ((), ()), q, k, v)
