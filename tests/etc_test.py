"""ETC attention against one dense softmax over both streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxattn
from jaxattn._src import etc
from jaxattn._src import etc_labels
from tests import jaxpr_walker

_HEADS, _DEPTH, _VALUE = 2, 4, 3
_FAR = 3  # k
_ROWS = 2 * _FAR + 4
# Sums of up to 36 products of order one, in another order than the oracle's,
# and their gradients, which pass two more products.
_ATOL = 2e-5


def _floats(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def _heads(rng, length, *, cross=True, batch=2, kv_heads=_HEADS):
  """Random projections of a stream."""
  shapes = [(_HEADS, _DEPTH), (kv_heads, _DEPTH), (kv_heads, _VALUE)]
  if cross:
    shapes += shapes[1:]
  return etc.EtcHeads(*(_floats(rng, batch, length, *s) for s in shapes))


def _tables(rng):
  return tuple(
    etc.EtcTable(
      _floats(rng, _ROWS, _HEADS, _DEPTH), 2 * _floats(rng, _ROWS, _HEADS)
    )
    for _ in range(2)
  )


def _fields(rng, long_len, global_len, batch=2):
  """Every field of a structure, set to something that matters."""
  long, both = (batch, long_len), (batch, global_len, long_len)
  return dict(
    long_valid=rng.random(long) < 0.8,
    global_valid=rng.random((batch, global_len)) < 0.8,
    long_segment_ids=np.sort(rng.integers(0, 2, long)),
    global_segment_ids=np.sort(rng.integers(0, 2, (batch, global_len))),
    paragraph_ids=rng.integers(-1, 2, long),
    sentence_ids=rng.integers(-1, global_len, long),
    membership=rng.random(both) < 0.3,
    sees_all=rng.random((batch, global_len)) < 0.3,
    global_to_long=rng.random(both) < 0.8,
    long_to_global=rng.random((batch, long_len, global_len)) < 0.8,
    context_ids=rng.integers(0, 2, (batch, global_len)),
  )


def _structure(fields, **options):
  return etc_labels.EtcStructure(
    **{k: jnp.asarray(v) for k, v in fields.items()}, **options
  )


def _distance_label(distance):
  if distance >= 0:
    return min(distance, _FAR)
  return _FAR + min(-distance, _FAR)


def _edge(fields, hard, radius, b, i, j, long_len):
  """Whether token i sees j, and the label; long tokens come first."""
  get = lambda name, *at: fields[name][b][at] if name in fields else None  # noqa: E731
  sides = [("long", i) if i < long_len else ("global", i - long_len)]
  sides += [("long", j) if j < long_len else ("global", j - long_len)]
  (q_side, q), (k_side, k) = sides
  seen = True
  for side, at in sides:
    if f"{side}_valid" in fields:
      seen = seen and get(f"{side}_valid", at)
  if "long_segment_ids" in fields:
    seen = seen and get(f"{q_side}_segment_ids", q) == get(
      f"{k_side}_segment_ids", k
    )
  if q_side == k_side == "long":
    seen = seen and abs(q - k) <= radius
    if "paragraph_ids" in fields:
      seen = seen and get("paragraph_ids", q) == get("paragraph_ids", k)
    return seen, _distance_label(k - q)
  if q_side == k_side == "global":
    if "context_ids" in fields:
      if get("context_ids", q) != get("context_ids", k):
        return seen, 2 * _FAR + 3
    return seen, _distance_label(k - q)
  g, t = (q, k) if q_side == "global" else (k, q)
  member = get("sentence_ids", t) == g or bool(get("membership", g, t))
  if q_side == "global":
    if hard[0]:
      seen = seen and (member or bool(get("sees_all", g)))
    if "global_to_long" in fields:
      seen = seen and get("global_to_long", g, t)
  else:
    if hard[1]:
      seen = seen and member
    if "long_to_global" in fields:
      seen = seen and get("long_to_global", t, g)
  return seen, 2 * _FAR + 1 + member


def _edges(fields, hard, radius, long_len, global_len, batch=2):
  size = long_len + global_len
  found = np.array(
    [
      [
        [_edge(fields, hard, radius, b, i, j, long_len) for j in range(size)]
        for i in range(size)
      ]
      for b in range(batch)
    ]
  )
  return found[..., 0].astype(bool), found[..., 1].astype(np.int32)


def _oracle(long, global_, tables, allowed, labels):
  """One softmax over all tokens, with every array written out."""
  length = long.query.shape[1]
  group = long.query.shape[2] // long.key.shape[2]

  def scores(query, key, table, labels):
    key = jnp.repeat(key, group, axis=2)
    dot = functools.partial(jnp.einsum, precision="highest")
    found = dot("btnh,bsnh->bnts", query, key)
    if table is not None:
      vectors = dot("btnh,rnh->bntr", query, table.vectors)
      by_label = vectors + table.bias.T[None, :, None, :]
      index = jnp.broadcast_to(labels[:, None], found.shape)
      found = found + jnp.take_along_axis(by_label, index, axis=-1)
    return found / np.float32(_DEPTH**0.5)

  outs = []
  cut = slice(0, length), slice(length, None)
  for own, other, at, table in (
    (long, global_, cut[0], tables[0]),
    (global_, long, cut[1], tables[1]),
  ):
    cross = (
      other.key if other.cross_key is None else other.cross_key,
      other.value if other.cross_value is None else other.cross_value,
    )
    key = [own.key, cross[0]]
    value = [own.value, cross[1]]
    if own is global_:  # Long tokens first.
      key, value = key[::-1], value[::-1]
    key, value = (jnp.concatenate(x, axis=1) for x in (key, value))
    seen = jnp.asarray(allowed[:, at])[:, None]
    logits = scores(own.query, key, table, jnp.asarray(labels[:, at]))
    weights = jax.nn.softmax(jnp.where(seen, logits, -1e30), axis=-1)
    weights = jnp.where(jnp.any(seen, axis=-1, keepdims=True), weights, 0.0)
    outs.append(
      jnp.einsum(
        "bnts,bsnv->btnv",
        weights,
        jnp.repeat(value, group, axis=2),
        precision="highest",
      )
    )
  return tuple(outs)


def _pull(attend, inputs, seed=9):
  """Outputs, and gradients of a random combination of them."""

  @jax.jit
  def run(*inputs):
    outs, vjp = jax.vjp(attend, *inputs)
    rng = np.random.default_rng(seed)
    return outs, vjp(tuple(_floats(rng, *x.shape) for x in outs))

  return run(*inputs)


def _assert_close(got, want, atol=_ATOL):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    b = np.asarray(b)
    scale = max(1.0, np.abs(b).max(initial=0.0))
    np.testing.assert_allclose(a, b, rtol=0, atol=atol * scale)


class EtcAttentionTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 1, 0, (True, False), _HEADS),
    (7, 5, 0, (True, True), _HEADS),
    (7, 2, 2, (False, False), 1),
    (17, 3, 4, (True, False), _HEADS),
    (31, 4, 3, (True, True), _HEADS),
    (31, 1, 40, (False, True), 1),
  )
  def test_equals_one_dense_softmax(
    self, long_len, global_len, radius, hard, k
  ):
    """In value and gradient, with every field of the structure set."""
    rng = np.random.default_rng(long_len)
    fields = _fields(rng, long_len, global_len)
    if not hard[0]:
      del fields["sees_all"]
    structure = _structure(
      fields, hard_global_to_long=hard[0], hard_long_to_global=hard[1]
    )
    inputs = (
      _heads(rng, long_len, kv_heads=k),
      _heads(rng, global_len, kv_heads=k),
      _tables(rng),
    )

    def ours(long, global_, tables):
      return etc.etc_attention(
        long,
        global_,
        radius=radius,
        structure=structure,
        max_distance=_FAR,
        long_table=tables[0],
        global_table=tables[1],
      )

    edges = _edges(fields, hard, radius, long_len, global_len)
    got = _pull(ours, inputs)
    want = _pull(lambda *x: _oracle(*x, *edges), inputs)
    _assert_close(got, want)
    if long_len > 1:
      table_grads = jax.tree.leaves(got[1][2])
      assert all(np.abs(g).max() > 1e-2 for g in table_grads)

  @parameterized.parameters(
    (7, 0), (1, 2), (9, 2), (17, 2), (31, 2), (1, 5), (17, 40)
  )
  def test_window_of_every_remainder(self, long_len, radius):
    """Without a structure: lengths below, at and between multiples of r + 1."""
    rng = np.random.default_rng(0)
    inputs = (_heads(rng, long_len), _heads(rng, 3), _tables(rng))
    edges = _edges({}, (False, False), radius, long_len, 3)

    def ours(long, global_, tables):
      return etc.etc_attention(
        long,
        global_,
        radius=radius,
        max_distance=_FAR,
        long_table=tables[0],
        global_table=tables[1],
      )

    _assert_close(
      _pull(ours, inputs), _pull(lambda *x: _oracle(*x, *edges), inputs)
    )

  def test_covering_window_is_full_attention_on_the_concatenation(self):
    rng = np.random.default_rng(1)
    long, global_ = (_heads(rng, n, cross=False) for n in (17, 4))
    zero = etc.EtcTable(
      jnp.zeros((_ROWS, _HEADS, _DEPTH)), jnp.zeros((_ROWS, _HEADS))
    )
    got = etc.etc_attention(
      long,
      global_,
      radius=16,
      max_distance=_FAR,
      long_table=zero,
      global_table=zero,
    )
    joined = [
      jnp.concatenate(x, axis=1)
      for x in zip(long[:3], global_[:3], strict=True)
    ]
    want = jaxattn.dense_attention(*joined)
    _assert_close(jnp.concatenate(got, axis=1), want, 1e-5)

  def test_weights_of_a_row_are_one_softmax(self):
    rng = np.random.default_rng(2)
    long, global_ = (_heads(rng, n, cross=False) for n in (9, 2))
    one_hot = jnp.broadcast_to(
      jnp.eye(11, dtype=jnp.float32)[None, :, None], (2, 11, _HEADS, 11)
    )
    long = long._replace(value=one_hot[:, :9])
    global_ = global_._replace(value=one_hot[:, 9:])
    near, far = etc.etc_attention(long, global_, radius=1)
    for weights in (near, far):
      np.testing.assert_allclose(jnp.sum(weights, -1), 1, atol=1e-6)
    seen = np.asarray(near[0, 4, 0]) > 0
    np.testing.assert_array_equal(np.nonzero(seen)[0], [3, 4, 5, 9, 10])
    # Odds between a local and a global key are those of their scores.
    q, keys = long.query[0, 4, 0], (long.key[0, 3, 0], global_.key[0, 1, 0])
    odds = jnp.exp((q @ keys[0] - q @ keys[1]) / 2)
    np.testing.assert_allclose(
      near[0, 4, 0, 3] / near[0, 4, 0, 10], odds, rtol=1e-5
    )

  def test_bias_is_scaled(self):
    """With queries of zero the weights are those of bias / sqrt(H)."""
    rng = np.random.default_rng(3)
    heads = _heads(rng, 1, cross=False, batch=1)
    heads = heads._replace(
      query=jnp.zeros_like(heads.query), value=jnp.ones_like(heads.value)
    )
    other = heads._replace(value=jnp.zeros_like(heads.value))
    bias = jnp.zeros((_ROWS, _HEADS)).at[0].set(3.0)
    table = etc.EtcTable(jnp.ones((_ROWS, _HEADS, _DEPTH)), bias)
    near, _ = etc.etc_attention(
      heads,
      other,
      radius=0,
      max_distance=_FAR,
      long_table=table,
      global_table=table,
    )
    want = jax.nn.sigmoid(3.0 / _DEPTH**0.5)
    np.testing.assert_allclose(near, jnp.full_like(near, want), rtol=1e-6)

  def test_hard_mask_hides_other_sentences(self):
    rng = np.random.default_rng(4)
    long, global_ = (_heads(rng, n, batch=1) for n in (9, 4))
    ids = jnp.array([[0, 0, 1, 1, 1, 2, 2, 3, -1]])
    structure = etc_labels.EtcStructure(
      sentence_ids=ids,
      hard_global_to_long=True,
      sees_all=jnp.array([[False, False, False, True]]),
    )
    loud = jnp.where((ids == 1)[..., None, None], 30.0, 0.0)
    noisy = long._replace(
      cross_key=long.cross_key + loud, cross_value=long.cross_value + loud
    )
    calm, moved = (
      etc.etc_attention(x, global_, radius=1, structure=structure)[1]
      for x in (long, noisy)
    )
    np.testing.assert_array_equal(moved[:, [0, 2]], calm[:, [0, 2]])
    for j in (1, 3):
      assert np.abs(moved[:, j] - calm[:, j]).max() > 1

  def test_packed_examples_do_not_meet(self):
    """Packed, two examples give what each gives alone."""
    rng = np.random.default_rng(5)
    sizes = ((6, 2), (9, 3))
    alone = [[_heads(rng, n, batch=1) for n in pair] for pair in sizes]
    members = [rng.integers(0, g, (1, t)) for t, g in sizes]
    contexts = [rng.integers(0, 2, (1, g)) for _, g in sizes]
    tables = _tables(rng)
    attend = functools.partial(
      etc.etc_attention,
      radius=3,
      max_distance=_FAR,
      long_table=tables[0],
      global_table=tables[1],
    )
    want = [
      attend(
        *streams,
        structure=_structure(
          {"sentence_ids": ids, "context_ids": context},
          hard_global_to_long=True,
        ),
      )
      for streams, ids, context in zip(alone, members, contexts, strict=True)
    ]
    packed = [
      jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *streams)
      for streams in zip(*alone, strict=True)
    ]
    ends = [np.zeros((1, n), int) for n in (15, 5)]
    ends[0][0, [5, 14]] = ends[1][0, [1, 4]] = 1
    segments = [etc_labels.etc_segment_ids(jnp.asarray(x)) for x in ends]
    structure = _structure(
      {
        "sentence_ids": np.concatenate([members[0], members[1] + 2], axis=1),
        "context_ids": np.concatenate(contexts, axis=1),
        "long_segment_ids": segments[0],
        "global_segment_ids": segments[1],
      },
      hard_global_to_long=True,
    )
    got = attend(*packed, structure=structure)
    for stream in range(2):
      both = jnp.concatenate([w[stream] for w in want], axis=1)
      np.testing.assert_allclose(got[stream], both, atol=2e-6)

  def test_padding_changes_nothing(self):
    rng = np.random.default_rng(6)
    streams = [_heads(rng, n) for n in (7, 3)]
    tables = _tables(rng)
    outs = []
    for extra in (0, 1, 14):
      padded = [
        jax.tree.map(
          lambda x, extra=extra: jnp.pad(
            x, ((0, 0), (0, extra), (0, 0), (0, 0)), constant_values=7.0
          ),
          stream,
        )
        for stream in streams
      ]
      valid = [
        jnp.broadcast_to(jnp.arange(n + extra)[None] < n, (2, n + extra))
        for n in (7, 3)
      ]
      found = etc.etc_attention(
        *padded,
        radius=2,
        structure=etc_labels.EtcStructure(
          long_valid=valid[0], global_valid=valid[1]
        ),
        max_distance=_FAR,
        long_table=tables[0],
        global_table=tables[1],
      )
      outs.append([x[:, :n] for x, n in zip(found, (7, 3), strict=True)])
      for x, n in zip(found, (7, 3), strict=True):
        np.testing.assert_array_equal(x[:, n:], 0)
    _assert_close(outs[1], outs[0], 2e-6)
    _assert_close(outs[2], outs[0], 2e-6)

  def test_a_token_that_sees_nothing_is_zero(self):
    rng = np.random.default_rng(7)
    inputs = (_heads(rng, 5), _heads(rng, 2))
    structure = etc_labels.EtcStructure(
      long_valid=jnp.zeros((2, 5), bool), global_valid=jnp.zeros((2, 2), bool)
    )
    found = _pull(
      lambda *x: etc.etc_attention(*x, radius=1, structure=structure), inputs
    )
    for leaf in jax.tree.leaves(found):
      np.testing.assert_array_equal(leaf, 0)

  def test_any_leading_axes(self):
    """None, and two, instead of one."""
    rng = np.random.default_rng(10)
    fields = _fields(rng, 9, 3)
    inputs = [_heads(rng, n) for n in (9, 3)]
    tables = _tables(rng)

    @jax.jit
    def attend(streams, structure):
      return etc.etc_attention(
        *streams,
        radius=2,
        structure=structure,
        max_distance=_FAR,
        long_table=tables[0],
        global_table=tables[1],
      )

    structure = _structure(fields, hard_global_to_long=True)
    want = attend(inputs, structure)
    none = attend(*jax.tree.map(lambda x: x[1], (inputs, structure)))
    two = attend(*jax.tree.map(lambda x: x[:, None], (inputs, structure)))
    _assert_close(none, jax.tree.map(lambda x: x[1], want), 1e-6)
    _assert_close(two, jax.tree.map(lambda x: x[:, None], want), 1e-6)

  def test_bfloat16_is_near(self):
    rng = np.random.default_rng(8)
    exact = [_heads(rng, n) for n in (17, 3)]
    tables = _tables(rng)
    attend = functools.partial(
      etc.etc_attention,
      radius=4,
      max_distance=_FAR,
      long_table=tables[0],
      global_table=tables[1],
    )
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact)
    for got, want in zip(attend(*low), attend(*exact), strict=True):
      assert got.dtype == jnp.bfloat16
      # Queries and keys rounded to 8 bits, in scores of size up to 10.
      np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.15)

  def test_no_array_of_the_square_of_the_length(self):
    long_len, global_len = 4096, 16
    shapes = [(1, 1, 8)] * 3
    heads = [
      etc.EtcHeads(*(jnp.zeros((s[0], n, *s[1:])) for s in shapes))
      for n in (long_len, global_len)
    ]
    table = etc.EtcTable(jnp.zeros((10, 1, 8)), jnp.zeros((10, 1)))

    def loss(long, global_, table, ids):
      outs = etc.etc_attention(
        long,
        global_,
        radius=84,
        structure=etc_labels.EtcStructure(
          sentence_ids=ids,
          paragraph_ids=ids,
          long_segment_ids=ids,
          global_segment_ids=ids[:, :global_len],
          hard_global_to_long=True,
        ),
        max_distance=3,
        long_table=table,
        global_table=table,
      )
      return sum(jnp.sum(x) for x in outs)

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
      *heads, table, jnp.zeros((1, long_len), jnp.int32)
    )
    # Far below T x T: tiles in flight, and T x G.
    jaxpr_walker.assert_no_intermediate(jaxpr, at_least=long_len**2 // 8)

  @parameterized.named_parameters(
    ("radius", dict(radius=-1), "radius must not be negative"),
    ("one_table", dict(max_distance=3), "go together"),
    (
      "short_table",
      dict(max_distance=4, tables=True),
      r"R >= 2 max_distance \+ 4 = 12",
    ),
    (
      "no_effect",
      dict(structure=dict(sentence_ids=np.zeros((2, 7), int))),
      "no effect without relative tables or a hard mask",
    ),
    (
      "contexts",
      dict(structure=dict(context_ids=np.zeros((2, 3), int))),
      "context_ids has no effect",
    ),
    (
      "no_members",
      dict(structure=dict(hard_global_to_long=True)),
      "set sentence_ids or membership",
    ),
    (
      "sees_all",
      dict(structure=dict(sees_all=np.zeros((2, 3), bool))),
      "sees_all has no effect",
    ),
    (
      "shape",
      dict(structure=dict(long_valid=np.zeros((2, 3), bool))),
      r"long_valid must have shape \(2, 7\), got \(2, 3\)",
    ),
    (
      "dtype",
      dict(structure=dict(long_valid=np.zeros((2, 7), int))),
      "must be bool",
    ),
    (
      "half",
      dict(structure=dict(long_segment_ids=np.zeros((2, 7), int))),
      "go together",
    ),
  )
  def test_bad_arguments_are_named(self, options, message):
    rng = np.random.default_rng(0)
    streams = [_heads(rng, n) for n in (7, 3)]
    options = {"radius": 2} | options
    if "structure" in options:
      options["structure"] = etc_labels.EtcStructure(**options["structure"])
    if options.pop("tables", False):
      options["long_table"], options["global_table"] = _tables(rng)
    with self.assertRaisesRegex(ValueError, message):
      etc.etc_attention(*streams, **options)

  def test_streams_must_fit(self):
    rng = np.random.default_rng(0)
    long, global_ = (_heads(rng, n) for n in (7, 3))
    with self.assertRaisesRegex(ValueError, "differ in length only"):
      etc.etc_attention(long, _heads(rng, 3, batch=1), radius=1)
    with self.assertRaisesRegex(ValueError, "cross_key must have the shape"):
      bad = long._replace(cross_key=long.key[:, 1:])
      etc.etc_attention(bad, global_, radius=1)


class LabelsTest(parameterized.TestCase):
  def test_labels_of_the_papers_example(self):
    found = etc_labels.EtcDistance(3)(np.arange(11) - 5)
    np.testing.assert_array_equal(found, [6, 6, 6, 5, 4, 0, 1, 2, 3, 3, 3])

  @parameterized.parameters(1, 3, 12)
  def test_distances_mirror(self, far):
    label = etc_labels.EtcDistance(far)
    found = label(np.arange(-40, 41))
    assert found.min() == 0
    assert found.max() == 2 * far
    right = label(np.arange(1, 41))
    np.testing.assert_array_equal(label(-np.arange(1, 41)), right + far)

  def test_labels_between_the_streams_are_transposes(self):
    rng = np.random.default_rng(0)
    fields = _fields(rng, 9, 3)
    structure = _structure(
      {k: fields[k] for k in ("sentence_ids", "membership", "context_ids")}
    )
    found = etc_labels.etc_relative_labels(
      9, 3, max_distance=_FAR, structure=structure
    )
    np.testing.assert_array_equal(
      found["long_to_global"], np.swapaxes(found["global_to_long"], 1, 2)
    )
    _, labels = _edges(fields, (False, False), 9, 9, 3)
    np.testing.assert_array_equal(found["global_to_long"], labels[:, 9:, :9])
    np.testing.assert_array_equal(found["global_to_global"], labels[:, 9:, 9:])
    np.testing.assert_array_equal(found["long_to_long"], labels[0, :9, :9])

  def test_pairs_of_ids_agree_where_both_do(self):
    rng = np.random.default_rng(1)
    big = 2**31 - 1
    first, second = (
      rng.choice([-big, 0, 3, big], (3, 20)).astype(np.int32) for _ in range(2)
    )
    found = np.asarray(
      etc_labels.pair_ids(jnp.asarray(first), jnp.asarray(second))
    )
    same = lambda x: x[:, :, None] == x[:, None, :]  # noqa: E731
    np.testing.assert_array_equal(same(found), same(first) & same(second))

  def test_fixed_blocks(self):
    valid = jnp.arange(11)[None] < jnp.array([[11], [5]])
    found = etc_labels.etc_fixed_blocks(valid, tokens_per_block=4)
    np.testing.assert_array_equal(
      found.global_valid, [[True] * 3, [True, True, False]]
    )
    np.testing.assert_array_equal(
      found.sentence_ids[1], [0, 0, 0, 0, 1, -1, -1, -1, -1, -1, -1]
    )


class MethodTest(parameterized.TestCase):
  @parameterized.parameters((0, 31), (3, 31), (2, 2), (5, 3))
  def test_tables_of_one_sequence(self, num_global, length):
    """As the two streams with shared projections and no members."""
    method = etc.etc(num_global=num_global, radius=4, max_distance=_FAR)
    shapes = jaxattn.AttentionShapes(num_heads=_HEADS, head_dim=_DEPTH)
    params, state = method.init(jax.random.key(0), shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: _floats(rng, *x.shape), params)
    x = _heads(rng, length, cross=False)[:3]

    def ours(params, *qkv):
      return (method.apply(params, state, *qkv)[0],)

    def oracle(params, *qkv):
      cut = min(num_global, length)
      parts = [
        etc.EtcHeads(*(x[:, at] for x in qkv))
        for at in (slice(cut, None), slice(0, cut))
      ]
      edges = _edges({}, (False, False), 4, length - cut, cut)
      tables = [etc.EtcTable(**params[name]) for name in ("long", "global")]
      found = _oracle(*parts, tables, *edges)
      return (jnp.concatenate(found[::-1], axis=1),)

    _assert_close(_pull(ours, (params, *x)), _pull(oracle, (params, *x)))

  def test_initial_tables(self):
    """Vectors of scale 0.5, not 0.02, cut at two deviations; biases zero."""
    method = etc.etc(num_global=1, radius=1, max_distance=24)
    shapes = jaxattn.AttentionShapes(num_heads=8, head_dim=64)
    params, _ = method.init(jax.random.key(0), shapes)
    for table in params.values():
      assert table["vectors"].shape == (52, 8, 64)
      assert np.abs(table["vectors"]).max() <= 1
      # A normal cut at two deviations keeps 0.88 of its deviation.
      np.testing.assert_allclose(np.std(table["vectors"]), 0.44, atol=0.01)
      np.testing.assert_array_equal(table["bias"], 0)
    assert np.abs(params["long"]["vectors"] - params["global"]["vectors"]).max()

  def test_bad_options(self):
    with self.assertRaisesRegex(ValueError, "num_global must not be negative"):
      etc.etc(num_global=-1, radius=1)
    with self.assertRaisesRegex(ValueError, "give one"):
      relative = jaxattn.positions.ALiBi(max_distance=2)
      etc.etc(num_global=1, radius=1, max_distance=2, relative=relative)
    with self.assertRaisesRegex(NotImplementedError, "causal"):
      x = jnp.ones((1, 4, 1, 2))
      etc.etc(num_global=1, radius=1).apply(
        (), (), x, x, x, mask=jaxattn.CAUSAL
      )
