"""ETC's labels, and its attention on one sequence as a method."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxattn
from jaxattn._src import etc
from jaxattn._src import etc_labels
from tests import etc_cases as cases


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
    fields = cases.fields(rng, 9, 3)
    structure = cases.structure(
      {k: fields[k] for k in ("sentence_ids", "membership", "context_ids")}
    )
    found = etc_labels.etc_relative_labels(
      9, 3, max_distance=cases.FAR, structure=structure
    )
    np.testing.assert_array_equal(
      found["long_to_global"], np.swapaxes(found["global_to_long"], 1, 2)
    )
    _, labels = cases.edges(fields, (False, False), 9, 9, 3)
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
    method = etc.etc(num_global=num_global, radius=4, max_distance=cases.FAR)
    shapes = jaxattn.AttentionShapes(
      num_heads=cases.HEADS, head_dim=cases.DEPTH
    )
    params, state = method.init(jax.random.key(0), shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: cases.floats(rng, *x.shape), params)
    x = cases.heads(rng, length, cross=False)[:3]

    def ours(params, *qkv):
      return (method.apply(params, state, *qkv)[0],)

    def oracle(params, *qkv):
      cut = min(num_global, length)
      parts = [
        etc.EtcHeads(*(x[:, at] for x in qkv))
        for at in (slice(cut, None), slice(0, cut))
      ]
      edges = cases.edges({}, (False, False), 4, length - cut, cut)
      tables = [etc.EtcTable(**params[name]) for name in ("long", "global")]
      found = cases.oracle(*parts, tables, *edges)
      return (jnp.concatenate(found[::-1], axis=1),)

    cases.assert_close(
      cases.pull(ours, (params, *x)), cases.pull(oracle, (params, *x))
    )

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
