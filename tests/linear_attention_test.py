"""The linear engine: quadratic, chunked and recurrent forms agree."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn import feature_maps
from tests import jaxpr_walker
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

_BATCH, _HEADS, _KV_HEADS, _DEPTH, _VALUE, _FEATURES = 2, 4, 2, 8, 6, 12


def _exponentials(projection, x):
  """Positive random features: a map with an array and a logarithm."""
  x = x.astype(jnp.float32)
  logits = jnp.einsum("...h,fh->...f", x, projection, precision="highest")
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  values = jnp.exp(logits - top[..., None])
  return feature_maps.Features(values, top - jnp.sum(x**2, axis=-1) / 2)


def _plain(x):
  """A map that gives an array, as users may write it."""
  return jax.nn.sigmoid(x)


_PROJECTION = jax.random.normal(jax.random.key(9), (_FEATURES, _DEPTH))
_MAPS = {
  "elu": jax.tree_util.Partial(feature_maps.elu_features),
  "exponentials": jax.tree_util.Partial(_exponentials, _PROJECTION),
}


def _draw(q_len, k_len, *, scale=1.0, seed=0, dtype=jnp.float32):
  rngs = jax.random.split(jax.random.key(seed), 4)
  shapes = (
    (q_len, _HEADS, _DEPTH),
    (k_len, _KV_HEADS, _DEPTH),
    (k_len, _KV_HEADS, _VALUE),
    (q_len, _HEADS, _VALUE),
  )
  q, k, v, ct = (
    jax.random.normal(rng, (_BATCH, *shape))
    for rng, shape in zip(rngs, shapes, strict=True)
  )
  return [x.astype(dtype) for x in (scale * q, scale * k, v, ct)]


@functools.partial(jax.jit, static_argnames=("op", "chunk"))
def _pull(op, chunk, feature_map, q, k, v, ct, mask):
  """Output, and gradients of the map's arrays, query, key and value."""
  options = {} if chunk is None else {"chunk": chunk}

  def attend(feature_map, q, k, v):
    return op(q, k, v, feature_map=feature_map, mask=mask, **options)

  out, vjp = jax.vjp(attend, feature_map, q, k, v)
  return out, vjp(ct)


def _chunked(feature_map, arrays, mask, chunk=8):
  return _pull(jaxattn.linear_attention, chunk, feature_map, *arrays, mask)


def _quadratic(feature_map, arrays, mask):
  return _pull(jaxattn.dense_linear_attention, None, feature_map, *arrays, mask)


def _mask(kind, q_len, k_len, causal):
  rng = np.random.default_rng(3)
  if kind == "plain":
    return jaxattn.Mask(causal=causal)
  fields = dict(
    key_valid=rng.random((_BATCH, k_len)) < 0.7,
    query_valid=rng.random((1, q_len)) < 0.7,
  )
  if kind == "packed":
    ids = np.sort(rng.integers(0, 4, (_BATCH, q_len)))[:, ::-1]
    fields |= dict(query_segment_ids=ids, key_segment_ids=ids)
  if kind == "scattered":
    fields |= dict(
      query_segment_ids=rng.integers(0, 3, (_BATCH, q_len)),
      key_segment_ids=rng.integers(0, 3, (1, k_len)),
    )
  arrays = {name: jnp.asarray(x) for name, x in fields.items()}
  return jaxattn.Mask(causal=causal, **arrays)


@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize("name", list(_MAPS))
@pytest.mark.parametrize(
  ("kind", "q_len", "k_len", "causal"),
  [
    ("plain", 33, 33, False),
    ("plain", 33, 33, True),
    ("plain", 19, 33, True),
    ("plain", 33, 19, True),
    ("valid", 33, 19, False),
    ("packed", 33, 33, True),
    ("scattered", 33, 33, True),
    ("scattered", 19, 33, False),
  ],
)
def test_chunked_equals_quadratic(kind, q_len, k_len, causal, name, scale):
  """In value and all gradients, those of the feature map's arrays included."""
  mask = _mask(kind, q_len, k_len, causal)
  arrays = _draw(q_len, k_len, scale=scale)
  got = _chunked(_MAPS[name], arrays, mask)
  assert_close(got, _quadratic(_MAPS[name], arrays, mask), 1e-5)
  chex.assert_tree_all_finite(got)


@pytest.mark.parametrize("chunk", [1, 64])
def test_the_chunk_does_not_matter(chunk):
  arrays, mask = _draw(33, 33), _mask("packed", 33, 33, True)
  got = _chunked(_MAPS["exponentials"], arrays, mask, chunk)
  assert_close(got, _chunked(_MAPS["exponentials"], arrays, mask), 1e-5)


