"""Ring and relay against dense attention over the star graph, and limits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxattn
from jaxattn._src import star
from tests import jaxpr_walker

_BATCH, _HEADS, _KV, _DEPTH, _VALUE = 3, 4, 2, 8, 5
_RINGS = ("cyclic", "open", "ghost", "none")


def _draw(seed, length):
  """Query of satellites and relay; keys and values of h, e and s."""
  sizes = {"query": (length, _HEADS, _DEPTH), "relay": (1, _HEADS, _DEPTH)}
  for name, count in (("h", length), ("e", length), ("s", 1)):
    sizes[f"{name}_key"] = (count, _KV, _DEPTH)
    sizes[f"{name}_value"] = (count, _KV, _VALUE)
  rngs = jax.random.split(jax.random.key(seed), len(sizes))
  return {
    name: jax.random.normal(rng, (_BATCH, *size))
    for rng, (name, size) in zip(rngs, sizes.items(), strict=True)
  }


def _valid(kind, length):
  """Which tokens are real: all, a prefix, or any; the last row has none."""
  if kind == "all":
    return None
  if kind == "prefix":
    counts = np.array([length, (length + 1) // 2, 0])
    return np.arange(length) < counts[:, None]
  valid = np.random.default_rng(length).random((_BATCH, length)) < 0.6
  valid[1, ::2] = True
  valid[2] = False
  return valid


def _mask(valid):
  if valid is None:
    return jaxattn.FULL
  return jaxattn.Mask(key_valid=jnp.asarray(valid))


@functools.partial(jax.jit, static_argnames=("ring", "slots"))
def _ring(arrays, mask, ring="cyclic", slots="es"):
  names = {"e": "embedding", "s": "relay"}
  extra = {
    f"{names[slot]}_{kind}": arrays[f"{slot}_{kind}"]
    for slot in slots
    for kind in ("key", "value")
  }
  return star.star_ring_attention(
    arrays["query"],
    arrays["h_key"],
    arrays["h_value"],
    **extra,
    mask=mask,
    ring=ring,
  )


@jax.jit
def _relay(arrays, mask):
  return star.star_relay_attention(
    arrays["relay"],
    arrays["h_key"],
    arrays["h_value"],
    relay_key=arrays["s_key"],
    relay_value=arrays["s_value"],
    mask=mask,
  )


def _edges(valid, ring, slots, length):
  """How often each of `[h, e, s, ghost]` is a key: `[B, T, 2 T + 2]`."""
  counts = np.zeros((_BATCH, length, 2 * length + 2), np.float32)
  for row in range(_BATCH):
    real = range(length) if valid is None else np.flatnonzero(valid[row])
    real = [int(i) for i in real]
    for place, i in enumerate(real):
      counts[row, i, i] += 1
      for near in (place - 1, place + 1) if ring != "none" else ():
        if 0 <= near < len(real) or ring == "cyclic":
          counts[row, i, real[near % len(real)]] += 1
        elif ring == "ghost":
          counts[row, i, -1] += 1
      counts[row, i, length + i] += "e" in slots
      counts[row, i, 2 * length] += "s" in slots
  return jnp.asarray(counts)


@jax.jit
def _dense(query, keys, values, counts):
  """Softmax over all keys, each weighed by how often it counts."""
  keys, values = (jnp.repeat(x, _HEADS // _KV, axis=2) for x in (keys, values))
  scores = jnp.einsum("btnh,bsnh->bnts", query, keys, precision="highest")
  scores = scores / jnp.sqrt(jnp.float32(_DEPTH))
  weights = jnp.exp(scores) * counts[:, None]
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights / jnp.where(total > 0, total, 1)
  return jnp.einsum("bnts,bsnv->btnv", weights, values, precision="highest")


def _oracle(arrays, counts):
  zeros = [
    jnp.zeros((_BATCH, 1, _KV, size), jnp.float32) for size in (_DEPTH, _VALUE)
  ]
  keys, values = (
    jnp.concatenate([*(arrays[f"{n}_{kind}"] for n in "hes"), zero], axis=1)
    for kind, zero in zip(("key", "value"), zeros, strict=True)
  )
  return _dense(arrays["query"], keys, values, counts)


def _value_and_grads(fn, arrays, seed=9):
  out, vjp = jax.vjp(fn, arrays)
  cotangent = jax.random.normal(jax.random.key(seed), out.shape)
  return out, vjp(cotangent)[0]


# Sums of at most five terms of size one: a few units of float32 rounding.
_close = functools.partial(chex.assert_trees_all_close, atol=1e-5, rtol=1e-5)


class RingTest(parameterized.TestCase):
  @parameterized.product(length=(1, 2, 7, 17, 31), kind=("all", "any"))
  def test_equals_dense_star(self, length, kind):
    """In value and gradient; the sizes are no multiples of anything."""
    arrays, valid = _draw(0, length), _valid(kind, length)
    counts = _edges(valid, "cyclic", "es", length)
    got = _value_and_grads(lambda a: _ring(a, _mask(valid)), arrays)
    want = _value_and_grads(lambda a: _oracle(a, counts), arrays)
    _close(got, want)

  @parameterized.product(
    ring=_RINGS, slots=("", "s", "es"), kind=("prefix", "any")
  )
  def test_every_form_equals_dense_star(self, ring, slots, kind):
    length = 5
    arrays, valid = _draw(1, length), _valid(kind, length)
    got = _ring(arrays, _mask(valid), ring=ring, slots=slots)
    _close(got, _oracle(arrays, _edges(valid, ring, slots, length)))

  @parameterized.parameters("open", "ghost")
  def test_gradients_of_ends(self, ring):
    arrays, valid = _draw(2, 7), _valid("any", 7)
    counts = _edges(valid, ring, "es", 7)
    got = _value_and_grads(lambda a: _ring(a, _mask(valid), ring=ring), arrays)
    want = _value_and_grads(lambda a: _oracle(a, counts), arrays)
    _close(got, want)

  def test_one_token_stands_three_times(self):
    """Five slots, of which `h` has three, all with equal scores."""
    arrays = _draw(0, 1)
    for name in ("h_key", "e_key", "s_key"):
      arrays[name] = jnp.zeros_like(arrays[name])
    mean = (3 * arrays["h_value"] + arrays["e_value"] + arrays["s_value"]) / 5.0
    _close(_ring(arrays, jaxattn.FULL), jnp.repeat(mean, 2, axis=2))

  def test_two_tokens_have_the_same_neighbour_twice(self):
    arrays = _draw(0, 2)
    arrays["h_key"] = jnp.zeros_like(arrays["h_key"])
    h = arrays["h_value"]
    mean = (h + 2 * h[:, ::-1]) / 3.0
    got = _ring(arrays, jaxattn.FULL, slots="")
    _close(got, jnp.repeat(mean, 2, axis=2))

  def test_equal_keys_of_token_and_embedding_count_twice(self):
    """The first layer, where both are the embedding."""
    arrays = _draw(3, 6)
    arrays["e_key"], arrays["e_value"] = arrays["h_key"], arrays["h_value"]
    counts = np.array(_edges(None, "none", "s", 6))
    counts[..., :6] *= 2
    got = _ring(arrays, jaxattn.FULL, ring="none")
    _close(got, _oracle(arrays, jnp.asarray(counts)))

  @parameterized.product(ring=_RINGS)
  def test_rotation_turns_the_result(self, ring):
    """A cycle has no first token; an open ring has, and none has no order."""
    arrays = _draw(4, 9)
    turned = {
      name: jnp.roll(x, 2, axis=1) if x.shape[1] > 1 else x
      for name, x in arrays.items()
    }
    want = jnp.roll(_ring(arrays, jaxattn.FULL, ring=ring), 2, axis=1)
    got = _ring(turned, jaxattn.FULL, ring=ring)
    same = bool(jnp.allclose(got, want, atol=1e-6))
    self.assertEqual(same, ring in ("cyclic", "none"))

  def test_without_ring_any_order_will_do(self):
    arrays = _draw(4, 9)
    order = np.random.default_rng(0).permutation(9)
    moved = {
      name: x[:, order] if x.shape[1] > 1 else x for name, x in arrays.items()
    }
    got = _ring(moved, jaxattn.FULL, ring="none")
    _close(got, _ring(arrays, jaxattn.FULL, ring="none")[:, order])

  def test_sees_neighbours_and_no_others(self):
    """By a large change of one token's key and value."""
    length, moved = 9, 0
    arrays = _draw(5, length)
    loud = dict(arrays)
    for name in ("h_key", "h_value"):
      loud[name] = arrays[name].at[:, moved].add(50.0)
    before, after = (_ring(a, jaxattn.FULL) for a in (arrays, loud))
    changed = np.any(np.asarray(before != after), axis=(0, 2, 3))
    np.testing.assert_array_equal(np.flatnonzero(changed), [0, 1, 8])

  @parameterized.product(ring=_RINGS)
  def test_padding_has_no_influence(self, ring):
    """Padding anywhere equals the real tokens alone; its rows are zero."""
    valid = np.array([0, 1, 1, 0, 0, 1, 0], bool)
    arrays = _draw(6, 7)
    loud = {
      name: jnp.where(valid[:, None, None], x, 99.0) if x.shape[1] > 1 else x
      for name, x in arrays.items()
    }
    mask = jaxattn.Mask(key_valid=jnp.tile(valid[None], (_BATCH, 1)))
    short = {
      name: x[:, valid] if x.shape[1] > 1 else x for name, x in arrays.items()
    }
    got, grads = _value_and_grads(lambda a: _ring(a, mask, ring=ring), loud)
    _close(got[:, valid], _ring(short, jaxattn.FULL, ring=ring))
    self.assertFalse(np.any(got[:, ~valid]))
    for name, grad in grads.items():
      self.assertTrue(bool(jnp.all(jnp.isfinite(grad))), name)
      if grad.shape[1] > 1:
        self.assertFalse(np.any(grad[:, ~valid]), name)

  def test_invalid_queries_are_padding_too(self):
    valid = _valid("any", 6)
    mask = jaxattn.Mask(query_valid=jnp.asarray(valid))
    arrays = _draw(7, 6)
    _close(_ring(arrays, mask), _ring(arrays, _mask(valid)))

  @parameterized.product(kind=("all", "any"), ring=_RINGS)
  def test_empty_sequence(self, kind, ring):
    arrays = _draw(0, 0)
    out, grads = _value_and_grads(
      lambda a: _ring(a, _mask(_valid(kind, 0)), ring=ring), arrays
    )
    self.assertEqual(out.shape, (_BATCH, 0, _HEADS, _VALUE))
    chex.assert_tree_all_finite(grads)

  def test_bfloat16(self):
    """One rounding of inputs and of the result: 2e-2 of the largest."""
    arrays = _draw(8, 11)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays)
    got = _ring(low, jaxattn.FULL)
    self.assertEqual(got.dtype, jnp.bfloat16)
    want = _ring(arrays, jaxattn.FULL)
    error = jnp.max(jnp.abs(got.astype(jnp.float32) - want))
    self.assertLess(error, 2e-2 * jnp.max(jnp.abs(want)))

  @parameterized.parameters("all", "any")
  def test_vmap_and_forward_mode(self, kind):
    arrays, mask = _draw(9, 7), _mask(_valid(kind, 7))
    rows = jax.vmap(lambda a, m: _ring(a, m))(arrays, mask)
    _close(rows, _ring(arrays, mask))
    fn = functools.partial(_ring, mask=mask)
    tangent = _draw(10, 7)
    _, forward = jax.jvp(fn, (arrays,), (tangent,))
    out, vjp = jax.vjp(fn, arrays)
    cotangent = jax.random.normal(jax.random.key(3), out.shape)
    (back,) = vjp(cotangent)
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), back, tangent)
    np.testing.assert_allclose(
      sum(jax.tree.leaves(products)), jnp.sum(forward * cotangent), rtol=1e-4
    )

  def test_large_scores_stay_finite(self):
    arrays = _draw(0, 5)
    arrays["query"] = arrays["query"] * 1e4
    out, grads = _value_and_grads(lambda a: _ring(a, jaxattn.FULL), arrays)
    chex.assert_tree_all_finite((out, grads))


