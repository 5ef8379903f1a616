"""Our attention inside Flax's own layers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx

import jaxattn
from jaxattn import nn as jaxattn_nn
from jaxattn import positions


def _x(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _init(layer, *args):
  return jax.jit(layer.init)(jax.random.key(0), *args)


def _apply(layer, variables, *args, **kwargs):
  """`layer.apply` under jit: an eager call compiles every operation alone."""
  static = {
    name: kwargs.pop(name)
    for name in ("mutable", "train", "decode")
    if name in kwargs
  }
  return jax.jit(functools.partial(layer.apply, **static))(
    variables, *args, **kwargs
  )


class AttentionFnTest(parameterized.TestCase):
  def _layers(self, attention_fn=None):
    more = {} if attention_fn is None else {"attention_fn": attention_fn}
    return (
      nn.MultiHeadDotProductAttention(num_heads=2, **more),
      nnx.MultiHeadAttention(
        2, in_features=8, decode=False, rngs=nnx.Rngs(0), **more
      ),
    )

  def test_equals_flax(self):
    x = _x(0, 2, 7, 8)
    causal = jaxattn_nn.as_attention_fn(jaxattn.dense(), mask=jaxattn.CAUSAL)
    theirs, theirs_nnx = self._layers()
    ours, ours_nnx = self._layers(causal)
    variables = _init(theirs, x)
    mask = nn.make_causal_mask(jnp.ones((2, 7)))
    np.testing.assert_allclose(
      _apply(ours, variables, x),
      _apply(theirs, variables, x, mask=mask),
      atol=1e-5,
    )
    np.testing.assert_allclose(ours_nnx(x), theirs_nnx(x, mask=mask), atol=1e-5)

  def test_is_causal_is_added(self):
    x = _x(0, 2, 7, 8)
    op = functools.partial(
      jaxattn.block_sparse, pattern=jaxattn.patterns.Window(2, 2)
    )
    _, plain = self._layers(jaxattn_nn.as_attention_fn(op))
    _, causal = self._layers(
      jaxattn_nn.as_attention_fn(op, mask=jaxattn.CAUSAL)
    )
    np.testing.assert_allclose(plain(x, is_causal=True), causal(x), atol=1e-6)
    self.assertGreater(float(jnp.abs(plain(x) - causal(x)).max()), 1e-3)

  @parameterized.parameters(
    ({}, {"mask": jnp.ones((2, 1, 7, 7), bool)}, "dense mask"),
    ({"dropout_rate": 0.5}, {"deterministic": False}, "dropout"),
    ({"precision": "highest"}, {}, "precision"),
    ({}, {"sow_weights": True}, "sow weights"),
  )
  def test_refuses_what_it_would_lose(self, options, arguments, message):
    x = _x(0, 2, 7, 8)
    fn = jaxattn_nn.as_attention_fn(jaxattn.dense())
    linen = nn.MultiHeadDotProductAttention(
      num_heads=2, attention_fn=fn, **options
    )
    plain = nn.MultiHeadDotProductAttention(num_heads=2)
    variables = _init(plain, x)
    layer = nnx.MultiHeadAttention(
      2,
      in_features=8,
      decode=False,
      rngs=nnx.Rngs(0),
      attention_fn=fn,
      **options,
    )
    with self.assertRaisesRegex(NotImplementedError, message):
      linen.apply(
        variables, x, rngs={"dropout": jax.random.key(0)}, **arguments
      )
    with self.assertRaisesRegex(NotImplementedError, message):
      layer(x, rngs=nnx.Rngs(dropout=0), **arguments)

  def test_refuses_bias_and_names_every_keyword_of_flax(self):
    q = jnp.ones((1, 4, 2, 4))
    fn = jaxattn_nn.as_attention_fn(jaxattn.dense())
    with self.assertRaisesRegex(NotImplementedError, "bias"):
      fn(q, q, q, jnp.zeros((1, 2, 4, 4)))
    seen: dict[str, Any] = {}

    def spy(query, key, value, **kwargs):
      del query, key
      seen.update(kwargs)
      return value

    nnx.MultiHeadAttention(
      2, in_features=8, decode=False, rngs=nnx.Rngs(0), attention_fn=spy
    )(_x(0, 1, 4, 8))
    fn(q, q, q, **seen)  # A keyword it does not name raises TypeError.

  def test_dtype_and_parameters(self):
    q = _x(0, 1, 4, 2, 4)
    fn = jaxattn_nn.as_attention_fn(jaxattn.dense())
    self.assertEqual(fn(q, q, q, dtype=jnp.bfloat16).dtype, jnp.bfloat16)
    method = jaxattn.dense(relative=positions.T5Bias())
    shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=4)
    params, _ = method.init(jax.random.key(0), shapes)
    fn = jaxattn_nn.as_attention_fn(method, params=params)
    want, _ = method.apply(params, (), q, q, q)
    np.testing.assert_allclose(fn(q, q, q), want, atol=1e-6)
    with self.assertRaisesRegex(ValueError, "params of Dense.*structure"):
      jaxattn_nn.as_attention_fn(method)(q, q, q)
    with self.assertRaisesRegex(ValueError, "belong to a method"):
      jaxattn_nn.as_attention_fn(jaxattn.dense_attention, params=params)


if __name__ == "__main__":
  absltest.main()
