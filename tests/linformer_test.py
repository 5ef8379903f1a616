"""Linformer against naive forms, its limit cases, sharing, draws, errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from tests import method_cases as cases
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

_LENGTH, _SLOTS, _LONGEST = 13, 5, 17


def _matrix(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape) * shape[-1] ** -0.5


def _mask(seed, length=_LENGTH, queries=_LENGTH):
  rng = np.random.default_rng(seed)
  return jaxattn.Mask(
    key_valid=jnp.asarray(rng.random((cases.BATCH, length)) < 0.7),
    query_valid=jnp.asarray(rng.random((cases.BATCH, queries)) < 0.7),
  )


@functools.partial(jax.jit, static_argnames=("attend",))
def _pull(attend, arrays, mask, cotangent):
  out, vjp = jax.vjp(lambda *arrays: attend(*arrays, mask=mask), *arrays)
  return out, vjp(cotangent)


_op = jax.jit(jaxattn.linformer_attention)


@functools.partial(jax.jit, static_argnames=("method",))
def _apply(method, params, state, q, k, v, mask=jaxattn.FULL):
  return method.apply(params, state, q, k, v, mask=mask)[0]


def _both(got, want, arrays, mask=jaxattn.FULL, tolerance=1e-5):
  """Compares two functions in value and gradient."""
  shape = (*arrays[0].shape[:-1], arrays[2].shape[-1])
  ct = jax.random.normal(jax.random.key(99), shape)
  found = _pull(got, tuple(arrays), mask, ct)
  wanted = _pull(want, tuple(arrays), mask, ct)
  assert_close(found[0], wanted[0])
  assert_close(found[1], wanted[1], tolerance)
  return found


@jax.jit
def _naive(query, key, value, e, f, *, mask=jaxattn.FULL):
  """Softmax over the tokens made, one matrix a head, as the paper has it."""
  heads, length = key.shape[2], key.shape[1]
  if mask.key_valid is not None:
    keep = mask.key_valid[..., None, None]
    key, value = jnp.where(keep, key, 0.0), jnp.where(keep, value, 0.0)
  made = []
  for x, matrix in ((key, e), (value, f)):
    if matrix.ndim == 2:
      matrix = matrix[None]
    matrix = jnp.repeat(matrix[..., :length], heads // matrix.shape[0], axis=0)
    slots = jnp.einsum("kcs,bskh->bckh", matrix, x, precision="highest")
    made.append(jnp.repeat(slots, query.shape[2] // heads, axis=2))
  return _softmax(query, *made, mask)


@jax.jit
def _softmax(query, key, value, mask, slots=None):
  """Dense attention to slots, of which `slots [B, J]` count."""
  scores = jnp.einsum("btnh,bcnh->bntc", query, key, precision="highest")
  scores = scores * jnp.float32(query.shape[-1] ** -0.5)
  if slots is not None:
    scores = jnp.where(slots[:, None, None], scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1)
  out = jnp.einsum("bntc,bcnv->btnv", weights, value, precision="highest")
  if mask.query_valid is None:
    return out
  return jnp.where(mask.query_valid[..., None, None], out, 0.0)


@pytest.mark.parametrize(
  ("groups", "lengths", "masked"),
  [
    ((None, None), (_LENGTH, _LENGTH), True),
    ((2, 2), (_LENGTH, _LENGTH), True),
    ((None, 2), (7, _LONGEST), True),  # E acts on the length of the source.
    ((1, 2), (_LONGEST, 1), False),
  ],
)
def test_equals_a_naive_form(groups, lengths, masked):
  """In value and gradient, that of the matrices included."""
  q, k, v = cases.draw(1, length=_LONGEST)
  t, s = lengths
  e, f = (
    _matrix(i, *(() if g is None else (g,)), _SLOTS, _LONGEST)
    for i, g in enumerate(groups)
  )
  mask = _mask(0, s, t) if masked else jaxattn.FULL
  arrays = (q[:, :t], k[:, :s], v[:, :s], e, f)
  # Gradients pass two products more.
  _, grads = _both(jaxattn.linformer_attention, _naive, arrays, mask, 2e-5)
  assert_zero(grads[3][..., s:], grads[4][..., s:])
  assert np.abs(grads[3]).max() > 1e-3


@pytest.mark.parametrize("permuted", [False, True])
def test_identity_and_permutations_are_full_attention(permuted):
  q, k, v = cases.draw(2, length=_LENGTH)
  order = np.random.default_rng(3).permutation(_LENGTH)
  matrix = jnp.eye(_LENGTH)[order if permuted else np.arange(_LENGTH)]

  def attend(q, k, v, *, mask):
    return jaxattn.linformer_attention(q, k, v, matrix, matrix, mask=mask)

  _both(attend, jaxattn.dense_attention, (q, k, v))


def test_weights_sum_to_one_over_the_tokens_made():
  """Values whose mixtures are all ones come out as ones."""
  q, k, v = cases.draw(3, length=_LENGTH)
  e, f = _matrix(0, _SLOTS, _LENGTH), _matrix(1, _SLOTS, _LENGTH)
  f = f / jnp.sum(f, axis=-1, keepdims=True)
  out = _op(q, k, jnp.ones_like(v), e, f)
  assert_close(out, jnp.ones_like(out))


def test_is_linear_in_values():
  q, k, v = cases.draw(4, length=_LENGTH)
  other = cases.draw(5, length=_LENGTH)[2]
  e, f = _matrix(0, _SLOTS, _LENGTH), _matrix(1, _SLOTS, _LENGTH)
  one, two, both = (
    _op(q, k, x, e, f) for x in (v, other, 2.0 * v - 3.0 * other)
  )
  assert_close(both, 2.0 * one - 3.0 * two)


def test_depends_on_places_unless_columns_move_along():
  q, k, v = cases.draw(6, length=_LENGTH)
  e, f = _matrix(0, _SLOTS, _LENGTH), _matrix(1, _SLOTS, _LENGTH)
  order = np.random.default_rng(3).permutation(_LENGTH)
  want = _op(q, k, v, e, f)
  moved = (q, k[:, order], v[:, order])
  other = _op(*moved, e, f)
  assert np.abs(other - want).max() > 1e-2
  got = _op(*moved, e[:, order], f[:, order])
  assert_close(got, want)


def test_shorter_inputs_equal_padded_and_masked_ones():
  """Columns `[:n]`: as zeros to the end, and as what is there, masked."""
  q, k, v = cases.draw(7, length=_LONGEST)
  e, f = _matrix(0, _SLOTS, _LONGEST), _matrix(1, 2, _SLOTS, _LONGEST)
  short = (k[:, :_LENGTH], v[:, :_LENGTH])
  want = _op(q, *short, e, f)
  sliced = _op(q, *short, e[:, :_LENGTH], f[..., :_LENGTH])
  assert_close(sliced, want, 1e-6)
  spare = ((0, 0), (0, _LONGEST - _LENGTH), (0, 0), (0, 0))
  padded = [jnp.pad(x, spare) for x in short]
  assert_close(_op(q, *padded, e, f), want)
  valid = jnp.tile(jnp.arange(_LONGEST)[None] < _LENGTH, (cases.BATCH, 1))
  mask = jaxattn.Mask(key_valid=valid)
  got = _op(q, k * 3.0, v * 3.0, e, f, mask=mask)
  scaled = _op(q, short[0] * 3.0, short[1] * 3.0, e, f)
  assert_close(got, scaled)


# The method: sharing.


def _method(**options):
  options = {"max_length": _LONGEST, "k": _SLOTS, **options}
  return jaxattn.linformer(**options)


def _init(method, seed=0):
  return method.init(jax.random.key(seed), cases.shapes())


@pytest.mark.parametrize(
  ("sharing", "names", "lead"),
  [
    ("none", {"key", "value"}, (cases.KV_HEADS,)),
    ("headwise", {"key", "value"}, ()),
    ("key_value", {"key_value"}, ()),
    ("layerwise", {"key_value"}, ()),
  ],
)
@pytest.mark.parametrize("projection", ["linear", "convolution"])
def test_sharing(sharing, names, lead, projection):
  """What there is of parameters, and that it is what the op is given."""
  method = _method(sharing=sharing, projection=projection)
  params, state = _init(method)
  assert state == ()
  assert set(params) == names
  one = (_SLOTS, _LONGEST) if projection == "linear" else (method.window,)
  assert {x.shape for x in params.values()} == {(*lead, *one)}
  arrays = cases.draw(8, length=_LENGTH)
  both = [params.get(n, params.get("key_value")) for n in ("key", "value")]
  if projection == "convolution":
    both = [_block_matrix(kernel, _LENGTH) for kernel in both]
  want = _naive(*arrays, *both)
  assert_close(_apply(method, params, state, *arrays), want)
  assert method.shared_params == (sharing == "layerwise")
  if len(params) == 2:
    assert np.abs(params["key"] - params["value"]).max() > 1e-2


def _block_matrix(kernel, length):
  """The matrix `[..., J, length]` of a convolution."""
  window = kernel.shape[-1]
  rows = []
  for start in range(0, length, window):
    here = kernel[..., : length - start]
    around = [(0, 0)] * (kernel.ndim - 1)
    after = length - start - here.shape[-1]
    rows.append(jnp.pad(here, (*around, (start, after))))
  return jnp.stack(rows, axis=-2)


def test_one_matrix_gets_the_gradient_of_both_uses():
  arrays = tuple(cases.draw(9, length=_LENGTH))
  method = _method(sharing="key_value")
  params, _ = _init(method)
  e = params["key_value"]
  ct = cases.cotangent(length=_LENGTH)

  def attend(e, f, *arrays, mask):
    return jaxattn.linformer_attention(*arrays, e, f, mask=mask)

  _, (de, df, *_) = _pull(attend, (e, e, *arrays), jaxattn.FULL, ct)

  def loss(params):
    return jnp.vdot(_apply(method, params, (), *arrays), ct)

  got = jax.grad(loss)(params)
  assert_close(got["key_value"], de + df, 2e-5)


@pytest.mark.parametrize("projection", ["linear", "convolution"])
def test_untrained_projections_are_state(projection):
  options = dict(sharing="none", projection=projection)
  trained, fixed = (_method(trainable=t, **options) for t in (True, False))
  arrays = cases.draw(10, length=_LENGTH)
  params, (nothing, state) = _init(trained)[0], _init(fixed)
  assert nothing == ()
  assert_close(state, params, 0.0)
  want = _apply(trained, params, (), *arrays)
  assert_close(_apply(fixed, (), state, *arrays), want, 0.0)
  grad = jax.grad(lambda s: jnp.sum(_apply(fixed, (), s, *arrays)))(state)
  assert_zero(*jax.tree.leaves(grad))


# The method: convolution and pooling.


def test_mean_pooling_is_a_matrix_of_equal_weights():
  """Rows `1 / w` on blocks; the last block has what is left of the input."""
  method = _method(projection="mean")
  window = method.window
  rows = np.zeros((-(-_LENGTH // window), _LENGTH), np.float32)
  for start in range(0, _LENGTH, window):
    here = slice(start, start + window)
    rows[start // window, here] = 1 / len(rows[0, here])
  arrays = cases.draw(11, length=_LENGTH)
  assert _init(method) == ((), ())

  def attend(*arrays, mask):
    return method.apply((), (), *arrays, mask=mask)[0]

  def want(*arrays, mask):
    return _naive(*arrays, jnp.asarray(rows), jnp.asarray(rows), mask=mask)

  _both(attend, want, arrays)


def _naive_pool(x, window, valid, kind):
  """One batch row and window at a time, in NumPy."""
  x, valid = np.asarray(x), np.asarray(valid)
  count = -(-x.shape[1] // window)
  out = np.zeros((x.shape[0], count, *x.shape[2:]), np.float32)
  found = np.zeros((x.shape[0], count), bool)
  for row, at in itertools.product(range(x.shape[0]), range(count)):
    here = slice(at * window, (at + 1) * window)
    chosen = x[row, here][valid[row, here]]
    found[row, at] = len(chosen) > 0
    if len(chosen):
      out[row, at] = getattr(chosen, kind)(axis=0)
  return out, found


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_pooling_under_a_mask(kind):
  """Masked tokens count nowhere; a window of them gives nothing to see."""
  valid = np.random.default_rng(1).random((cases.BATCH, _LENGTH)) < 0.7
  valid[0, 4:8] = False  # A window of its own.
  q, k, v = cases.draw(12, length=_LENGTH)
  method = _method(projection=kind)
  assert method.window == 4
  (slots, found), (mixed, _) = (_naive_pool(x, 4, valid, kind) for x in (k, v))
  got, kept = jaxattn.pool_tokens(k, 4, kind=kind, valid=jnp.asarray(valid))
  assert_close(got, slots)
  np.testing.assert_array_equal(kept, found)
  assert not found.all()
  wide = [jnp.repeat(jnp.asarray(x), 2, axis=2) for x in (slots, mixed)]
  want = _softmax(q, *wide, jaxattn.FULL, jnp.asarray(found))
  mask = jaxattn.Mask(key_valid=jnp.asarray(valid))
  assert_close(_apply(method, (), (), q, k, v, mask), want)


def test_convolution_with_one_weight_picks_tokens():
  """One token a window, and so dense attention to these."""
  q, k, v = cases.draw(13, length=12)
  method = _method(max_length=16, k=4, projection="convolution")
  params = {"key": jnp.eye(4)[2], "value": jnp.eye(4)[2]}
  got = _apply(method, params, (), q, k, v)
  want = jax.jit(jaxattn.dense_attention)(q, k[:, 2::4], v[:, 2::4])
  assert_close(got, want)


def test_convolution_under_a_mask():
  valid = jnp.ones((cases.BATCH, _LENGTH), bool).at[0, 4:8].set(False)
  valid = valid.at[1, 5].set(False)
  mask = jaxattn.Mask(key_valid=valid)
  q, k, v = cases.draw(14, length=_LENGTH)
  method = _method(projection="convolution", sharing="none")
  params, _ = _init(method)
  made = []
  for name, x in (("key", k), ("value", v)):
    matrix = _block_matrix(params[name], _LENGTH)
    kept = jnp.where(valid[..., None, None], x, 0.0)
    slots = jnp.einsum("kcs,bskh->bckh", matrix, kept, precision="highest")
    made.append(jnp.repeat(slots, 2, axis=2))
  seen = jnp.ones((cases.BATCH, 4), bool).at[0, 1].set(False)
  want = _softmax(q, *made, jaxattn.FULL, seen)
  assert_close(_apply(method, params, (), q, k, v, mask), want)


@pytest.mark.parametrize("projection", ["linear", "convolution", "mean", "max"])
def test_more_tokens_made_than_there_are(projection):
  """Pointless, and harmless; a window of one token is attention to all."""
  arrays = cases.draw(15, length=_LENGTH)
  method = _method(k=40, projection=projection)
  params, state = _init(method)
  out = _apply(method, params, state, *arrays)
  if projection in ("mean", "max"):
    assert_close(out, jax.jit(jaxattn.dense_attention)(*arrays))
  else:
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
  ("init", "variance"),
  [("normal", 8.0), ("uniform", 8 / 3), ("xavier", 8 / 9), ("scaled", 1.0)],
)
def test_kernels_are_drawn_as_matrices_are(init, variance):
  """The same sizes; 4096 kernels of 8 weights, variance off by 1% or so."""
  method = jaxattn.linformer(
    max_length=2048, k=256, sharing="none", projection="convolution", init=init
  )
  shapes = jaxattn.AttentionShapes(num_heads=4096, head_dim=1)
  kernels = method.init(jax.random.key(0), shapes)[0]["key"]
  assert kernels.shape == (4096, 8)
  np.testing.assert_allclose(8 * np.var(kernels), variance, rtol=0.04)


# Refusals.


@pytest.mark.parametrize("projection", ["linear", "convolution", "mean", "max"])
def test_refuses_causal_and_says_why(projection):
  method = _method(projection=projection)
  params, state = _init(method)
  arrays = cases.draw(0, length=4)
  with pytest.raises(NotImplementedError, match="mix keys of all.*mask.causal"):
    method.apply(params, state, *arrays, mask=jaxattn.CAUSAL)
  with pytest.raises(NotImplementedError, match="does not decode.*strict"):
    method.extend(params, state, (), *arrays)


@pytest.mark.parametrize("projection", ["linear", "convolution", "mean", "max"])
def test_refuses_longer_inputs(projection):
  method = _method(projection=projection)
  params, state = _init(method)
  q, k, v = cases.draw(0, length=_LONGEST + 1)
  with pytest.raises(ValueError, match="18 keys exceed max_length 17"):
    method.apply(params, state, q, k, v)
  out = _apply(method, params, state, q, k[:, 1:], v[:, 1:])
  assert out.shape[1] == _LONGEST + 1  # Queries have no end.


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"max_length": 0}, "max_length must be positive, got 0"),
    ({"k": 0}, "k must be positive, got 0"),
    ({"sharing": "all"}, "sharing must be one of .*'layerwise'"),
    ({"projection": "fourier"}, "projection must be one of .*'max'"),
    ({"init": "zeros"}, "init must be one of .*'xavier'"),
    ({"projection": "mean", "sharing": "none"}, "'mean' has no parameters"),
    ({"projection": "max", "trainable": False}, "'max' has no parameters"),
  ],
)
def test_wrong_options(options, message):
  with pytest.raises(ValueError, match=message):
    _method(**options)


def test_wrong_arrays():
  q, k, v = cases.draw(0, length=4)
  one = jnp.ones((3, 4))
  for e, f, message in (
    (one, one[:2], r"equally many tokens.*\(3, 4\).*\(2, 4\)"),
    (
      one[:, :3],
      one,
      r"4 keys exceed the max_length 3 of key_projection \(3, 3\)",
    ),
    (one, jnp.ones((3, 3, 4)), "value_projection must be .* 2 key heads"),
    (one[0], one, "key_projection must be"),
  ):
    with pytest.raises(ValueError, match=message):
      jaxattn.linformer_attention(q, k, v, e, f)
