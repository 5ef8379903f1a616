"""Longformer's method: limit cases, reach, and what decoding keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxattn
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

_HEADS, _DEPTH = 2, 8


def _draw(seed, length):
  rngs = jax.random.split(jax.random.key(seed), 3)
  shape = (2, length, _HEADS, _DEPTH)
  return [jax.random.normal(rng, shape) for rng in rngs]


@functools.partial(jax.jit, static_argnames=("method", "mask"))
def _pull(method, qkv, mask=jaxattn.FULL):
  out, vjp = jax.vjp(lambda *x: method.apply((), (), *x, mask=mask)[0], *qkv)
  return out, vjp(jnp.cos(out))


class LongformerTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("window", dict(window=2 * 16)),
    ("wider", dict(window=90)),
    ("all_global", dict(window=2, num_global=17)),
  )
  def test_limits_are_full_attention(self, options):
    qkv = _draw(0, 17)
    for mask in (jaxattn.FULL, jaxattn.CAUSAL):
      got = _pull(jaxattn.longformer(**options), qkv, mask)
      assert_close(got, _pull(jaxattn.dense(), qkv, mask), 1e-5)

  def test_without_global_tokens_it_is_the_window(self):
    qkv = _draw(1, 19)
    got = _pull(jaxattn.longformer(window=6), qkv)
    want = _pull(jaxattn.sliding_window(left=3, right=3), qkv)
    assert_close(got, want, 1e-6)
    causal = _pull(jaxattn.longformer(window=6), qkv, jaxattn.CAUSAL)
    want = _pull(jaxattn.sliding_window(left=3), qkv, jaxattn.CAUSAL)
    assert_close(causal, want, 1e-6)

  def test_a_window_of_nothing_is_the_value(self):
    q, k, v = _draw(2, 9)
    out, _ = _pull(jaxattn.longformer(window=0), (q, k, v))
    assert_close(out, v, 1e-6)

  def test_static_and_data_dependent_globals_agree(self):
    qkv = _draw(3, 19)
    method = jaxattn.longformer(window=4, dilation=(1, 3), num_global=2)
    plain = jaxattn.longformer(window=4, dilation=(1, 3))
    for causal in (False, True):
      mask = jaxattn.Mask(causal=causal)
      want, _ = _pull(method, qkv, mask)
      attend = functools.partial(
        jaxattn.global_attention,
        pattern=plain.pattern(_HEADS, 19, 19, causal=False),
        mask=mask,
      )
      got = jax.jit(attend)(*qkv, jnp.array([[1, 0, -1]] * 2))
      assert_close(got, want, 1e-5)

  def test_reach_of_two_layers(self):
    """A token beyond 2 * window / 2 * dilation has no influence."""
    method = jaxattn.longformer(window=4, dilation=(1, 3))

    def two(x):
      x, _ = method.apply((), (), x, x, x)
      return method.apply((), (), x, x, x)[0]

    x, at = _draw(4, 41)[0], 20
    grad = jax.jit(jax.grad(lambda x: two(x)[:, at].sum()))(x)
    reach = np.abs(np.asarray(grad)).max((0, 3)) > 0  # [T, N]
    away = np.abs(np.arange(41) - at)
    for head, dilation in enumerate((1, 3)):
      assert_zero(grad[:, away > 2 * 2 * dilation, head])
      self.assertTrue(reach[at + 4 * dilation, head])
      self.assertTrue(reach[at - 4 * dilation, head])

  def test_decoding_keeps_the_window_and_the_global_tokens(self):
    shapes = jaxattn.AttentionShapes(num_heads=4, head_dim=8)
    method = jaxattn.longformer(window=8, dilation=(1, 1, 2, 2), num_global=3)
    for length, want in ((10_000, 3 + 4 * 2 + 1), (6, 6), (2, 4)):
      cache = method.init_cache(
        (), (), batch_shape=(1,), max_length=length, shapes=shapes
      )
      self.assertEqual(cache["key"].shape, (1, want, 4, 8))

  @parameterized.named_parameters(
    ("odd", dict(window=3), "even"),
    ("negative", dict(window=-2), "even"),
    ("dilation", dict(window=2, dilation=0), "dilation must be"),
    ("heads", dict(window=2, dilation=(1, 0)), "dilation must be"),
    ("num_global", dict(window=2, num_global=-1), "num_global"),
  )
  def test_bad_options_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      jaxattn.longformer(**options)

  def test_a_dilation_for_each_head(self):
    method = jaxattn.longformer(window=2, dilation=(1, 2, 3))
    with self.assertRaisesRegex(ValueError, "one for each of 2 heads"):
      method.apply((), (), *_draw(5, 7))
    same = jaxattn.longformer(window=2, dilation=[1, 2])  # pyrefly: ignore
    self.assertEqual(same, jaxattn.longformer(window=2, dilation=(1, 2)))
