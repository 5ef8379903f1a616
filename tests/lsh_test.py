"""Hashing, and LSH attention against softmax over the union of its edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn._src import lsh
from jaxattn._src.engines import bucketed
from tests import bucketed_cases as naive
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

B, T, N, K, H, V = 2, 38, 4, 2, 8, 6


def _draw(length=T, seed=0):
  rngs = jax.random.split(jax.random.key(seed), 2)
  return (
    jax.random.normal(rngs[0], (B, length, N, H)),
    jax.random.normal(rngs[1], (B, length, K, V)),
  )


def _rotations(rounds=2, factors=(6,), seed=1, heads=N):
  return lsh.draw_rotations(
    jax.random.key(seed),
    rounds=rounds,
    num_heads=heads,
    head_dim=H,
    factors=factors,
  )


def test_default_numbers_of_buckets():
  """Twice the chunks, even factors, and few columns to hash with."""
  chunk = 64
  for length in (10, 64, 1000, 4096, 2**20):
    factors = lsh.bucket_factors(None, length=length, chunk=chunk)
    wanted = 2 * -(-length // chunk)
    assert all(f % 2 == 0 for f in factors)
    assert wanted <= np.prod(factors) < 2 * wanted + 2 * factors[0]
    assert sum(factors) <= max(128, 4 * np.sqrt(wanted))
  for bad in (3, 0, (4, 5), ()):
    with pytest.raises(ValueError, match="even"):
      lsh.bucket_factors(bad, length=8, chunk=8)


@pytest.mark.parametrize("factors", [(6,), (4, 6), (2, 2, 4)])
def test_hash_is_the_argmax_of_both_signs(factors):
  """In mixed radix, scale-free, without gradient, and reaching all buckets."""
  x, _ = _draw(length=600)
  rotations = _rotations(3, factors)
  got = lsh.hash_buckets(x, rotations)
  want, radix = 0, 1
  for rotation, factor in zip(rotations, factors, strict=True):
    turned = np.einsum("btnh,rnhf->rbtnf", x, rotation)
    both = np.concatenate([turned, -turned], axis=-1)
    want = want + radix * both.argmax(-1)
    radix *= factor
  np.testing.assert_array_equal(got, want)
  scale = jnp.exp(3 * jax.random.normal(jax.random.key(3), (B, 600, 1, 1)))
  np.testing.assert_array_equal(lsh.hash_buckets(x * scale, rotations), got)
  assert len(np.unique(got)) == radix
  assert got.dtype == jnp.int32
  grad = jax.grad(lambda x: jnp.sum(x * lsh.hash_buckets(x, rotations)[0][
      ..., None].astype(jnp.float32)))(x)  # fmt: skip
  assert_close(grad, jnp.broadcast_to(got[0][..., None], x.shape))


def test_near_vectors_collide_more_often():
  """The share of equal buckets falls with the angle."""
  rng = np.random.default_rng(0)
  a, noise = rng.normal(size=(2, 1, 4000, 1, H))
  rotations = _rotations(1, (16,), heads=1)
  shares = []
  for angle in (0.1, 0.4, 0.8, 1.6):
    near = np.cos(angle) * a + np.sin(angle) * noise
    first, second = (
      lsh.hash_buckets(jnp.asarray(v, jnp.float32), rotations)
      for v in (a, near)
    )
    shares.append(float(np.mean(first == second)))
  assert shares == sorted(shares, reverse=True)
  assert shares[0] > 0.6 and shares[-1] < 0.15


def test_rotations_are_checked():
  x, _ = _draw()
  with pytest.raises(ValueError, match="rotations must be"):
    lsh.hash_buckets(x, _rotations(heads=3))
  with pytest.raises(ValueError, match="at least one"):
    lsh.hash_buckets(x, ())


def _reference(query_key, value, allowed, there):
  """Softmax over edges between other tokens, or the own value."""
  key = query_key / jnp.linalg.norm(query_key, axis=-1, keepdims=True)
  wide = jnp.repeat(value, N // K, axis=2)
  out, lse = naive.attend(query_key, key, wide, allowed, scale=1.0)
  alone = jnp.isneginf(lse) & there[..., None]
  return jnp.where(alone[..., None], wide, out)


_CASES = {
  "causal": (dict(chunk=6), True, "full"),
  "bidirectional": (dict(chunk=6), False, "full"),
  "within": (dict(chunk=6, within=True), True, "holes"),
  "window": (dict(chunk=5, window=5), True, "segments"),
  "left": (dict(chunk=6), True, "left"),
  "wide": (dict(chunk=4, before=2, after=2), False, "segments"),
}


@functools.partial(jax.jit, static_argnames=("name",))
def _pull(name, query_key, value, buckets, mask, allowed, there):
  options, *_ = _CASES[name]

  def attend(query_key, value):
    return lsh.lsh_attention(query_key, value, buckets, mask=mask, **options)

  def expected(query_key, value):
    return _reference(query_key, value, allowed, there)

  ct = jax.random.normal(jax.random.key(7), (B, T, N, V))
  found = []
  for run in (attend, expected):
    out, vjp = jax.vjp(run, query_key, value)
    found.append((out, vjp(ct)))
  return found


@pytest.mark.parametrize("name", list(_CASES))
def test_equals_softmax_over_the_union_of_rounds(name):
  """In value and gradient; rows without another key give their own value."""
  options, causal, kind = _CASES[name]
  query_key, value = _draw()
  index = np.arange(T)
  there = np.ones((B, T), bool)
  fields = {}
  if kind == "left":
    there[1] = index >= 9
  elif kind == "holes":
    there = np.random.default_rng(4).random((B, T)) < 0.7
  elif kind == "segments":
    ids = jnp.asarray(np.sort(np.random.default_rng(5).integers(0, 3, (B, T))))
    fields = dict(query_segment_ids=ids, key_segment_ids=ids)
  if kind in ("left", "holes"):
    fields = dict(key_valid=jnp.asarray(there))
  mask = jaxattn.Mask(causal=causal, **fields)
  buckets = lsh.hash_buckets(query_key, _rotations(3))
  shape = dict(options)
  shape.setdefault("after", 0 if causal else 1)
  allowed = naive.edges(buckets, bucketed.Reach(**shape), mask, True)
  there = jnp.asarray(there)
  got, want = _pull(
    name, query_key, value, buckets, mask, jnp.asarray(allowed), there
  )
  assert_close(got, want)
  assert_zero(got[0][~np.asarray(there)])
  if causal and kind == "full":
    assert_close(got[0][:, 0], jnp.repeat(value, N // K, axis=2)[:, 0])


def test_one_chunk_is_dense_whatever_the_hash():
  """As are two chunks of one bucket, if each looks back."""
  query_key, value = _draw(length=16)
  buckets = lsh.hash_buckets(query_key, _rotations(2))
  run = functools.partial(
    lsh.lsh_attention, query_key, value, mask=jaxattn.CAUSAL
  )
  allowed = jnp.asarray(np.tril(np.ones((B, N, 16, 16), bool), -1))
  want = _reference(query_key, value, allowed, jnp.ones((B, 16), bool))
  for given in (buckets, (buckets * 5) % 4, buckets[:1]):
    assert_close(run(given, chunk=16), want)
  assert_close(run(jnp.zeros_like(buckets), chunk=8), want)
  # Half a sequence is not all of it: the test could fail.
  assert np.abs(run(buckets, chunk=4) - want).max() > 1e-2


def test_padding_on_any_side_changes_nothing():
  """Nor does what the padding holds."""
  query_key, value = _draw()
  rotations = _rotations(2)
  run = functools.partial(lsh.lsh_attention, chunk=6)
  want = run(
    query_key, value, lsh.hash_buckets(query_key, rotations),
    mask=jaxattn.CAUSAL,
  )  # fmt: skip
  for left, right in ((0, 7), (7, 0), (1, 6)):
    widths = ((0, 0), (left, right), (0, 0), (0, 0))
    wide = [jnp.pad(x, widths, constant_values=9.0) for x in (query_key, value)]
    index = np.arange(T + 7)
    valid = jnp.asarray((index >= left) & (index < left + T))[None]
    mask = jaxattn.Mask(causal=True, key_valid=valid)
    got = run(*wide, lsh.hash_buckets(wide[0], rotations), mask=mask)
    assert_close(got[:, left : left + T], want, 1e-6)


def test_more_rounds_come_nearer_to_dense():
  """The mean error over seeds falls with the number of rounds."""
  query_key, value = _draw(length=96, seed=5)
  query_key = 2.0 * query_key
  run = functools.partial(
    lsh.lsh_attention, query_key, value, mask=jaxattn.CAUSAL
  )
  dense = run(jnp.zeros((1, B, 96, N), jnp.int32), chunk=96)
  errors = []
  attend = jax.jit(functools.partial(run, chunk=8))
  for rounds in (1, 2, 4, 8):
    seen = [
      attend(lsh.hash_buckets(query_key, _rotations(rounds, (12,), seed=s)))
      for s in range(4)
    ]
    errors.append(float(np.mean([np.abs(x - dense).mean() for x in seen])))
  assert errors == sorted(errors, reverse=True)
  assert errors[-1] < errors[0] / 2


def test_zero_vectors_are_finite():
  query_key, value = _draw(length=12)
  query_key = query_key.at[:, 5].set(0.0)
  grads = jax.grad(
    lambda x: lsh.lsh_attention(
      x, value, lsh.hash_buckets(x, _rotations()), chunk=4
    ).sum()
  )(query_key)
  assert np.all(np.isfinite(grads))
  unit = lsh.unit_vectors(query_key)
  assert_zero(unit[:, 5])
  norms = np.delete(np.linalg.norm(unit, axis=-1), 5, axis=1)
  assert_close(norms, np.ones_like(norms), 1e-6)


def test_lengths_of_any_size_have_unit_keys():
  """Where squares leave the range of float32, in value and in gradient."""
  query_key, value = _draw(length=12)
  rotations = _rotations()

  def loss(x):
    buckets = lsh.hash_buckets(x, rotations)
    return lsh.lsh_attention(x, value, buckets, chunk=4).sum()

  slope = jax.jit(jax.grad(loss))
  plain = lsh.unit_vectors(query_key)[:, 5]
  for size in (1e-38, 1e-25, 1e-16, 1e-8, 1e18, 1e25):
    x = query_key.at[:, 5].multiply(size)
    assert np.all(np.isfinite(slope(x))), size
    if size > 1e-30:
      assert_close(lsh.unit_vectors(x)[:, 5], plain, 1e-6)


def test_rounds_that_are_the_same_count_once():
  """A key that every round reaches is not met more often than others."""
  query_key, value = _draw()
  buckets = lsh.hash_buckets(query_key, _rotations(2))
  run = functools.partial(
    lsh.lsh_attention, query_key, value, chunk=6, mask=jaxattn.CAUSAL
  )
  two = run(buckets)
  assert_close(run(buckets[jnp.array([0, 0, 0])]), run(buckets[:1]), 1e-6)
  assert_close(run(buckets[jnp.array([0, 1, 1, 0])]), two, 1e-6)
  assert np.abs(two - run(buckets[:1])).max() > 1e-2


def test_the_own_value_has_its_gradient():
  """The first token of a causal row has nothing else; padding has nothing."""
  query_key, value = _draw(length=12)
  buckets = lsh.hash_buckets(query_key, _rotations())
  there = jnp.arange(12)[None] >= 3
  mask = jaxattn.Mask(causal=True, key_valid=there)

  def first(query_key, value, row):
    out = lsh.lsh_attention(query_key, value, buckets, chunk=4, mask=mask)
    return jnp.sum(out[:, row])

  slope = jax.grad(first, argnums=(0, 1))
  of_query_key, of_value = slope(query_key, value, 3)
  assert_zero(of_query_key)
  # Each value serves two query heads.
  want = jnp.zeros_like(value).at[:, 3].set(2.0)
  assert_close(of_value, want, 0)
  assert_zero(*slope(query_key, value, 2))