@pytest.mark.parametrize("name", list(_MAPS))
def test_recurrent_equals_quadratic_in_value_and_gradient(name):
  """One token at a time, differentiated through all steps."""
  q, k, v, ct = _draw(17, 17)
  shapes = jaxattn.AttentionShapes(
    num_heads=_HEADS,
    num_kv_heads=_KV_HEADS,
    head_dim=_DEPTH,
    value_dim=_VALUE,
  )

  def recurrent(q, k, v, *, feature_map, mask):
    del mask
    state = jaxattn.linear_state((_BATCH,), shapes, feature_map=feature_map)

    def step(state, token):
      token = [x[:, None] for x in token]
      out, state = jaxattn.linear_extend(state, *token, feature_map=feature_map)
      return state, out[:, 0]

    tokens = [jnp.moveaxis(x, 1, 0) for x in (q, k, v)]
    return jnp.moveaxis(jax.lax.scan(step, state, tokens)[1], 0, 1)

  got = _pull(recurrent, None, _MAPS[name], q, k, v, ct, jaxattn.CAUSAL)
  want = _quadratic(_MAPS[name], (q, k, v, ct), jaxattn.CAUSAL)
  assert_close(got, want, 1e-5)


def test_a_state_is_the_sums_over_its_tokens():
  _, k, v, _ = _draw(1, 20)
  q = jnp.zeros((_BATCH, 20, _HEADS, _DEPTH))
  shapes = jaxattn.AttentionShapes(
    num_heads=_HEADS,
    num_kv_heads=_KV_HEADS,
    head_dim=_DEPTH,
    value_dim=_VALUE,
  )
  valid = jnp.arange(20)[None] < jnp.array([[20], [13]])
  state = jaxattn.linear_state((_BATCH,), shapes)
  _, state = jaxattn.linear_extend(state, q, k, v, key_valid=valid, chunk=8)
  seen = jnp.where(valid[..., None, None], jax.nn.elu(k) + 1, 0.0)
  assert_close(state.normalizer, seen.sum(1), 1e-6)
  want = jnp.einsum("bskf,bskv->bkfv", seen, v, precision="highest")
  assert_close(state.sums, want, 1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_extreme_keys_stay_finite_and_alone(causal):
  """Logarithms of 1e6 and -1e6, in turn, in one row."""
  q, k, v, ct = _draw(33, 33)
  far = jnp.where(jnp.arange(33) % 2 == 1, 1e3, 1.0)[None, :, None, None]
  arrays = (q, k * far, v, ct)
  feature_map = _MAPS["exponentials"]
  got = _chunked(feature_map, arrays, jaxattn.Mask(causal=causal))
  chex.assert_tree_all_finite(got)
  # Such keys weigh exp(-1e6): the output is that of the others.
  valid = jnp.broadcast_to(jnp.arange(33)[None] % 2 == 0, (_BATCH, 33))
  mask = jaxattn.Mask(causal=causal, key_valid=valid)
  assert_close(got[0], _chunked(feature_map, (q, k, v, ct), mask)[0], 1e-5)


def test_nothing_of_the_future_takes_part():
  """A later key of any size leaves earlier rows as they are, bit for bit."""
  q, k, v, ct = _draw(33, 33)
  feature_map = _MAPS["exponentials"]
  for size in (1e2, 1e4):
    late = jnp.where(jnp.arange(33) >= 19, size, 1.0)[None, :, None, None]
    out = _chunked(feature_map, (q, k, v, ct), jaxattn.CAUSAL)[0]
    got = _chunked(feature_map, (q, k * late, v * late, ct), jaxattn.CAUSAL)[0]
    np.testing.assert_array_equal(got[:, :19], out[:, :19])


def test_features_that_vanish_give_zero():
  """elu(x) + 1 is zero for large negative x: no division by it."""
  q, k, v, ct = _draw(9, 9)
  out, grads = _chunked(_MAPS["elu"], (q, k - 1e4, v, ct), jaxattn.CAUSAL)
  assert_zero(out)
  chex.assert_tree_all_finite(grads)


def test_without_causality_order_does_not_matter():
  q, k, v, ct = _draw(33, 33)
  order = np.random.default_rng(0).permutation(33)
  out = _chunked(_MAPS["elu"], (q, k, v, ct), jaxattn.FULL)[0]
  moved = [x[:, order] for x in (q, k, v, ct)]
  got = _chunked(_MAPS["elu"], moved, jaxattn.FULL)[0]
  assert_close(got, out[:, order], 1e-6)


@pytest.mark.parametrize(
  "feature_map",
  [
    _plain,
    feature_maps.exp_features,
    feature_maps.relu_features,
    feature_maps.identity_features,
  ],
)
def test_any_function_is_a_feature_map(feature_map):
  q, k, v, ct = _draw(19, 19)
  if feature_map is feature_maps.identity_features:
    q, k = jnp.abs(q), jnp.abs(k)

  def whole(x):
    found = feature_map(x)
    return found.whole() if isinstance(found, tuple) else found

  scores = jnp.einsum(
    "btkgf,bskf->bkgts",
    whole(q).reshape(_BATCH, 19, _KV_HEADS, -1, _DEPTH),
    whole(k),
    precision="highest",
  )
  scores = jnp.where(np.tri(19, dtype=bool), scores, 0.0)
  total = scores.sum(-1, keepdims=True)
  scores = jnp.where(total == 0, 0.0, scores / jnp.where(total == 0, 1, total))
  want = jnp.einsum("bkgts,bskv->btkgv", scores, v, precision="highest")
  got = jaxattn.linear_attention(
    q, k, v, feature_map=feature_map, mask=jaxattn.CAUSAL, chunk=8
  )
  assert_close(got, want.reshape(ct.shape), 1e-5)


def test_memory_does_not_depend_on_the_features():
  """The largest array of a gradient at 4,096 tokens, with 512 features."""
  length, wide = 4096, 512
  projection = jnp.zeros((wide, 64))
  x = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)

  def both(q, k, v, ct):
    def attend(q, k, v):
      feature_map = jax.tree_util.Partial(_exponentials, projection)
      return jaxattn.linear_attention(
        q, k, v, feature_map=feature_map, mask=jaxattn.CAUSAL, chunk=64
      )

    out, vjp = jax.vjp(attend, q, k, v)
    return out, vjp(ct)

  jaxpr = jax.make_jaxpr(both)(x, x, x, x)
  jaxpr_walker.assert_no_intermediate(jaxpr, at_least=length * 65)


