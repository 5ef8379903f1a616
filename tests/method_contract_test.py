"""The contract of every attention method; see also the other method_* tests."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from tests import method_cases as cases
from tests.method_cases import assert_close
from tests.method_cases import assert_zero
from tests.method_cases import for_every
from tests.method_cases import METHODS

_FIELDS = {f.name for f in dataclasses.fields(jaxattn.Mask)}
_PARTS = ("query", "key", "value")


def _serves_causal(name):
  """Whether the causal contract applies; if not, checks the refusal."""
  method = METHODS[name].method
  if method.causality != "none":
    return True
  with pytest.raises(NotImplementedError, match="causal"):
    cases.pull(name, cases.draw(0), jaxattn.CAUSAL)
  return False


def _row(t):
  """A cotangent that looks at one query only."""
  return cases.cotangent() * (jnp.arange(cases.LENGTH) == t).astype(
      jnp.float32
  ).reshape(1, -1, 1, 1)  # fmt: skip


def _is_felt(name, part, effect, least):
  """Whether `effect` is above `least`, or exactly zero if `part` is inert."""
  if part in METHODS[name].inert:
    return not np.any(effect)
  return np.abs(effect).max() > least


@for_every
def test_is_a_value(name):
  method = METHODS[name].method
  copy = dataclasses.replace(method)
  assert isinstance(method, jaxattn.AttentionMethod)
  assert copy is not method
  assert copy == method
  assert hash(copy) == hash(method)
  assert method.honours <= _FIELDS
  assert method.causality in ("none", "values", "strict")
  assert ("causal" in method.honours) == (method.causality != "none")
  assert sum(method == case.method for case in METHODS.values()) == 1


@for_every
def test_equal_methods_share_one_trace(name):
  chex.clear_trace_counter()
  params, state = cases.variables(name)

  @chex.assert_max_traces(n=1)
  def attend(method, q, k, v):
    return method.apply(params, state, q, k, v)[0]

  attend = jax.jit(attend, static_argnums=0)
  attend(METHODS[name].method, *cases.draw(0, length=4))
  attend(dataclasses.replace(METHODS[name].method), *cases.draw(1, length=4))


@for_every
def test_init_is_abstract_and_keeps_dtype(name):
  method = METHODS[name].method
  for dtype in (jnp.float32, jnp.bfloat16):
    shapes = cases.shapes(dtype=dtype)
    real = method.init(jax.random.key(0), shapes)
    abstract = jax.eval_shape(
      lambda rng, shapes=shapes: method.init(rng, shapes), jax.random.key(0)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(real, abstract)
    for leaf in jax.tree.leaves(real[0]):
      assert leaf.dtype == dtype


@for_every
@pytest.mark.parametrize("causal", [False, True])
def test_equals_softmax_over_its_edges(name, causal):
  """In value and gradient, under a mask with every field set."""
  if METHODS[name].edges is None or causal and not _serves_causal(name):
    pytest.skip("no softmax over static edges")
  qkv, mask = tuple(cases.draw(1)), cases.random_mask(name, causal=causal)
  ct = cases.cotangent()
  got = cases.pull(name, qkv, mask, ct)
  want = cases.pull_reference(name, cases.variables(name)[0], qkv, mask, ct)
  assert_close(got, want, 2e-5)  # Gradients pass two more products.


@for_every
def test_masked_keys_have_no_influence(name):
  if "key_valid" not in METHODS[name].method.honours:
    pytest.skip("refuses key_valid")
  valid = np.random.default_rng(0).random((cases.BATCH, cases.LENGTH)) < 0.6
  mask = jaxattn.Mask(key_valid=jnp.asarray(valid))
  q, k, v = cases.draw(2)
  away = jnp.asarray(~valid)[..., None, None]
  loud = jnp.where(away, 1e4, 0.0)  # A softmax that saw it would see only it.
  out, (_, grads) = cases.pull(name, (q, k, v), mask, cases.cotangent())
  noisy, (_, noisy_grads) = cases.pull(
    name, (q, k + loud, v + loud), mask, cases.cotangent()
  )
  assert_close(noisy, out, 1e-6)
  assert_close(noisy_grads, grads, 1e-6)
  for part, grad in zip(("key", "value"), grads[1:], strict=True):
    assert_zero(grad[~valid])
    assert _is_felt(name, part, grad[valid], 1e-3)


@for_every
def test_invalid_queries_are_zero_and_inert(name):
  if "query_valid" not in METHODS[name].method.honours:
    pytest.skip("refuses query_valid")
  valid = np.random.default_rng(1).random((cases.BATCH, cases.LENGTH)) < 0.6
  mask = cases.every_field(name, causal=False, query_valid=jnp.asarray(valid))
  q, k, v = cases.draw(3)
  out, (_, (dq, dk, dv)) = cases.pull(name, (q, k, v), mask)
  assert_zero(out[~valid], dq[~valid])
  assert np.abs(out[valid]).max() > 1e-3
  loud = jnp.where(jnp.asarray(~valid)[..., None, None], 1e4, 0.0)
  ct = 1.0 + loud  # Nor does what happens to their outputs matter.
  ct = jnp.broadcast_to(ct, cases.cotangent().shape)
  noisy, (_, got) = cases.pull(name, (q + loud, k, v), mask, ct)
  assert_close((noisy, got), (out, (dq, dk, dv)), 1e-6)


@for_every
def test_segments_do_not_mix(name):
  if "key_segment_ids" not in METHODS[name].method.honours:
    pytest.skip("refuses segment ids")
  # Interleaved, so that any window has the other segment in it.
  index = np.arange(cases.LENGTH) % 2
  ids = jnp.tile(jnp.asarray(index, jnp.int32)[None], (cases.BATCH, 1))
  mask = cases.every_field(
    name, causal=False, query_segment_ids=ids, key_segment_ids=ids
  )
  qkv = cases.draw(4)
  other = jnp.where(ids[..., None, None] == 1, 50.0, 0.0)
  out, _ = cases.pull(name, qkv, mask)
  loud, _ = cases.pull(name, [x + other for x in qkv], mask)
  assert_close(loud[:, index == 0], out[:, index == 0], 1e-6)
  assert np.abs(loud[:, index == 1] - out[:, index == 1]).max() > 1
  _, (_, grads) = cases.pull(name, qkv, mask, _row(20))
  for part, grad in zip(("key", "value"), grads[1:], strict=True):
    assert_zero(grad[:, index == 1])
    assert _is_felt(name, part, grad[:, index == 0], 1e-4)


@for_every
def test_honours_what_it_declares_and_refuses_the_rest(name):
  method = METHODS[name].method
  params, state = cases.variables(name)
  qkv = cases.draw(5)
  half = jnp.tile((jnp.arange(cases.LENGTH) % 3 > 0)[None], (cases.BATCH, 1))
  back = jnp.tile(jnp.arange(cases.LENGTH)[None, ::-1], (cases.BATCH, 1))
  groups = {
    ("key_valid",): dict(key_valid=half),
    ("query_valid",): dict(query_valid=half),
    ("query_segment_ids", "key_segment_ids"): dict(
      query_segment_ids=half.astype(jnp.int32),
      key_segment_ids=half.astype(jnp.int32),
    ),
    ("query_positions",): dict(query_positions=back),
    ("key_positions",): dict(key_positions=back),
  }
  for fields, change in groups.items():
    causal = fields[0].endswith("positions")
    if method.honours.issuperset(fields):
      plain, _ = cases.pull(name, qkv, cases.every_field(name, causal=causal))
      mask = cases.every_field(name, causal=causal, **change)
      changed, _ = cases.pull(name, qkv, mask)
      assert np.abs(plain - changed).max() > 1e-3, fields
    else:
      with pytest.raises(NotImplementedError, match="honour"):
        mask = jaxattn.Mask(causal=causal, **change)
        method.apply(params, state, *qkv, mask=mask)


@for_every
def test_rows_without_keys_are_zero(name):
  if "key_valid" not in METHODS[name].method.honours:
    pytest.skip("refuses key_valid")
  valid = jnp.ones((cases.BATCH, cases.LENGTH), bool).at[0].set(False)
  for mask in (
    jaxattn.Mask(key_valid=valid),
    cases.every_field(name, causal=False, key_valid=valid),
  ):
    out, (params, grads) = cases.pull(name, cases.draw(6), mask)
    chex.assert_tree_all_finite((out, params, grads))
    assert_zero(out[0], *(grad[0] for grad in grads))
    assert np.abs(out[1]).max() > 1e-3


@for_every
def test_causal_by_gradient(name):
  """No output depends on a later token; it does on its own."""
  if not _serves_causal(name):
    return
  strict = METHODS[name].method.causality == "strict"
  for t in (0, 10, 32, 40):
    _, (_, (dq, dk, dv)) = cases.pull(
      name, cases.draw(7), jaxattn.CAUSAL, _row(t)
    )
    assert_zero(dv[:, t + 1 :])
    if strict:
      assert_zero(dk[:, t + 1 :], dq[:, t + 1 :])
    own = dv[:, :t] if t and METHODS[name].self_last else dv[:, t]
    assert np.abs(own).max() > 1e-3
    assert t == 0 or _is_felt(name, "query", dq[:, t], 1e-4)


@for_every
def test_causal_by_large_perturbation(name):
  """What comes from `cut` on changes nothing before, and something after."""
  if not _serves_causal(name):
    return
  cut, qkv, other = 17, cases.draw(8), cases.draw(9, scale=6.0)
  out, _ = cases.pull(name, qkv, jaxattn.CAUSAL)
  which = (0, 1, 2, slice(0, 3))
  if METHODS[name].method.causality == "values":
    which = (2,)
  for part in which:
    late = list(qkv)
    late[part] = jax.tree.map(
      lambda x, y: x.at[:, cut:].set(y[:, cut:]), qkv[part], other[part]
    )
    got, _ = cases.pull(name, late, jaxattn.CAUSAL)
    assert_close(got[:, :cut], out[:, :cut], 1e-6)
    changed = "value" if part == slice(0, 3) else _PARTS[part]
    assert _is_felt(name, changed, got[:, cut:] - out[:, cut:], 1e-2)


@for_every
def test_causal_compares_positions(name):
  """With reversed positions, the future is what stands before."""
  if "key_positions" not in METHODS[name].method.honours:
    pytest.skip("refuses positions")
  order = jnp.tile(jnp.arange(cases.LENGTH)[None, ::-1], (cases.BATCH, 1))
  mask = cases.every_field(
    name, causal=True, query_positions=order, key_positions=order
  )
  for t in (3, 20):
    _, (_, (_, dk, dv)) = cases.pull(name, cases.draw(10), mask, _row(t))
    assert_zero(dk[:, :t], dv[:, :t])
    own = dv[:, t + 1 :] if METHODS[name].self_last else dv[:, t]
    assert np.abs(own).max() > 1e-3


@for_every
def test_ones_give_ones(name):
  """Every row is a convex combination of values, or zero."""
  if not METHODS[name].convex:
    pytest.skip("mixes values by weights of any sign and sum")
  q, k, v = cases.draw(11)
  for mask in (jaxattn.FULL, cases.random_mask(name, causal=False)):
    out, _ = cases.pull(name, (q, k, jnp.ones_like(v)), mask)
    rows = np.asarray(out).max(-1)
    assert np.all((np.abs(out - 1) < 1e-5) | (out == 0))
    assert rows.max() > 0.5


@for_every
def test_batch_is_vmap(name):
  method = METHODS[name].method
  params, state = cases.variables(name)

  def attend(q, k, v):
    return method.apply(params, state, q, k, v)[0]

  qkv = cases.draw(12)
  want, _ = cases.pull(name, qkv, jaxattn.FULL)
  assert_close(jax.jit(jax.vmap(attend))(*qkv), want, 1e-6)
  two_axes = [x.reshape(2, 1, *x.shape[1:]) for x in qkv]
  got = jax.jit(attend)(*two_axes)
  assert_close(got.reshape(want.shape), want, 1e-6)


@for_every
def test_without_jit_and_state_is_kept(name):
  method = METHODS[name].method
  params, state = cases.variables(name)
  qkv, mask = cases.draw(13), cases.every_field(name, causal=False)
  out, new_state = method.apply(params, state, *qkv, mask=mask, train=False)
  assert_close(out, cases.pull(name, qkv, mask)[0], 1e-6)
  chex.assert_trees_all_equal(new_state, state)


@for_every
def test_remat_agrees(name):
  method = METHODS[name].method
  params, state = cases.variables(name)
  qkv, ct = tuple(cases.draw(14)), cases.cotangent()

  @jax.checkpoint
  def attend(params, qkv):
    return method.apply(params, state, *qkv)[0]

  got = jax.jit(lambda p, x: jax.vjp(attend, p, x)[1](ct))(params, qkv)
  assert_close(got, cases.pull(name, qkv, jaxattn.FULL, ct)[1], 1e-6)


@for_every
def test_grouped_queries_are_repeated_keys(name):
  q, k, v = cases.draw(15)
  group = cases.HEADS // cases.KV_HEADS
  ct = cases.cotangent()
  out, (_, (dq, dk, dv)) = cases.pull(name, (q, k, v), jaxattn.FULL, ct)
  full = (q, jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2))
  want, (_, grads) = cases.pull(name, full, jaxattn.FULL, ct)
  summed = [
    g.reshape(*g.shape[:2], cases.KV_HEADS, group, -1).sum(3) for g in grads[1:]
  ]
  assert_close((out, dq, dk, dv), (want, grads[0], *summed))


@for_every
def test_bfloat16_is_near_float32(name):
  """2e-2 is five roundings of bfloat16 (2^-8), relative to the largest."""
  qkv = [x.astype(jnp.bfloat16) for x in cases.draw(16)]
  ct = cases.cotangent().astype(jnp.bfloat16)
  got = cases.pull(name, qkv, jaxattn.FULL, ct)
  rounded = [x.astype(jnp.float32) for x in qkv]
  want = cases.pull(name, rounded, jaxattn.FULL, ct.astype(jnp.float32))
  assert got[0].dtype == jnp.bfloat16
  assert [x.dtype for x in got[1][1]] == [jnp.bfloat16] * 3
  assert_close(got, want, 2e-2)


@for_every
@pytest.mark.parametrize(
  "lengths",
  [(1, 1), (7, 7), (16, 16), (17, 17), (7, 31), (17, 5)],
)
def test_any_length_equals_its_padding(name, lengths):
  """A length of its own, and inside a longer one with the rest masked."""
  t, s = lengths
  whole_array = METHODS[name].whole_array
  q, k, v = cases.draw(17)
  q, k, v = q[:, :t], k[:, :s], v[:, :s]
  if t != s and METHODS[name].self_only:
    with pytest.raises(ValueError, match=f"{t}.*{s}"):
      cases.pull(name, (q, k, v), jaxattn.FULL)
    return
  if whole_array and t != s:
    pytest.skip("takes one length only")
  causal = t == s and METHODS[name].method.causality != "none"
  out, (_, grads) = cases.pull(name, (q, k, v), jaxattn.Mask(causal=causal))
  chex.assert_tree_all_finite((out, grads))
  assert out.shape == (cases.BATCH, t, cases.HEADS, cases.VALUE)
  honours = METHODS[name].method.honours
  if whole_array or not honours >= {"key_valid", "query_valid"}:
    return
  index = jnp.tile(jnp.arange(cases.LENGTH)[None], (cases.BATCH, 1))
  mask = cases.every_field(
    name, causal=causal, key_valid=index < s, query_valid=index < t
  )
  padded = [
    jnp.pad(x, ((0, 0), (0, cases.LENGTH - x.shape[1]), (0, 0), (0, 0)))
    for x in (q, k, v)
  ]
  want, (_, want_grads) = cases.pull(name, padded, mask)
  assert_close(out, want[:, :t], 2e-6)
  for got, whole, n in zip(grads, want_grads, (t, s, s), strict=True):
    assert_close(got, whole[:, :n], 2e-5)


def test_a_wrong_shape_is_named_before_any_work():
  q, k, v = cases.draw(18)
  for name in METHODS:
    with pytest.raises(ValueError, match="query, key and value"):
      cases.pull(name, (q, k[..., 0], v), jaxattn.FULL)
    with pytest.raises(ValueError, match="last axis"):
      cases.pull(name, (q, k[..., :5], v), jaxattn.FULL)
    with pytest.raises(ValueError, match="key_valid"):
      mask = jaxattn.Mask(key_valid=jnp.ones((cases.BATCH, 3), bool))
      cases.pull(name, (q, k, v), mask)
