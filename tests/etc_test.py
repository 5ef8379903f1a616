"""ETC attention against one dense softmax over both streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxattn
from jaxattn._src import etc
from jaxattn._src import etc_labels
from tests import etc_cases as cases
from tests import jaxpr_walker

_attend = jax.jit(etc.etc_attention, static_argnames=("radius", "max_distance"))


class EtcAttentionTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 1, 0, (True, False), cases.HEADS),
    (7, 5, 0, (True, True), cases.HEADS),
    (7, 2, 2, (False, False), 1),
    (17, 3, 4, (True, False), cases.HEADS),
    (31, 4, 3, (True, True), cases.HEADS),
    (31, 1, 40, (False, True), 1),
  )
  def test_equals_one_dense_softmax(
    self, long_len, global_len, radius, hard, k
  ):
    """In value and gradient, with every field of the structure set."""
    rng = np.random.default_rng(long_len)
    fields = cases.fields(rng, long_len, global_len)
    if not hard[0]:
      del fields["sees_all"]
    structure = cases.structure(
      fields, hard_global_to_long=hard[0], hard_long_to_global=hard[1]
    )
    inputs = (
      cases.heads(rng, long_len, kv_heads=k),
      cases.heads(rng, global_len, kv_heads=k),
      cases.tables(rng),
    )

    def ours(long, global_, tables):
      return etc.etc_attention(
        long,
        global_,
        radius=radius,
        structure=structure,
        max_distance=cases.FAR,
        long_table=tables[0],
        global_table=tables[1],
      )

    edges = cases.edges(fields, hard, radius, long_len, global_len)
    got = cases.pull(ours, inputs)
    want = cases.pull(lambda *x: cases.oracle(*x, *edges), inputs)
    cases.assert_close(got, want)
    if long_len > 1:
      table_grads = jax.tree.leaves(got[1][2])
      assert all(np.abs(g).max() > 1e-2 for g in table_grads)

  @parameterized.parameters(
    (7, 0), (1, 2), (9, 2), (17, 2), (31, 2), (1, 5), (17, 40)
  )
  def test_window_of_every_remainder(self, long_len, radius):
    """Without a structure: lengths below, at and between multiples of r + 1."""
    rng = np.random.default_rng(0)
    inputs = (
      cases.heads(rng, long_len),
      cases.heads(rng, 3),
      cases.tables(rng),
    )
    edges = cases.edges({}, (False, False), radius, long_len, 3)

    def ours(long, global_, tables):
      return etc.etc_attention(
        long,
        global_,
        radius=radius,
        max_distance=cases.FAR,
        long_table=tables[0],
        global_table=tables[1],
      )

    cases.assert_close(
      cases.pull(ours, inputs),
      cases.pull(lambda *x: cases.oracle(*x, *edges), inputs),
    )

  def test_covering_window_is_full_attention_on_the_concatenation(self):
    rng = np.random.default_rng(1)
    long, global_ = (cases.heads(rng, n, cross=False) for n in (17, 4))
    zero = etc.EtcTable(
      jnp.zeros((cases.ROWS, cases.HEADS, cases.DEPTH)),
      jnp.zeros((cases.ROWS, cases.HEADS)),
    )
    got = _attend(
      long,
      global_,
      radius=16,
      max_distance=cases.FAR,
      long_table=zero,
      global_table=zero,
    )
    joined = [
      jnp.concatenate(x, axis=1)
      for x in zip(long[:3], global_[:3], strict=True)
    ]
    want = jaxattn.dense_attention(*joined)
    cases.assert_close(jnp.concatenate(got, axis=1), want, 1e-5)

  def test_weights_of_a_row_are_one_softmax(self):
    rng = np.random.default_rng(2)
    long, global_ = (cases.heads(rng, n, cross=False) for n in (9, 2))
    one_hot = jnp.broadcast_to(
      jnp.eye(11, dtype=jnp.float32)[None, :, None], (2, 11, cases.HEADS, 11)
    )
    long = long._replace(value=one_hot[:, :9])
    global_ = global_._replace(value=one_hot[:, 9:])
    near, far = _attend(long, global_, radius=1)
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
    heads = cases.heads(rng, 1, cross=False, batch=1)
    heads = heads._replace(
      query=jnp.zeros_like(heads.query), value=jnp.ones_like(heads.value)
    )
    other = heads._replace(value=jnp.zeros_like(heads.value))
    bias = jnp.zeros((cases.ROWS, cases.HEADS)).at[0].set(3.0)
    table = etc.EtcTable(jnp.ones((cases.ROWS, cases.HEADS, cases.DEPTH)), bias)
    near, _ = _attend(
      heads,
      other,
      radius=0,
      max_distance=cases.FAR,
      long_table=table,
      global_table=table,
    )
    want = jax.nn.sigmoid(3.0 / cases.DEPTH**0.5)
    np.testing.assert_allclose(near, jnp.full_like(near, want), rtol=1e-6)

  def test_hard_mask_hides_other_sentences(self):
    rng = np.random.default_rng(4)
    long, global_ = (cases.heads(rng, n, batch=1) for n in (9, 4))
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
      _attend(x, global_, radius=1, structure=structure)[1]
      for x in (long, noisy)
    )
    np.testing.assert_array_equal(moved[:, [0, 2]], calm[:, [0, 2]])
    for j in (1, 3):
      assert np.abs(moved[:, j] - calm[:, j]).max() > 1

  def test_packed_examples_do_not_meet(self):
    """Packed, two examples give what each gives alone."""
    rng = np.random.default_rng(5)
    sizes = ((6, 2), (9, 3))
    alone = [[cases.heads(rng, n, batch=1) for n in pair] for pair in sizes]
    members = [rng.integers(0, g, (1, t)) for t, g in sizes]
    contexts = [rng.integers(0, 2, (1, g)) for _, g in sizes]
    tables = cases.tables(rng)
    attend = functools.partial(
      _attend,
      radius=3,
      max_distance=cases.FAR,
      long_table=tables[0],
      global_table=tables[1],
    )
    want = [
      attend(
        *streams,
        structure=cases.structure(
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
    structure = cases.structure(
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
    streams = [cases.heads(rng, n) for n in (7, 3)]
    tables = cases.tables(rng)
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
      found = _attend(
        *padded,
        radius=2,
        structure=etc_labels.EtcStructure(
          long_valid=valid[0], global_valid=valid[1]
        ),
        max_distance=cases.FAR,
        long_table=tables[0],
        global_table=tables[1],
      )
      outs.append([x[:, :n] for x, n in zip(found, (7, 3), strict=True)])
      for x, n in zip(found, (7, 3), strict=True):
        np.testing.assert_array_equal(x[:, n:], 0)
    cases.assert_close(outs[1], outs[0], 2e-6)
    cases.assert_close(outs[2], outs[0], 2e-6)

  def test_a_token_that_sees_nothing_is_zero(self):
    rng = np.random.default_rng(7)
    inputs = (cases.heads(rng, 5), cases.heads(rng, 2))
    structure = etc_labels.EtcStructure(
      long_valid=jnp.zeros((2, 5), bool), global_valid=jnp.zeros((2, 2), bool)
    )
    found = cases.pull(
      lambda *x: etc.etc_attention(*x, radius=1, structure=structure), inputs
    )
    for leaf in jax.tree.leaves(found):
      np.testing.assert_array_equal(leaf, 0)

  def test_any_leading_axes(self):
    """None, and two, instead of one."""
    rng = np.random.default_rng(10)
    fields = cases.fields(rng, 9, 3)
    inputs = [cases.heads(rng, n) for n in (9, 3)]
    tables = cases.tables(rng)

    @jax.jit
    def attend(streams, structure):
      return etc.etc_attention(
        *streams,
        radius=2,
        structure=structure,
        max_distance=cases.FAR,
        long_table=tables[0],
        global_table=tables[1],
      )

    structure = cases.structure(fields, hard_global_to_long=True)
    want = attend(inputs, structure)
    none = attend(*jax.tree.map(lambda x: x[1], (inputs, structure)))
    two = attend(*jax.tree.map(lambda x: x[:, None], (inputs, structure)))
    cases.assert_close(none, jax.tree.map(lambda x: x[1], want), 1e-6)
    cases.assert_close(two, jax.tree.map(lambda x: x[:, None], want), 1e-6)

  def test_bfloat16_is_near(self):
    rng = np.random.default_rng(8)
    exact = [cases.heads(rng, n) for n in (17, 3)]
    tables = cases.tables(rng)
    attend = functools.partial(
      _attend,
      radius=4,
      max_distance=cases.FAR,
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
    streams = [cases.heads(rng, n) for n in (7, 3)]
    options = {"radius": 2} | options
    if "structure" in options:
      options["structure"] = etc_labels.EtcStructure(**options["structure"])
    if options.pop("tables", False):
      options["long_table"], options["global_table"] = cases.tables(rng)
    with self.assertRaisesRegex(ValueError, message):
      etc.etc_attention(*streams, **options)

  def test_streams_must_fit(self):
    rng = np.random.default_rng(0)
    long, global_ = (cases.heads(rng, n) for n in (7, 3))
    with self.assertRaisesRegex(ValueError, "differ in length only"):
      etc.etc_attention(long, cases.heads(rng, 3, batch=1), radius=1)
    with self.assertRaisesRegex(ValueError, "cross_key must have the shape"):
      bad = long._replace(cross_key=long.key[:, 1:])
      etc.etc_attention(bad, global_, radius=1)