class RelayTest(parameterized.TestCase):
  @parameterized.product(length=(0, 1, 7, 17), kind=("all", "prefix", "any"))
  def test_equals_dense(self, length, kind):
    """Over the relay's own key and those of the real satellites."""
    arrays, valid = _draw(1, length), _valid(kind, length)
    counts = np.ones((_BATCH, 1, length + 1), np.float32)
    if valid is not None:
      counts[:, 0, 1:] = valid

    def oracle(a):
      keys, values = (
        jnp.concatenate([a[f"s_{kind}"], a[f"h_{kind}"]], axis=1)
        for kind in ("key", "value")
      )
      return _dense(a["relay"], keys, values, jnp.asarray(counts))

    got = _value_and_grads(lambda a: _relay(a, _mask(valid)), arrays)
    _close(got, _value_and_grads(oracle, arrays))

  def test_empty_sequence_attends_to_itself(self):
    arrays, valid = _draw(2, 4), np.zeros((_BATCH, 4), bool)
    out, grads = _value_and_grads(lambda a: _relay(a, _mask(valid)), arrays)
    _close(out, jnp.repeat(arrays["s_value"], 2, axis=2))
    for name in ("h_key", "h_value"):
      self.assertFalse(np.any(grads[name]))
    chex.assert_tree_all_finite(grads)

  def test_order_does_not_matter(self):
    arrays = _draw(3, 8)
    turned = {
      name: jnp.flip(x, axis=1) if x.shape[1] > 1 else x
      for name, x in arrays.items()
    }
    _close(_relay(turned, jaxattn.FULL), _relay(arrays, jaxattn.FULL))


