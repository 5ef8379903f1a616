"""Longformer's layer against dense softmax attention, and its invariants."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxattn
from jaxattn import positions
from jaxattn.models.layers import longformer
from jaxattn.nn import linen as layers
from tests.method_cases import assert_close

_LENGTH, _WIDTH, _HEADS = 13, 8, 2
# Rows of two, of none, of a repeated one, of one in the window of another.
_PLACES = np.array([[0, 9, -1], [-1, -1, -1], [5, 5, 3]])
_METHOD = jaxattn.longformer(window=4, dilation=(1, 2))
_FULL = np.arange(_LENGTH)[None]


def _layer(**options: Any) -> Any:
  options = {"method": _METHOD, "num_heads": _HEADS, **options}
  return longformer.LongformerSelfAttention(**options)


def _x(seed=0, rows=3, length=_LENGTH):
  return jax.random.normal(jax.random.key(seed), (rows, length, _WIDTH))


def _params(layer, **options):
  """Unboxed parameters, all of them of size 1/2."""
  init = functools.partial(layer.init, **options)
  params = nn.unbox(jax.jit(init)(jax.random.key(0), _x())["params"])
  leaves, tree = jax.tree.flatten(params)
  rngs = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [
    0.5 * jax.random.normal(rng, leaf.shape, leaf.dtype)
    for rng, leaf in zip(rngs, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, leaves)


def _apply(layer, params, x, places=None, **kwargs):
  if places is not None:
    kwargs["global_positions"] = jnp.asarray(places)
  return jax.jit(layer.apply)({"params": params}, x, **kwargs)


def _valid(lengths, length=_LENGTH):
  valid = jnp.arange(length)[None] < jnp.asarray(lengths)[:, None]
  return jaxattn.Mask(key_valid=valid, query_valid=valid)


def _project(params, name, x):
  kernel, bias = params[name]["kernel"], params[name].get("bias")
  out = jnp.einsum("btd,dnh->btnh", x, kernel, precision="highest")
  return out if bias is None else out + bias[None, None]


def _softmax(query, key, value, allowed):
  """Naive attention; `allowed` broadcasts to `[B, N, T, S]`."""
  scores = jnp.einsum("btnh,bsnh->bnts", query, key, precision="highest")
  scores = scores / jnp.float32(query.shape[-1] ** 0.5)
  weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
  weights = jnp.where(allowed.any(-1, keepdims=True), weights, 0.0)
  return jnp.einsum("bnts,bsnh->btnh", weights, value, precision="highest")


def _dense(params, x, places, *, causal, valid, separate):
  """The definition: rows of global tokens see all, by their projections."""
  rows, length = x.shape[:2]
  i, j = np.arange(length)[:, None], np.arange(length)[None, :]
  is_global = np.zeros((rows, length), bool)
  for row, found in enumerate(places):
    is_global[row, found[found >= 0]] = True
  band = np.stack([(abs(i - j) <= 2 * d) & ((i - j) % d == 0) for d in (1, 2)])
  keys = np.asarray(valid)[:, None, None, :] & ((j <= i) | (not causal))
  seen = (band[None] | is_global[:, None, None, :]) & keys
  q, k, v = (_project(params, name, x) for name in ("query", "key", "value"))
  out = _softmax(q, k, v, jnp.asarray(seen))
  if separate:
    q, k, v = (
      _project(params, f"{name}_global", x)
      for name in ("query", "key", "value")
    )
  full = _softmax(q, k, v, jnp.asarray(np.broadcast_to(keys, seen.shape)))
  out = jnp.where(is_global[..., None, None], full, out)
  out = jnp.where(valid[..., None, None], out, 0.0)
  kernel, bias = params["out"]["kernel"], params["out"]["bias"]
  out = jnp.einsum("btnh,nhd->btd", out, kernel, precision="highest")
  return out + bias[None, None]


class OracleTest(parameterized.TestCase):
  @parameterized.product(causal=(False, True), separate=(False, True))
  def test_equals_dense_in_value_and_gradient(self, causal, separate):
    """13 tokens, two dilations, padding, other global tokens in each row."""
    layer = _layer(use_bias=True, global_projections=separate)
    params, x, cotangent = _params(layer), _x(), _x(5)
    mask = _valid([13, 13, 7])

    def ours(params, x):
      return layer.apply(
        {"params": params},
        x,
        global_positions=jnp.asarray(_PLACES),
        mask=jaxattn.Mask(
          causal=causal, key_valid=mask.key_valid, query_valid=mask.query_valid
        ),
      )

    def reference(params, x):
      return _dense(
        params,
        x,
        _PLACES,
        causal=causal,
        valid=np.arange(_LENGTH) < np.array([[13], [13], [7]]),
        separate=separate,
      )

    results = []
    for attend in (ours, reference):

      def loss(params, x, attend=attend):
        out = attend(params, x)
        return jnp.sum(out * cotangent), out

      grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
      results.append(grad(params, x))
    (got_grad, got), (want_grad, want) = results
    assert_close(got, want)
    self.assertEqual(
      jax.tree.structure(got_grad), jax.tree.structure(want_grad)
    )
    for a, b in zip(
      jax.tree.leaves(got_grad), jax.tree.leaves(want_grad), strict=True
    ):
      assert_close(a, b, 2e-5)


class InvariantsTest(parameterized.TestCase):
  def test_all_tokens_global_is_full_attention_by_their_weights(self):
    layer = _layer()
    params, x = _params(layer), _x()
    got = _apply(layer, params, x, np.tile(_FULL, (3, 1)))
    theirs = {
      "out": params["out"],
      **{n: params[f"{n}_global"] for n in ("query", "key", "value")},
    }
    dense = layers.Attention(method=jaxattn.dense(), num_heads=_HEADS)
    assert_close(got, _apply(dense, theirs, x))

  def test_no_global_token_is_the_window_alone(self):
    layer = _layer()
    params, x = _params(layer), _x()
    alone = {n: params[n] for n in ("query", "key", "value", "out")}
    plain = layers.Attention(method=_METHOD, num_heads=_HEADS)
    want = _apply(plain, alone, x)
    assert_close(_apply(layer, params, x), want, 0.0)
    assert_close(_apply(layer, params, x, np.full((3, 2), -1)), want)

  @parameterized.named_parameters(
    ("plain", {}, None),
    ("rotary", {"rotary": 100.0}, None),
    ("qk_norm", {"qk_norm": True, "num_kv_heads": 1}, None),
    ("alibi", {}, positions.ALiBi(max_distance=5)),
  )
  def test_copied_projections_give_rows_of_full_attention(
    self, options, scheme
  ):
    method = jaxattn.longformer(window=4, dilation=(1, 2), relative=scheme)
    layer = _layer(method=method, **options)
    params = longformer.copy_global(_params(layer))
    x = _x()
    got = _apply(layer, params, x, _PLACES)
    own = {n: v for n, v in params.items() if not n.endswith("_global")}
    dense = layers.Attention(
      method=jaxattn.dense(relative=scheme), num_heads=_HEADS, **options
    )
    full = _apply(dense, own, x)
    window = _apply(
      layers.Attention(method=method, num_heads=_HEADS, **options), own, x
    )
    for row, place in ((0, 0), (0, 9), (2, 5), (2, 3)):
      assert_close(got[row, place], full[row, place])
    assert_close(got[1], window[1])
    self.assertGreater(float(jnp.abs(got[0, 5] - window[0, 5]).max()), 1e-3)

  def test_order_and_padding_of_the_places_do_not_matter(self):
    layer = _layer()
    params, x = _params(layer), _x(rows=1)
    want = _apply(layer, params, x, [[2, 7, 11, -1]])
    for places in ([[11, 2, 7, -1]], [[-1, 7, 11, 2]], [[7, 7, 2, 11]]):
      assert_close(_apply(layer, params, x, places), want)

  def test_a_global_token_in_the_window_counts_once(self):
    """With zero queries a token gets the mean of the values it sees."""
    layer = _layer(method=jaxattn.longformer(window=4))
    params, x = _params(layer), _x(rows=1)
    params["query"]["kernel"] = jnp.zeros_like(params["query"]["kernel"])
    got = _apply(layer, params, x, [[5, 0, -1]])
    values = _project(params, "value", x)
    for place, seen in ((4, [0, 2, 3, 4, 5, 6]), (9, [0, 5, 7, 8, 9, 10, 11])):
      mean = jnp.mean(values[0, jnp.array(seen)], axis=0)
      want = jnp.einsum("nh,nhd->d", mean, params["out"]["kernel"])
      assert_close(got[0, place], want)

  def test_padding_at_the_right_changes_nothing(self):
    layer = _layer()
    params, x = _params(layer), _x()
    want = _apply(layer, params, x, _PLACES)
    noise = 50.0 * _x(7, length=6)
    padded = jnp.concatenate([x, noise], axis=1)
    mask = _valid([13, 13, 13], 19)
    # Padding that is named a global token is still padding.
    places = np.concatenate([_PLACES, np.full((3, 1), 15)], axis=1)
    got = _apply(layer, params, padded, places, mask=mask)
    assert_close(got[:, :_LENGTH], want)
    np.testing.assert_array_equal(got[:, _LENGTH:], 0.0)

  def test_gradient_reaches_the_second_projections_with_global_tokens(self):
    layer = _layer(use_bias=True)
    params, x = _params(layer), _x()

    def loss(params, places):
      out = layer.apply({"params": params}, x, global_positions=places)
      return jnp.sum(out**2)

    grad = jax.jit(jax.grad(loss))
    for places, reached in ((None, False), (jnp.asarray(_PLACES), True)):
      found = grad(params, places)
      for name in ("query_global", "key_global", "value_global"):
        size = float(jnp.abs(found[name]["kernel"]).max())
        self.assertEqual(size > 0, reached, name)

  def test_rows_of_a_batch_have_their_own_global_tokens(self):
    layer = _layer()
    params, x = _params(layer), _x()
    both = _apply(layer, params, x, _PLACES)
    for row in range(3):
      alone = _apply(layer, params, x[row : row + 1], _PLACES[row : row + 1])
      assert_close(both[row], alone[0])

  def test_causal_by_gradient_with_global_tokens(self):
    layer = _layer()
    params, x = _params(layer), _x(rows=1)

    def row(x):
      out = layer.apply(
        {"params": params},
        x,
        global_positions=jnp.array([[0, 6]]),
        mask=jaxattn.CAUSAL,
      )
      return jnp.sum(out[:, 6] ** 2)

    size = jnp.abs(jax.jit(jax.grad(row))(x))[0].max(-1)
    np.testing.assert_array_equal(size[7:], 0.0)
    self.assertGreater(float(size[:7].min()), 0.0)


class LayerTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_variables(self, separate):
    layer = _layer(global_projections=separate)
    names = {"query", "key", "value", "out"}
    if separate:
      names |= {"query_global", "key_global", "value_global"}
    for places in (None, jnp.asarray(_PLACES)):
      init = functools.partial(layer.init, global_positions=places)
      boxed = jax.eval_shape(init, jax.random.key(0), _x())["params"]
      self.assertEqual(set(boxed), names)
      for name in names - {"out"}:
        spec = nn.get_partition_spec(boxed)[name]["kernel"]
        self.assertEqual(tuple(spec), ("embed", "heads", "head_dim"))

  def test_second_projections_are_drawn_or_copied(self):
    params = nn.unbox(jax.jit(_layer().init)(jax.random.key(0), _x())["params"])
    first, second = params["query"]["kernel"], params["query_global"]["kernel"]
    self.assertGreater(float(jnp.abs(first - second).max()), 0.1)
    copied = longformer.copy_global({"layers": [1], "a": {"b": params}})
    for name in ("query", "key", "value"):
      chex.assert_trees_all_equal(
        copied["a"]["b"][f"{name}_global"], params[name]
      )
    self.assertIsNot(copied["a"]["b"], params)
    self.assertGreater(
      float(jnp.abs(params["query_global"]["kernel"] - first).max()), 0.1
    )
    with self.assertRaisesRegex(ValueError, "query_global"):
      longformer.copy_global({"query": 1, "key_global": 2})

  def test_decoding_without_global_tokens_equals_the_parallel_form(self):
    layer = _layer(rotary=100.0)
    params, x = _params(layer), _x()
    want = _apply(layer, params, x, mask=jaxattn.CAUSAL)
    _, cache = layer.apply(
      {"params": params}, (3,), 16, method="init_cache", mutable=["cache"]
    )
    step = jax.jit(
      functools.partial(
        layer.apply, mask=jaxattn.CAUSAL, decode=True, mutable=["cache"]
      )
    )
    got = []
    for chunk in (x[:, :11], x[:, 11:12], x[:, 12:]):
      out, cache = step({"params": params, **cache}, chunk)
      got.append(out)
    assert_close(jnp.concatenate(got, axis=1), want)

  def test_bfloat16_is_near(self):
    params, x = _params(_layer()), _x()
    want = _apply(_layer(), params, x, _PLACES)
    got = _apply(_layer(dtype=jnp.bfloat16), params, x, _PLACES)
    self.assertEqual(got.dtype, jnp.bfloat16)
    assert_close(got.astype(jnp.float32), want, 4e-2)

  def test_errors(self):
    x = _x()
    for layer, kwargs, message in (
      (_layer(method=jaxattn.dense()), {}, "static pattern.*Dense"),
      (
        _layer(),
        {"global_positions": jnp.zeros((3,), int)},
        r"integers \[\*B, G\] with \*B \(3,\)",
      ),
      (_layer(), {"global_positions": jnp.zeros((3, 2))}, "must be integers"),
      (
        _layer(),
        {
          "global_positions": jnp.asarray(_PLACES),
          "decode": True,
          "mask": jaxattn.CAUSAL,
        },
        "decode=True does not serve global_positions",
      ),
      (
        _layer(),
        {
          "global_positions": jnp.asarray(_PLACES),
          "positions": jnp.zeros((3, 13), int),
        },
        "rotary",
      ),
    ):
      with self.assertRaisesRegex(ValueError, message):
        layer.init(jax.random.key(0), x, **kwargs)


if __name__ == "__main__":
  absltest.main()
