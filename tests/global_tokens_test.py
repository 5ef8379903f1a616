"""Global tokens chosen by the data, against masked dense softmax attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxattn
from jaxattn import patterns
from jaxattn import positions
from tests import jaxpr_walker
from tests.method_cases import assert_close

_HEADS, _KV_HEADS, _DEPTH, _VALUE = 4, 2, 8, 6
_WINDOW = patterns.Window(3, 2)
# Rows of two, none, all different; repeated, padded and outside places.
_PLACES = np.array([[0, 5, -1, 5], [-1, -1, -1, -1], [6, 2, 99, 0]])
_SCHEME = positions.ShawRelative(max_distance=4, stddev=1.0)


def _draw(seed, length, places):
  """Query, key, value, and those of the global tokens."""
  rows, num = places.shape
  sizes = [
    (length, _HEADS, _DEPTH),
    (length, _KV_HEADS, _DEPTH),
    (length, _KV_HEADS, _VALUE),
    (num, _HEADS, _DEPTH),
    (length, _KV_HEADS, _DEPTH),
    (length, _KV_HEADS, _VALUE),
  ]
  rngs = jax.random.split(jax.random.key(seed), len(sizes))
  return [
    jax.random.normal(rng, (rows, *size))
    for rng, size in zip(rngs, sizes, strict=True)
  ]


def _softmax(scores, allowed):
  weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
  return jnp.where(allowed.any(-1, keepdims=True), weights, 0.0)


def _scores(query, key, term):
  key = jnp.repeat(key, _HEADS // key.shape[2], axis=2)
  scores = jnp.einsum("btnh,bsnh->bnts", query, key, precision="highest")
  scores = scores * jnp.float32(_DEPTH**-0.5)
  return scores if term is None else scores + term


def _mix(weights, value):
  value = jnp.repeat(value, _HEADS // value.shape[2], axis=2)
  return jnp.einsum("bnts,bsnv->btnv", weights, value, precision="highest")


def _reference(arrays, table, *, places, mask, own):
  """Dense scores; rows of global tokens are then put one by one."""
  q, k, v, gq, gk, gv = arrays
  rows, length = q.shape[:2]
  i, j = np.arange(length)[:, None], np.arange(length)[None, :]
  term = None
  if table is not None:
    logits = _SCHEME.logits(table, q)
    onehot = jax.nn.one_hot(_SCHEME.label(j - i), _SCHEME.num_labels)
    term = jnp.einsum("btnr,tsr->bnts", logits, onehot, precision="highest")
  with jax.ensure_compile_time_eval():
    allowed = np.asarray(mask.dense(length, length))
  allowed = np.broadcast_to(allowed, (rows, 1, length, length))
  is_global = np.zeros((rows, length), bool)
  for row, found in enumerate(places):
    is_global[row, [p for p in found if 0 <= p < length]] = True
  seen = _WINDOW.mask(i, j)[None, None] | is_global[:, None, None, :]
  out = _mix(_softmax(_scores(q, k, term), jnp.asarray(allowed & seen)), v)
  if not own:
    gk, gv = k, v
    gq = jnp.stack(
      [q[b, np.clip(places[b], 0, length - 1)] for b in range(rows)]
    )
  for row in range(rows):
    for slot, place in enumerate(places[row]):
      if not 0 <= place < length or place in places[row, :slot]:
        continue
      part = None if term is None else term[row : row + 1, :, place, None]
      scores = _scores(gq[row : row + 1, slot, None], gk[row : row + 1], part)
      weights = _softmax(
        scores, jnp.asarray(allowed[row : row + 1, :, place, None])
      )
      out = out.at[row, place].set(_mix(weights, gv[row : row + 1])[0, 0])
  return out


def _ours(arrays, table, *, places, mask, own):
  q, k, v, gq, gk, gv = arrays
  relative = None
  if table is not None:
    relative = jaxattn.Relative(
      logits=_SCHEME.logits(table, q), label=_SCHEME.label
    )
  extra = dict(global_query=gq, global_key=gk, global_value=gv) if own else {}
  return jaxattn.global_attention(
    q,
    k,
    v,
    jnp.asarray(places),
    pattern=_WINDOW,
    mask=mask,
    relative=relative,
    **extra,
  )


def _mask(kind, length):
  rng = np.random.default_rng(3)
  rows = (len(_PLACES), length)
  valid = jnp.asarray(rng.random(rows) < 0.7)
  ids = jnp.asarray(np.sort(rng.integers(0, 3, rows)))
  order = jnp.asarray(np.stack([rng.permutation(length) for _ in _PLACES]))
  return {
    "full": jaxattn.FULL,
    "causal": jaxattn.CAUSAL,
    "valid": jaxattn.Mask(key_valid=valid, query_valid=valid),
    "one_row": jaxattn.Mask(key_valid=valid[:1]),
    "packed": jaxattn.packed(ids, causal=True),
    "positions": jaxattn.Mask(
      causal=True, query_positions=order, key_positions=order
    ),
  }[kind]


class GlobalTokensTest(parameterized.TestCase):
  @parameterized.parameters(
    ("full", True),
    ("full", False),
    ("causal", True),
    ("valid", True),
    ("one_row", True),
    ("packed", False),
    ("positions", False),
  )
  def test_equals_dense_in_value_and_gradient(self, kind, own):
    self._compare(17, kind, own, relative=False)

  @parameterized.parameters((1, False), (7, True), (31, True))
  def test_any_length_with_a_relative_term(self, length, own):
    self._compare(length, "valid", own, relative=True)

  def test_a_causal_relative_term(self):
    self._compare(17, "packed", True, relative=True)

  def _compare(self, length, kind, own, *, relative):
    arrays, mask = _draw(0, length, _PLACES), _mask(kind, length)
    table = None
    if relative:
      shapes = jaxattn.AttentionShapes(
        num_heads=_HEADS, num_kv_heads=_KV_HEADS, head_dim=_DEPTH
      )
      table = _SCHEME.init(jax.random.key(4), shapes)
    ct = jax.random.normal(
      jax.random.key(1), (len(_PLACES), length, _HEADS, _VALUE)
    )

    @functools.partial(jax.jit, static_argnums=0)
    def pull(function, arrays, table):
      attend = functools.partial(function, places=_PLACES, mask=mask, own=own)
      out, vjp = jax.vjp(attend, arrays, table)
      return out, vjp(ct)

    got = pull(_ours, arrays, table)
    want = pull(_reference, arrays, table)
    assert_close(got, want, 2e-5)  # Gradients pass two more products.

  def test_the_order_of_the_places_does_not_matter(self):
    arrays = _draw(2, 17, _PLACES)[:3]
    attend = jax.jit(
      functools.partial(jaxattn.global_attention, pattern=_WINDOW)
    )
    out = attend(*arrays, jnp.asarray(_PLACES))
    for order in ([3, 2, 1, 0], [1, 0, 3, 2]):
      got = attend(*arrays, jnp.asarray(_PLACES[:, order]))
      assert_close(got, out, 1e-6)

  def test_a_row_without_global_tokens_is_its_window(self):
    arrays = _draw(5, 17, _PLACES)[:3]
    none = jnp.full((3, 1), -1)
    attend = jax.jit(
      functools.partial(jaxattn.global_attention, pattern=_WINDOW)
    )
    window = jax.jit(functools.partial(jaxattn.block_sparse, pattern=_WINDOW))
    assert_close(attend(*arrays, none), window(*arrays), 1e-6)

  def test_nothing_of_length_squared(self):
    x = jax.ShapeDtypeStruct((1, 4096, 1, 64), jnp.float32)
    places = jax.ShapeDtypeStruct((1, 8), jnp.int32)

    def run(q, k, v, places):
      out, vjp = jax.vjp(
        lambda *x: jaxattn.global_attention(
          *x, places, pattern=patterns.Window(64, 64), mask=jaxattn.CAUSAL
        ),
        q,
        k,
        v,
      )
      return out, vjp(out)

    closed = jax.make_jaxpr(run)(x, x, x, places)
    jaxpr_walker.assert_no_intermediate(closed, at_least=4096**2)

  def test_vmap_is_the_batch(self):
    arrays, places = _draw(7, 9, _PLACES)[:3], jnp.asarray(_PLACES)
    attend = functools.partial(jaxattn.global_attention, pattern=_WINDOW)
    got = jax.jit(jax.vmap(attend))(*arrays, places)
    assert_close(got, jax.jit(attend)(*arrays, places), 1e-6)

  def test_places_from_marks(self):
    marks = np.zeros((3, 6), bool)
    marks[0, [1, 4, 5]] = marks[2, 0] = True
    found = jax.jit(jaxattn.global_positions, static_argnums=1)(marks, 2)
    self.assertEqual(found.tolist(), [[1, 4], [-1, -1], [0, -1]])

  @parameterized.named_parameters(
    ("rank", dict(global_positions=jnp.zeros(3, jnp.int32)), "global_pos"),
    ("float", dict(global_positions=jnp.zeros((3, 2))), "integers"),
    ("rows", dict(global_positions=jnp.zeros((2, 2), jnp.int32)), "global_pos"),
    ("none", dict(global_positions=jnp.zeros((3, 0), jnp.int32)), "at least 1"),
    ("query", dict(global_query=jnp.zeros((3, 9, 4, 8))), "global_query"),
    ("key", dict(global_key=jnp.zeros((3, 4, 2, 8))), "global_key"),
    ("cross", dict(query=jnp.zeros((3, 5, 4, 8))), "one length"),
  )
  def test_bad_arguments_are_named(self, changes, message):
    names = ("query", "key", "value")
    given = dict(zip(names, _draw(8, 9, _PLACES), strict=False))
    given |= dict(global_positions=jnp.zeros((3, 2), jnp.int32)) | changes
    with self.assertRaisesRegex(ValueError, message):
      jaxattn.global_attention(**given, pattern=_WINDOW)

  def test_bad_marks_are_named(self):
    with self.assertRaisesRegex(ValueError, "is_global must be bool"):
      jaxattn.global_positions(jnp.zeros((2, 3)), 1)
    with self.assertRaisesRegex(ValueError, "max_global must be in"):
      jaxattn.global_positions(jnp.zeros((2, 3), bool), 4)