class ArgumentsTest(parameterized.TestCase):
  @parameterized.parameters(_ring, _relay)
  def test_refuses_other_masks(self, fn):
    arrays = _draw(0, 4)
    ids = jnp.zeros((_BATCH, 4), jnp.int32)
    packed = jaxattn.Mask(query_segment_ids=ids, key_segment_ids=ids)
    for mask, field in ((jaxattn.CAUSAL, "causal"), (packed, "segment_ids")):
      with self.assertRaisesRegex(NotImplementedError, field):
        fn(arrays, mask)

  @parameterized.parameters(
    (dict(ring="round"), "ring must be one of .*'round'"),
    (dict(relay_key=jnp.ones((1, 1, 2, 8))), "relay_value is None"),
    (
      dict(
        embedding_key=jnp.ones((1, 4, 2, 8)),
        embedding_value=jnp.ones((1, 3, 2, 8)),
      ),
      r"embedding_value must have shape \(1, 4, 2, 8\), got \(1, 3, 2, 8\)",
    ),
    (
      dict(mask=jaxattn.Mask(key_valid=jnp.ones((1, 3), bool))),
      r"mask.key_valid must have shape \(1, 4\)",
    ),
  )
  def test_ring_errors(self, options, message):
    x = jnp.ones((1, 4, 2, 8))
    with self.assertRaisesRegex(ValueError, message):
      star.star_ring_attention(x, x, x, **options)

  def test_lengths_must_agree(self):
    x, one = jnp.ones((1, 4, 2, 8)), jnp.ones((1, 1, 2, 8))
    with self.assertRaisesRegex(ValueError, "one length"):
      star.star_ring_attention(x[:, :3], x, x)
    with self.assertRaisesRegex(ValueError, "one relay"):
      star.star_relay_attention(x, x, x, relay_key=one, relay_value=one)
    with self.assertRaisesRegex(ValueError, r"relay_key must have shape"):
      star.star_relay_attention(one, x, x, relay_key=x, relay_value=one)

  def test_no_array_of_length_squared(self):
    """Nor five copies of the keys: the largest has the size of one of them."""
    length, depth = 4096, 64
    x = jax.ShapeDtypeStruct((1, length, 1, depth), jnp.float32)
    one = jax.ShapeDtypeStruct((1, 1, 1, depth), jnp.float32)
    valid = jax.ShapeDtypeStruct((1, length), jnp.bool_)
    arrays = {"query": x, "relay": one}
    for name, like in (("h", x), ("e", x), ("s", one)):
      arrays |= {f"{name}_key": like, f"{name}_value": like}
    for fn in (_ring, _relay):

      def run(arrays, valid, fn=fn):
        mask = jaxattn.Mask(key_valid=valid)
        out, vjp = jax.vjp(lambda a: fn(a, mask), arrays)
        return out, vjp(out)

      jaxpr_walker.assert_no_intermediate(
        jax.make_jaxpr(run)(arrays, valid), at_least=(length + 2) * depth
      )


if __name__ == "__main__":
  absltest.main()
