"""Performer against naive sums, and the redrawing of its state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxattn
from experiments.common import files
from experiments.common import methods
from jaxattn._src import favor
from jaxattn.models import decoder
from jaxattn.nn import nnx as nnx_layers
from tests.method_cases import assert_close

_LENGTH, _HEADS, _DEPTH = 64, 2, 8
_METHODS = {
  "positive": jaxattn.performer(num_features=12),
  "hyperbolic": jaxattn.performer(
    num_features=12, kind="hyperbolic", projection="iid"
  ),
  "trigonometric": jaxattn.performer(num_features=24, kind="trigonometric"),
  "sqrt": jaxattn.performer(
    num_features=12, projection="hadamard", norms="sqrt"
  ),
  "relu": jaxattn.performer(kind="generalized", projection=None),
  "softplus": jaxattn.performer(
    kind="generalized",
    num_features=12,
    function=jax.nn.softplus,
    epsilon=0.0,
    scaled=True,
  ),
}
_of_exponentials = pytest.mark.parametrize("name", ["positive", "hyperbolic"])


@functools.cache
def _state(name):
  shapes = jaxattn.AttentionShapes(num_heads=_HEADS, head_dim=_DEPTH)
  params, state = _METHODS[name].init(jax.random.key(3), shapes)
  assert params == ()
  return state


def _qkv(seed, length=_LENGTH, scale=1.0):
  x = jax.random.normal(jax.random.key(seed), (3, 2, length, _HEADS, _DEPTH))
  return scale * x[0], scale * x[1], x[2]


@functools.partial(jax.jit, static_argnames=("method",))
def _pull_jitted(method, state, mask, qkv, ct):
  out, vjp = jax.vjp(
    lambda qkv: method.apply((), state, *qkv, mask=mask)[0], qkv
  )
  return out, vjp(ct)[0]


def _pull(name, qkv, ct, *, causal, key_valid=None):
  """Output, and gradients."""
  mask = jaxattn.Mask(causal=causal, key_valid=key_valid)
  return _pull_jitted(_METHODS[name], _state(name), mask, tuple(qkv), ct)


def _features(name, x):
  """The features as the paper writes them."""
  method, depth = _METHODS[name], x.shape[-1]
  if name == "relu":
    return jnp.maximum(x, 0) + method.epsilon
  w = jnp.asarray(np.asarray(_state(name)["projection"], np.float64))
  x = x * depth**-0.25
  wx, half = x @ w.T, (x * x).sum(-1, keepdims=True) / 2
  if name == "softplus":
    return jnp.logaddexp(wx, 0.0)
  if name == "trigonometric":
    return jnp.exp(half) * jnp.concatenate([jnp.sin(wx), jnp.cos(wx)], -1)
  if name == "hyperbolic":
    wx = jnp.concatenate([wx, -wx], -1)
  return jnp.exp(wx - half)


def _naive(name, qkv, causal):
  """All weights, in float64."""
  q, k, v = qkv
  weights = jnp.einsum(
    "btnf,bsnf->bnts", _features(name, q), _features(name, k)
  )
  if causal:
    weights = jnp.where(np.tri(q.shape[1], dtype=bool)[None, None], weights, 0)
  weights = weights / weights.sum(-1, keepdims=True)
  return jnp.einsum("bnts,bsnv->btnv", weights, v)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", list(_METHODS))
def test_equals_the_naive_sum(name, causal):
  """In value and gradient; sines need small inputs for a safe normaliser."""
  qkv = _qkv(0, scale=0.3 if name == "trigonometric" else 1.0)
  ct = jnp.cos(_qkv(1)[0])
  got = _pull(name, qkv, ct, causal=causal)
  with jax.enable_x64(True):
    exact = [jnp.asarray(np.asarray(x, np.float64)) for x in qkv]
    out, vjp = jax.vjp(lambda qkv: _naive(name, qkv, causal), tuple(exact))
    want = out, vjp(jnp.asarray(np.asarray(ct, np.float64)))[0]
    want = jax.tree.map(np.asarray, want)
  assert_close(got, want, 2e-5)


def _with_maximum_over_keys(q, k, v, w, epsilon=1e-4):
  """Causal attention with the stabiliser that is common, in float32."""
  scaled = [x * x.shape[-1] ** -0.25 for x in (q, k)]
  logits = [x @ w.T for x in scaled]
  tops = logits[0].max(-1, keepdims=True), logits[1].max((1, 3), keepdims=True)
  phi = [
    np.exp(a - (x * x).sum(-1, keepdims=True) / 2 - top) + epsilon
    for a, x, top in zip(logits, scaled, tops, strict=True)
  ]
  weights = np.einsum("btnf,bsnf->bnts", *phi) * np.tri(q.shape[1])
  weights = weights / weights.sum(-1, keepdims=True)
  return np.einsum("bnts,bsnv->btnv", weights, v)


@_of_exponentials
def test_a_huge_later_token_changes_nothing_at_all(name):
  """Not even the rounding; the common stabiliser would change much."""
  cut, ct = 41, jnp.ones(_qkv(0)[0].shape)
  q, k, v = _qkv(2)
  later = [x.at[:, cut:].add(1e3) for x in (q, k, v)]
  want = _pull(name, (q, k, v), ct, causal=True)[0][:, :cut]
  for loud in (tuple(later), (q, later[1], v)):
    got = _pull(name, loud, ct, causal=True)[0][:, :cut]
    np.testing.assert_array_equal(got, want)
  w = np.asarray(_state(name)["projection"])
  common = [
    _with_maximum_over_keys(*map(np.asarray, (q, x, v)), w)[:, :cut]
    for x in (k, later[1])
  ]
  assert np.abs(common[0] - common[1]).max() > 0.5


def test_padding_is_absent_from_both_sums():
  q, k, v = _qkv(4)
  valid = jnp.arange(_LENGTH)[None] < jnp.array([[40], [40]])
  valid = jnp.broadcast_to(valid, (2, _LENGTH))
  loud = jnp.where(valid[..., None, None], 0.0, 30.0)
  ct = jnp.ones(q.shape)
  for name in ("positive", "relu"):  # The second one adds an epsilon.
    for causal in (False, True):
      got, (dq, dk, dv) = _pull(
        name, (q, k + loud, v + loud), ct, causal=causal, key_valid=valid
      )
      cut = (q, *(x[:, :40] for x in (k, v)))
      if causal:
        cut = tuple(x[:, :40] for x in cut)
      want, grads = _pull(name, cut, jnp.ones(cut[0].shape), causal=causal)
      rows = cut[0].shape[1]
      assert_close(got[:, :rows], want)
      np.testing.assert_array_equal(dk[:, 40:], 0)
      np.testing.assert_array_equal(dv[:, 40:], 0)
      if not causal:
        assert_close((dq, dk[:, :40], dv[:, :40]), grads, 2e-5)


@_of_exponentials
@pytest.mark.parametrize("causal", [False, True])
def test_stabiliser_may_be_anything(name, causal):
  """Another factor for every token, kept as a logarithm, changes nothing."""
  w = _state(name)["projection"]
  features = {
    "positive": favor.positive_features,
    "hyperbolic": favor.hyperbolic_features,
  }[name]

  def moved(w, x):
    found = features(w, x)
    shift = jax.lax.stop_gradient(3.0 * jnp.sin(10.0 * x[..., 0]))
    return favor.Features(
      found.values * jnp.exp(shift)[..., None], found.log_scale - shift
    )

  ct = jnp.cos(_qkv(1)[0])

  @jax.jit
  def pull(qkv):
    out, vjp = jax.vjp(
      lambda qkv: jaxattn.linear_attention(
        *qkv,
        feature_map=jax.tree_util.Partial(moved, w),
        mask=jaxattn.Mask(causal=causal),
      ),
      qkv,
    )
    return out, vjp(ct)[0]

  qkv = _qkv(5)
  assert_close(pull(qkv), _pull(name, qkv, ct, causal=causal), 2e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [50.0, 1e3])
def test_large_inputs_stay_finite(causal, size):
  q, k, v = (x * size / jnp.linalg.norm(x, axis=-1, keepdims=True)
             for x in _qkv(6))  # fmt: skip
  for name in ("positive", "hyperbolic", "trigonometric"):
    found = _pull(name, (q, k, v), jnp.ones(q.shape), causal=causal)
    for array in jax.tree.leaves(found):
      assert np.isfinite(array).all()
  # Features that underflow leave rows of weights that sum to 1, or zero.
  ones = _pull("positive", (q, k, jnp.ones_like(v)), v, causal=causal)[0]
  ones = np.asarray(ones)
  assert np.all((np.abs(ones - 1) < 1e-5) | (ones == 0))


def test_only_positive_features_stay_in_the_hull_of_values():
  qkv = _qkv(7, scale=2.0)
  top = np.asarray(qkv[2]).max((1, 3), keepdims=True)
  low = np.asarray(qkv[2]).min((1, 3), keepdims=True)
  for name in _METHODS:
    out = np.asarray(_pull(name, qkv, qkv[2], causal=False)[0])
    inside = (out <= top + 1e-5) & (out >= low - 1e-5)
    assert inside.all() == (name != "trigonometric"), name


@pytest.mark.parametrize("name", ["hyperbolic", "trigonometric", "relu"])
def test_other_kinds_decode(name):
  """The contract holds the default one to this."""
  method, state = _METHODS[name], _state(name)
  qkv = _qkv(9, length=9, scale=0.3)
  want = _pull(name, qkv, qkv[2], causal=True)[0]
  shapes = jaxattn.AttentionShapes(num_heads=_HEADS, head_dim=_DEPTH)
  cache = method.init_cache(
    (), state, batch_shape=(2,), max_length=9, shapes=shapes
  )
  extend = jax.jit(functools.partial(method.extend, ()))
  outs = []
  for rows in (slice(0, 7), slice(7, 8), slice(8, 9)):
    out, cache = extend(state, cache, *(x[:, rows] for x in qkv))
    outs.append(out)
  assert_close(jnp.concatenate(outs, axis=1), want)


def test_error_falls_as_the_root_of_the_features():
  """64 times the rows: an eighth of the error, here within a factor of 2."""
  qkv = _qkv(8, scale=0.5)
  want = jaxattn.dense_attention(*qkv)
  errors = []
  for rows in (16, 1024):
    method = jaxattn.performer(num_features=rows)
    shapes = jaxattn.AttentionShapes(num_heads=_HEADS, head_dim=_DEPTH)
    attend = jax.jit(functools.partial(method.apply, ()))
    squares = []
    for seed in range(10):
      state = method.init(jax.random.key(seed), shapes)[1]
      squares.append(jnp.mean((attend(state, *qkv)[0] - want) ** 2))
    errors.append(float(jnp.sqrt(jnp.mean(jnp.stack(squares)))))
  assert errors[0] / 16 < errors[1] < errors[0] / 4


def _train(method, state, qkv, steps):
  step = jax.jit(functools.partial(method.apply, train=True))
  for _ in range(steps):
    _, state = step((), state, *qkv)
    yield state


def test_redraws_on_schedule_and_resumes():
  method = jaxattn.performer(num_features=4, redraw_interval=3)
  shapes = jaxattn.AttentionShapes(num_heads=_HEADS, head_dim=_DEPTH)
  first = method.init(jax.random.key(0), shapes)[1]
  qkv = _qkv(0, length=4)
  states = list(_train(method, first, qkv, 7))
  assert [int(s["steps"]) for s in states] == [1, 2, 3, 4, 5, 6, 7]
  drawn = [np.asarray(s["projection"]) for s in (first, *states)]
  changed = [not np.array_equal(a, b) for a, b in zip(drawn, drawn[1:])]  # noqa: B905
  assert changed == [False, False, True, False, False, True, False]
  assert np.abs(drawn[3] - drawn[6]).max() > 0.1
  # A run that is resumed from what was stored draws the same.
  stored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), states[1])
  resumed = list(_train(method, stored, qkv, 5))
  jax.tree.map(np.testing.assert_array_equal, resumed[-1], states[-1])
  # Evaluation uses what training left, and leaves it.
  out, same = method.apply((), states[2], *qkv)
  jax.tree.map(np.testing.assert_array_equal, same, states[2])
  assert_close(out, method.apply((), states[1], *qkv, train=True)[0], 1e-6)


def test_may_never_redraw():
  method = jaxattn.performer(num_features=4, redraw_interval=0)
  shapes = jaxattn.AttentionShapes(num_heads=_HEADS, head_dim=_DEPTH)
  first = method.init(jax.random.key(0), shapes)[1]
  (last,) = _train(method, first, _qkv(0, length=4), 1)
  jax.tree.map(np.testing.assert_array_equal, last, first)


def test_redraws_under_vmap_and_gradient():
  """The state has no batch axis, so what is drawn is one projection."""
  method = jaxattn.performer(num_features=4, redraw_interval=1)
  shapes = jaxattn.AttentionShapes(num_heads=_HEADS, head_dim=_DEPTH)
  state = method.init(jax.random.key(0), shapes)[1]
  qkv = _qkv(0, length=4)

  def loss(qkv):
    attend = jax.vmap(
      lambda *qkv: method.apply((), state, *qkv, train=True),
      out_axes=(0, None),
    )
    out, new = attend(*qkv)
    return jnp.sum(out**2), new

  (_, new), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(qkv)
  want = next(_train(method, state, qkv, 1))
  jax.tree.map(np.testing.assert_array_equal, new, want)
  assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in grads)


def test_projections_do_not_depend_on_the_kind_of_key():
  """Any generator makes a state that can be stored and continued."""
  method = jaxattn.performer(num_features=4, redraw_interval=1)
  shapes = jaxattn.AttentionShapes(num_heads=_HEADS, head_dim=_DEPTH)
  for impl in ("threefry2x32", "rbg"):
    state = method.init(jax.random.key(0, impl=impl), shapes)[1]
    assert (state["key"].shape, state["key"].dtype) == ((2,), jnp.uint32)
    next(_train(method, state, _qkv(0, length=2), 1))


def test_nnx_layer_redraws():
  method = jaxattn.performer(num_features=4, redraw_interval=2)
  layer = nnx_layers.Attention(16, method=method, num_heads=2, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (2, 5, 16))
  step = nnx.jit(lambda layer, x: layer(x, train=True))
  drawn = [np.asarray(layer.method_state.get_value()["projection"])]
  for _ in range(2):
    step(layer, x)
    drawn.append(np.asarray(layer.method_state.get_value()["projection"]))
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert np.abs(drawn[1] - drawn[2]).max() > 0.1


def test_decoder_trains_with_it():
  """Every layer has rows of its own, and draws others in the second step."""
  cfg = decoder.DecoderConfig(
    vocab_size=11,
    width=16,
    num_layers=2,
    num_heads=2,
    methods=(jaxattn.performer(num_features=8, redraw_interval=2),),
    max_length=12,
  )
  model = decoder.Decoder(cfg)
  tokens = jnp.arange(24).reshape(2, 12) % 11
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
  params, carried = variables["params"], variables["attention"]
  optimizer = optax.sgd(0.1)

  @jax.jit
  def step(params, carried, moments):
    def loss(params):
      logits, new = model.apply(
        {"params": params, "attention": carried},
        tokens,
        train=True,
        mutable=["attention"],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], tokens[:, 1:]
      )
      return losses.mean(), new["attention"]

    (value, carried), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, moments = optimizer.update(grads, moments)
    return optax.apply_updates(params, updates), carried, moments, value

  moments, values, drawn = optimizer.init(params), [], []
  for _ in range(2):
    params, carried, moments, value = step(params, carried, moments)
    values.append(float(value))
    drawn.append(
      [np.asarray(x) for x in jax.tree.leaves(carried) if x.ndim == 2]
    )
  assert np.isfinite(values).all()
  assert len(drawn[0]) == 2
  assert np.abs(drawn[0][0] - drawn[0][1]).max() > 0.1
  assert all(np.abs(a - b).max() > 0.1 for a, b in zip(*drawn, strict=True))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "cosine"}, "kind must be one of"),
    ({"norms": "one"}, "norms must be one of"),
    ({"projection": "uniform"}, "projection must be one of"),
    ({"num_features": 0}, "num_features must be at least 1"),
    ({"redraw_interval": -1}, "redraw_interval must be at least 0"),
    ({"kind": "generalized", "epsilon": -1.0}, "epsilon must be at least 0"),
    ({"projection": None}, "projection must not be None"),
    ({"epsilon": 0.5}, "epsilon has no effect with kind='positive'"),
    ({"scaled": True}, "scaled has no effect"),
    (
      {"kind": "generalized", "projection": None, "num_features": 8},
      "num_features has no effect with projection=None",
    ),
  ],
)
def test_errors_name_what_is_wrong(options, message):
  with pytest.raises(ValueError, match=message):
    jaxattn.performer(**options)


def test_experiments_name_it():
  sizes = methods.Sizes(length=64)
  (method,) = methods.make("performer", sizes)
  assert method == jaxattn.performer()
  options = {"kind": "hyperbolic", "num_features": 8, "redraw_interval": 5}
  (method,) = methods.make("performer", sizes, options)
  assert method == jaxattn.performer(**options)
  (method,) = methods.make("performer", sizes, {"kind": "relu"})
  assert method == _METHODS["relu"]
  (method,) = methods.make(
    "performer", sizes, {"kind": "relu", "projection": "iid"}
  )
  assert method == jaxattn.performer(kind="generalized", projection="iid")
  with pytest.raises(files.UserError, match="norms must be one of"):
    methods.make("performer", sizes, {"norms": "two"})


def test_is_a_value():
  method = jaxattn.performer(kind="generalized", function=jnp.tanh)
  assert dataclasses.replace(method) == method
  assert hash(dataclasses.replace(method)) == hash(method)
  assert method != jaxattn.performer(kind="generalized")
