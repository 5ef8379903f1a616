"""Bucketed attention against its edges, found one at a time."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn._src.engines import bucketed
from tests import bucketed_cases as cases
from tests import jaxpr_walker
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

Reach = bucketed.Reach
B, T, N, K, H, V = 2, 37, 4, 2, 8, 6


def _draw(seed=0, length=T, dtype=jnp.float32):
  rngs = jax.random.split(jax.random.key(seed), 3)
  tails = ((N, H), (K, H), (K, V))
  return tuple(
    jax.random.normal(rng, (B, length, *tail)).astype(dtype)
    for rng, tail in zip(rngs, tails, strict=True)
  )


def _groups(rounds, count=5, seed=3, length=T):
  return np.random.default_rng(seed).integers(
    0, count, (rounds, B, length, N), dtype=np.int32
  )


def _masks():
  rng = np.random.default_rng(1)
  valid = rng.random((B, T)) < 0.7
  ids = rng.integers(0, 3, (B, T))
  positions = np.stack([rng.permutation(T) for _ in range(B)])
  fields = dict(
    key_valid=jnp.asarray(valid),
    query_segment_ids=jnp.asarray(ids),
    key_segment_ids=jnp.asarray(ids),
  )
  return {
    "full": jaxattn.FULL,
    "causal": jaxattn.CAUSAL,
    "padded": jaxattn.Mask(
      key_valid=jnp.asarray(valid),
      query_valid=jnp.asarray(np.roll(valid, 1, axis=1)),
    ),
    "packed": jaxattn.Mask(**fields, causal=True),
    "positions": jaxattn.Mask(
      **fields,
      causal=True,
      query_positions=jnp.asarray(positions),
      key_positions=jnp.asarray(positions),
    ),
  }


@functools.partial(jax.jit, static_argnames=("reach", "exclude_self"))
def _pull(qkv, groups, mask, cotangent, *, reach, exclude_self=False):
  def attend(*qkv):
    found = bucketed.bucketed_attention(
      *qkv, groups, reach=reach, mask=mask, exclude_self=exclude_self
    )
    return found.out, jnp.where(jnp.isneginf(found.lse), 0.0, found.lse)

  out, vjp = jax.vjp(attend, *qkv)
  return out, vjp(cotangent)


@jax.jit
def _pull_reference(qkv, allowed, cotangent):
  def attend(*qkv):
    out, lse = cases.attend(*qkv, allowed)
    return out, jnp.where(jnp.isneginf(lse), 0.0, lse)

  out, vjp = jax.vjp(attend, *qkv)
  return out, vjp(cotangent)


def _cotangent(length=T):
  rngs = jax.random.split(jax.random.key(9))
  return (
    jax.random.normal(rngs[0], (B, length, N, V)),
    jax.random.normal(rngs[1], (B, length, N)),
  )


@pytest.mark.parametrize("mask", list(_masks()))
@pytest.mark.parametrize(
  ("reach", "rounds", "exclude_self"),
  [
    (Reach(chunk=8), 3, True),
    (Reach(chunk=5, before=2, after=1), 2, False),
    (Reach(chunk=6, before=0), 1, False),
    (Reach(chunk=8, within=True, after=1), 2, True),
    (Reach(chunk=8, window=8), 2, False),
    (Reach(chunk=4, window=7), 1, True),
  ],
)
def test_equals_softmax_over_the_union_of_its_edges(
  mask, reach, rounds, exclude_self
):
  """In value, lse and gradient."""
  mask, groups, qkv = _masks()[mask], _groups(rounds), _draw()
  allowed = cases.edges(groups, reach, mask, exclude_self)
  assert 0 < allowed.mean() < 0.8
  got = _pull(
    qkv,
    jnp.asarray(groups),
    mask,
    _cotangent(),
    reach=reach,
    exclude_self=exclude_self,
  )
  want = _pull_reference(qkv, jnp.asarray(allowed), _cotangent())
  assert_close(got, want)
  empty = ~allowed.any(-1).swapaxes(1, 2)
  assert_zero(got[0][0][empty], got[1][0][empty])


def test_without_correction_the_rounds_would_differ():
  """The union is not the mean over rounds that counts an edge twice."""
  groups = np.repeat(_groups(1), 3, axis=0)
  run = functools.partial(
    _pull, _draw(), mask=jaxattn.FULL, cotangent=_cotangent()
  )
  reach = Reach(chunk=8)
  one, three = (run(jnp.asarray(g), reach=reach) for g in (groups[:1], groups))
  assert_close(three, one, 1e-6)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 33])
def test_one_chunk_is_dense(length):
  qkv, groups = _draw(length=length), _groups(2, length=length)
  found = bucketed.bucketed_attention(
    *qkv, jnp.asarray(groups), reach=Reach(chunk=40), mask=jaxattn.CAUSAL
  )
  want = jaxattn.dense_attention(*qkv, mask=jaxattn.CAUSAL, return_lse=True)
  assert_close(found, want)


def test_many_steps_equal_one(monkeypatch):
  """However few scores may be in flight."""
  qkv, groups = _draw(), jnp.asarray(_groups(2))
  reach = Reach(chunk=4, after=1)
  want = _pull(qkv, groups, jaxattn.FULL, _cotangent(), reach=reach)
  for budget in (1, 5 * 4 * 12):
    monkeypatch.setattr(
      "jaxattn._src.dispatch.gathered_budget", lambda budget=budget: budget
    )
    jax.clear_caches()
    got = _pull(qkv, groups, jaxattn.FULL, _cotangent(), reach=reach)
    assert_close(got, want, 1e-6)
  jax.clear_caches()


def test_window_is_causal_in_content():
  """Members of the own group: later tokens change nothing, wherever they go."""
  qkv, groups, cut = _draw(), _groups(2), 20
  late = groups.copy()
  late[:, :, cut:] = _groups(2, seed=8)[:, :, cut:]
  run = functools.partial(
    bucketed.bucketed_attention,
    *qkv,
    reach=Reach(chunk=4, window=4),
    mask=jaxattn.CAUSAL,
  )
  one, other = run(jnp.asarray(groups)), run(jnp.asarray(late))
  assert_close(one.out[:, :cut], other.out[:, :cut], 1e-6)
  assert np.abs(one.out[:, cut:] - other.out[:, cut:]).max() > 1e-2


def test_padding_on_any_side_changes_nothing():
  qkv, groups = _draw(), _groups(2)
  want = bucketed.bucketed_attention(
    *qkv, jnp.asarray(groups), reach=Reach(chunk=8), mask=jaxattn.CAUSAL
  )
  for left, right in ((0, 11), (11, 0), (3, 8)):
    widths = ((0, 0), (left, right), (0, 0), (0, 0))
    padded = [jnp.pad(x, widths, constant_values=7.0) for x in qkv]
    wide = np.pad(groups, ((0, 0), *widths[:3]))
    index = np.arange(T + 11)
    valid = jnp.asarray((index >= left) & (index < left + T))[None]
    mask = jaxattn.Mask(causal=True, key_valid=valid)
    got = bucketed.bucketed_attention(
      *padded, jnp.asarray(wide), reach=Reach(chunk=8), mask=mask
    )
    assert_close(got.out[:, left : left + T], want.out, 1e-6)
    assert_zero(got.out[:, :left], got.out[:, left + T :])


def test_bfloat16_and_batch_axes():
  qkv, groups = _draw(dtype=jnp.bfloat16), jnp.asarray(_groups(2))
  reach = Reach(chunk=8)
  got = _pull(qkv, groups, jaxattn.FULL, _cotangent(), reach=reach)
  assert [x.dtype for x in got[1]] == [jnp.bfloat16] * 3
  rounded = [x.astype(jnp.float32) for x in qkv]
  want = _pull(rounded, groups, jaxattn.FULL, _cotangent(), reach=reach)
  assert_close(got, want, 2e-2)

  def run(q, k, v, g):
    return bucketed.bucketed_attention(q, k, v, g, reach=reach)

  many = jax.vmap(run, in_axes=(0, 0, 0, 1))(*rounded, groups)
  assert_close(many.out, want[0][0], 1e-6)
  axes = [x[:, None] for x in rounded]
  assert_close(run(*axes, groups[:, :, None]).out[:, 0], want[0][0], 1e-6)


def test_memory_does_not_grow_with_rounds():
  """Nothing of the size of the tokens is kept for every round but orders."""
  length = 4096

  def trace(rounds):
    x = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)
    groups = jax.ShapeDtypeStruct((rounds, 1, length, 1), jnp.int32)

    def run(q, k, v, groups):
      def attend(*qkv):
        return bucketed.bucketed_attention(
          *qkv, groups, reach=Reach(chunk=64)
        ).out

      out, vjp = jax.vjp(attend, q, k, v)
      return vjp(out)

    return run, (x, x, x, groups)

  temporary = []
  for rounds in (2, 8):
    run, arguments = trace(rounds)
    closed = jax.make_jaxpr(run)(*arguments)
    jaxpr_walker.assert_no_intermediate(closed, at_least=length**2)
    compiled = jax.jit(run).lower(*arguments).compile()
    temporary.append(compiled.memory_analysis().temp_size_in_bytes)
  orders = 6 * 4 * 4 * length  # Of six more rounds, some kinds of int32.
  assert temporary[1] - temporary[0] < 4 * orders, temporary


def test_wrong_arguments_are_named():
  q, k, v = _draw()
  groups, reach = jnp.asarray(_groups(2)), Reach(chunk=8)
  run = functools.partial(bucketed.bucketed_attention, reach=reach)
  with pytest.raises(ValueError, match="37.*36"):
    run(q, k[:, 1:], v[:, 1:], groups)
  with pytest.raises(ValueError, match="groups must be"):
    run(q, k, v, groups[0])
  with pytest.raises(ValueError, match="integers"):
    run(q, k, v, groups.astype(jnp.float32))
  with pytest.raises(NotImplementedError, match="need a TPU"):
    run(q, k, v, groups, implementation="pallas")
  for options in (dict(chunk=0), dict(before=-1), dict(window=0)):
    with pytest.raises(ValueError, match="must be"):
      Reach(**{"chunk": 4, **options})


def test_no_rows_and_no_tokens():
  for shape in ((0, 5), (2, 0)):
    x = jnp.zeros((*shape, 2, 8))
    groups = jnp.zeros((1, *shape, 2), jnp.int32)
    found = bucketed.bucketed_attention(x, x, x, groups, reach=Reach(chunk=4))
    chex.assert_shape(found.out, x.shape)
