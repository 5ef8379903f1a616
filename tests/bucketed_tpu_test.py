"""The TPU kernels of bucketed attention: interpreted and lowered here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn._src import dispatch
from jaxattn._src.engines import bucketed
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

Reach = bucketed.Reach
B, T, N, K, H, V = 2, 37, 4, 2, 8, 6


def _inputs(rounds, dtype="float32", length=T):
  rngs = jax.random.split(jax.random.key(0), 5)
  tails = ((N, H), (K, H), (K, V), (N, V))
  arrays = [
    jax.random.normal(rng, (B, length, *tail)).astype(dtype)
    for rng, tail in zip(rngs[:4], tails, strict=True)
  ]
  groups = jax.random.randint(rngs[4], (rounds, B, length, N), 0, 5)
  return arrays, groups


def _mask(name):
  rng = np.random.default_rng(1)
  ids = jnp.asarray(rng.integers(0, 3, (B, T)))
  positions = jnp.asarray(np.stack([rng.permutation(T) for _ in range(B)]))
  packed = dict(query_segment_ids=ids, key_segment_ids=ids)
  return {
    "full": jaxattn.FULL,
    "causal": jaxattn.CAUSAL,
    "padded": jaxattn.Mask(key_valid=jnp.asarray(rng.random((B, T)) < 0.7)),
    "packed": jaxattn.Mask(**packed),
    "all": jaxattn.Mask(
      **packed,
      causal=True,
      key_valid=jnp.asarray(rng.random((B, T)) < 0.7),
      query_positions=positions,
      key_positions=positions,
    ),
  }[name]


def _pull(arrays, groups, implementation, interpret=True, **options):
  """Output, lse and gradients; the lse has a cotangent of its own."""

  @jax.jit  # A new function each time: it traces anew.
  def passes(arrays, groups):
    def attend(*qkv):
      found = bucketed.bucketed_attention(
        *qkv, groups, implementation=implementation, **options
      )
      return found.out, jnp.where(jnp.isneginf(found.lse), 0.0, found.lse)

    (out, lse), pull = jax.vjp(attend, *arrays[:3])
    return (out, lse), pull((arrays[3].astype(out.dtype), jnp.cos(lse)))

  with dispatch.emulate("tpu", interpret):
    return passes(arrays, groups)


@pytest.mark.parametrize(
  ("reach", "rounds", "mask", "exclude_self"),
  [
    (Reach(chunk=8), 3, "causal", True),
    (Reach(chunk=8, before=2, after=1), 1, "padded", False),
    (Reach(chunk=8, within=True), 2, "packed", True),
    (Reach(chunk=16, window=20), 2, "all", False),
    (Reach(chunk=8, window=8), 1, "full", False),
  ],
)
def test_interpreted_kernels_equal_the_portable_engine(
  reach, rounds, mask, exclude_self
):
  arrays, groups = _inputs(rounds)
  options = dict(reach=reach, mask=_mask(mask), exclude_self=exclude_self)
  got = _pull(arrays, groups, "pallas", **options)
  want = _pull(arrays, groups, "xla", **options)
  assert_close(got, want)  # Float32 throughout: the order of sums differs.


def test_queries_and_keys_may_be_the_same():
  """As in Reformer: gradients of both uses add up."""
  arrays, groups = _inputs(2)

  def loss(x, implementation):
    unit = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    value = jnp.repeat(arrays[2], N // K, axis=2)
    found = bucketed.bucketed_attention(
      x,
      unit,
      value,
      groups,
      reach=Reach(chunk=8),
      exclude_self=True,
      implementation=implementation,
    )
    return jnp.sum(found.out * arrays[3])

  with dispatch.emulate("tpu", True):
    got, want = (
      jax.jit(jax.grad(functools.partial(loss, implementation=name)))(arrays[0])
      for name in ("pallas", "xla")
    )
  assert_close(got, want)


def test_a_sequence_shorter_than_a_chunk_is_filled_up():
  arrays, groups = _inputs(1, length=11)
  options = dict(reach=Reach(chunk=64, before=0))
  got = _pull(arrays, groups, None, **options)
  want = _pull(arrays, groups, "xla", **options)
  assert_close(got, want)


def test_rows_that_see_nothing_are_zero():
  arrays, groups = _inputs(1)
  valid = jnp.zeros((B, T), bool)
  mask = jaxattn.Mask(key_valid=valid)
  out, grads = _pull(arrays, groups, "pallas", reach=Reach(chunk=8), mask=mask)
  assert_zero(out[0], *grads)


def test_interpreted_kernels_take_bfloat16():
  arrays, groups = _inputs(1, "bfloat16")
  options = dict(reach=Reach(chunk=16, before=0), mask=jaxattn.CAUSAL)
  got = _pull(arrays, groups, "pallas", **options)
  assert [x.dtype for x in got[1]] == [jnp.bfloat16] * 3
  want = _pull(arrays, groups, "xla", **options)
  assert_close(got, want, 2e-2)


@pytest.mark.parametrize(
  ("dtype", "mask"), [("float32", "full"), ("bfloat16", "all")]
)
def test_forward_and_backward_lower_for_tpu(dtype, mask):
  arrays, groups = _inputs(2, dtype)

  def loss(query, key, value):
    found = bucketed.bucketed_attention(
      query,
      key,
      value,
      groups,
      reach=Reach(chunk=16, after=1),
      mask=_mask(mask),
      implementation="pallas",
    )
    return jnp.sum(found.out)

  with dispatch.emulate("tpu"):
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays[:3])
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("tpu_custom_call") == 2  # Each in a loop over the rounds.


@pytest.mark.parametrize(
  ("reach", "depth", "dtype", "match"),
  [
    (Reach(chunk=12), 8, "float32", "multiples of 8 tokens.*choose 16"),
    (Reach(chunk=8), 8, "bfloat16", "multiples of 16 tokens"),
    (Reach(chunk=8), 8, "float16", "bfloat16 and float32"),
    (Reach(chunk=8), 264, "float32", "up to 256 features"),
    (Reach(chunk=1024), 8, "float32", "choose smaller chunks"),
  ],
)
def test_what_the_kernels_do_not_serve_is_said(reach, depth, dtype, match):
  x = jax.ShapeDtypeStruct((1, 2048, 1, depth), jnp.dtype(dtype))
  groups = jax.ShapeDtypeStruct((1, 1, 2048, 1), jnp.int32)
  attend = functools.partial(bucketed.bucketed_attention, reach=reach)
  with dispatch.emulate("tpu"):
    with pytest.raises(NotImplementedError, match=match):
      jax.eval_shape(
        functools.partial(attend, implementation="pallas"), x, x, x, groups
      )
    jax.eval_shape(attend, x, x, x, groups)


def test_dtypes_that_differ_are_left_to_xla():
  (query, key, value, _), groups = _inputs(1)
  attend = functools.partial(
    bucketed.bucketed_attention, reach=Reach(chunk=16), implementation="pallas"
  )
  with dispatch.emulate("tpu"):
    with pytest.raises(NotImplementedError, match="differ in dtype"):
      jax.eval_shape(attend, query, key, value.astype(jnp.bfloat16), groups)


@pytest.mark.tpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_on_the_device_equal_the_portable_engine(dtype):
  arrays, groups = _inputs(3, dtype, length=1000)
  options = dict(reach=Reach(chunk=64), mask=jaxattn.CAUSAL, exclude_self=True)
  got = _pull(arrays, groups, "pallas", interpret=None, **options)
  want = _pull(arrays, groups, "xla", **options)
  assert_close(got, want, 1e-5 if dtype == "float32" else 2e-2)