@pytest.mark.parametrize(
  ("change", "error"),
  [
    (dict(feature_map="elu"), "must be a function"),
    (dict(feature_map=lambda x: x.sum()), "must give"),
    (
      dict(
        feature_map=jax.tree_util.Partial(
          lambda i, x: x * i.astype(x.dtype), jnp.ones((), jnp.int32)
        )
      ),
      "floating point",
    ),
    (dict(chunk=0), "chunk must be positive"),
    (dict(implementation="cuda"), "implementation must be"),
  ],
)
def test_what_does_not_fit_is_named(change, error):
  q, k, v, _ = _draw(5, 5)
  with pytest.raises(ValueError, match=error):
    jaxattn.linear_attention(q, k, v, **change)


@pytest.mark.parametrize("rows", [(2, 1), (1, 3), (1, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_broadcast_over_any_batch_axis(causal, rows):
  """Fields with axes of size 1, where there are two batch axes."""
  rng = np.random.default_rng(0)
  q, k, v = jax.random.normal(jax.random.key(2), (3, 2, 3, 9, 2, 4))
  ids = jnp.asarray(np.sort(rng.integers(0, 2, (*rows, 9))))
  mask = jaxattn.Mask(
    causal=causal,
    key_valid=jnp.asarray(rng.random((*rows, 9)) < 0.7),
    query_valid=jnp.asarray(rng.random((*rows, 9)) < 0.7),
    query_segment_ids=ids,
    key_segment_ids=ids,
  )
  for one in (
    mask,
    dataclasses.replace(mask, query_segment_ids=None, key_segment_ids=None),
  ):
    got = jaxattn.linear_attention(q, k, v, mask=one, chunk=4)
    want = jaxattn.dense_linear_attention(q, k, v, mask=one)
    assert_close(got, want, 1e-5)


def test_pallas_and_positions_are_refused():
  q, k, v, _ = _draw(5, 5)
  with pytest.raises(NotImplementedError, match="Hopper GPU or a TPU"):
    jaxattn.linear_attention(q, k, v, implementation="pallas")
  index = jnp.arange(5)[None]
  mask = jaxattn.Mask(causal=True, query_positions=index, key_positions=index)
  with pytest.raises(NotImplementedError, match="positions"):
    jaxattn.linear_attention(q, k, v, mask=mask)


def test_methods_are_values_with_any_map():
  assert jaxattn.linear_transformer() == jaxattn.LinearTransformer("elu")
  method = jaxattn.linear_transformer(feature_map=_plain)
  assert method == jaxattn.linear_transformer(feature_map=_plain)
  assert hash(method) == hash(jaxattn.linear_transformer(feature_map=_plain))
  q, k, v, _ = _draw(5, 5)
  out, state = method.apply((), (), q, k, v, mask=jaxattn.CAUSAL)
  want = jaxattn.dense_linear_attention(
    q, k, v, feature_map=_plain, mask=jaxattn.CAUSAL
  )
  assert_close(out, want, 1e-6)
  assert state == ()
  with pytest.raises(ValueError, match="feature_map must be one of"):
    jaxattn.linear_transformer(feature_map="cosine")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform):
  """No device is needed to find an operation that one does not have."""
  feature_map = jax.tree_util.Partial(_exponentials, jnp.zeros((128, 64)))

  def score(q, k, v, mask):
    out = jaxattn.linear_attention(q, k, v, feature_map=feature_map, mask=mask)
    return jnp.sum(out.astype(jnp.float32))

  x = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)
  packed = jaxattn.Mask(causal=True, query_segment_ids=ids, key_segment_ids=ids)
  for mask in (jaxattn.FULL, packed):
    traced = jax.jit(jax.grad(score, argnums=(0, 1, 2))).trace(x, x, x, mask)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "dot_general" in text
