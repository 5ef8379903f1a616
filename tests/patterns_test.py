"""What each pattern means, against loops over its definition."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from hypothesis import strategies as st

from jaxattn import patterns
from tests import pattern_strategies

_LENGTH = 13


def _grid(pattern):
  i = np.arange(_LENGTH)
  pattern = pattern.resolve(_LENGTH, _LENGTH)
  return np.broadcast_to(pattern.mask(i[:, None], i[None, :]), (_LENGTH,) * 2)


class PatternsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("full", patterns.Full(), lambda i, j: True),
    ("causal", patterns.Causal(), lambda i, j: j <= i),
    ("window", patterns.Window(2, 1), lambda i, j: i - 2 <= j <= i + 1),
    ("strided", patterns.Strided(3), lambda i, j: abs(i - j) % 3 == 0),
    (
      "dilated",
      patterns.dilated(2, 1, dilation=3),
      lambda i, j: j - i in (-6, -3, 0, 3),
    ),
    (
      "chunked",
      patterns.Chunked(4, before=1),
      lambda i, j: i // 4 - 1 <= j // 4 <= i // 4,
    ),
    (
      "fixed",
      patterns.fixed(4, 2),
      lambda i, j: i // 4 == j // 4 or j % 4 in (2, 3),
    ),
    ("rows", patterns.Global(2, cols=False), lambda i, j: i < 2),
    ("cols", patterns.Global(2, rows=False), lambda i, j: j < 2),
    (
      "and",
      patterns.Window(2, 2) & patterns.Causal(),
      lambda i, j: i - 2 <= j <= i,
    ),
    (
      "or",
      patterns.Causal() | patterns.Global(1),
      lambda i, j: j <= i or i < 1,
    ),
    (
      "minus",
      patterns.Causal() - patterns.Window(1, 1),
      lambda i, j: j <= i and j < i - 1,
    ),
    ("not", ~patterns.Causal(), lambda i, j: j > i),
    (
      "summary",
      patterns.Summary(5, 2, shift=1),
      lambda i, j: j % 5 in (2, 3),
    ),
    (
      "moved",
      patterns.Moved(patterns.Chunked(4), 3),
      lambda i, j: min(i, j) >= 3 and (i - 3) // 4 == (j - 3) // 4,
    ),
    (
      "moved_or",
      patterns.Global(3) | patterns.Moved(patterns.Window(1, 1), 3),
      lambda i, j: min(i, j) < 3 or abs(i - j) <= 1,
    ),
    (
      "plan",
      patterns.RandomBlocks(2, 4, plan=((3, -1), (0, 1))),
      lambda i, j: (i // 4, j // 4) in ((0, 3), (1, 0), (1, 1)),
    ),
  )
  def test_mask_is_the_definition(self, pattern, definition):
    want = [[definition(i, j) for j in range(_LENGTH)] for i in range(_LENGTH)]
    np.testing.assert_array_equal(_grid(pattern), want)

  def test_random_blocks_are_fixed_by_the_seed(self):
    draw = patterns.RandomBlocks(2, 4, seed=1)
    grid = _grid(draw)
    np.testing.assert_array_equal(grid, _grid(patterns.RandomBlocks(2, 4, 1)))
    self.assertFalse(
      np.array_equal(grid, _grid(patterns.RandomBlocks(2, 4, 2)))
    )
    # Two distinct blocks of at most four tokens, the last block has one.
    self.assertTrue(set(grid.sum(1)) <= {5, 8})

  def test_patterns_are_values(self):
    def make():
      return (patterns.Window(3, 0) | patterns.Global(2)) - patterns.Full()

    self.assertEqual(make(), make())
    self.assertEqual(hash(make()), hash(make()))
    plan = np.array([[0], [1]])
    self.assertEqual(
      patterns.RandomBlocks(1, 4, plan=plan),
      patterns.RandomBlocks(1, 4, plan=plan.copy()),
    )

  def test_a_sum_counts_edges(self):
    i = np.arange(_LENGTH)
    near, first = patterns.Window(1, 1), patterns.Global(2)
    for pattern in (near + first + near, near + (first + near)):
      found = pattern.count(i[:, None], i[None, :])
      np.testing.assert_array_equal(found, 2 * _grid(near) + _grid(first))
      np.testing.assert_array_equal(_grid(pattern), found > 0)
    half = (near + first) & patterns.Causal()
    found = half.count(i[:, None], i[None, :])
    causal = _grid(patterns.Causal())
    want = (1 * _grid(near) + _grid(first)) * causal
    np.testing.assert_array_equal(found, want)

  @hypothesis.settings(max_examples=25)
  @hypothesis.given(
    pattern=pattern_strategies.patterns_strategy(),
    length=st.sampled_from(pattern_strategies.LENGTHS),
  )
  def test_keys_and_masks_of_traced_queries(self, pattern, length):
    pattern = pattern.resolve(length, length)
    queries = np.arange(length, dtype=np.int32)
    want = np.broadcast_to(
      pattern.mask(queries[:, None], queries[None, :]), (length, length)
    )
    traced = pattern.mask(jnp.asarray(queries)[:, None], queries[None, :])
    np.testing.assert_array_equal(
      np.broadcast_to(traced, (length, length)), want
    )
    keys = pattern.keys(jnp.asarray(queries), length)
    if keys is None:
      return
    index, valid = (np.asarray(x) for x in keys)
    found = np.zeros((length, length), int)
    np.add.at(found, (queries[:, None], index), valid.astype(int))
    np.testing.assert_array_equal(found, want)

  @parameterized.named_parameters(
    ("window", patterns.Window(3, 0), 4),
    ("dilated", patterns.dilated(3, 0, dilation=9), 4),
    ("strided", patterns.Window(9, 0) | patterns.Strided(10), 20),
    ("fixed", patterns.fixed(10, 2), 30),
    ("global", patterns.Window(3, 0) | patterns.Global(2, rows=False), 6),
    ("random", patterns.RandomBlocks(2, 5), 10),
    ("moved", patterns.Moved(patterns.Chunked(4, before=1), 2), 8),
  )
  def test_keys_are_few(self, pattern, want):
    keys = (pattern & patterns.Causal()).resolve(100, 100).keys
    index, _ = jax.eval_shape(lambda i: keys(i, 100), jnp.zeros((), jnp.int32))
    self.assertEqual(index.shape, (want,))

  @parameterized.named_parameters(
    ("stride", lambda: patterns.Strided(0), "stride must be at least 1"),
    ("dilation", lambda: patterns.dilated(1, 1, dilation=0), "dilation"),
    ("chunk", lambda: patterns.Chunked(0), "size must be at least 1"),
    (
      "count",
      lambda: patterns.fixed(4, 5),
      r"size \+ shift must be in \[1, stride=4",
    ),
    ("plan", lambda: patterns.RandomBlocks(1, 4, plan=np.ones(3)), "plan"),
    (
      "sum",
      lambda: (patterns.Full() + patterns.Full()) | patterns.Full(),
      "write the sum last",
    ),
    ("summary", lambda: patterns.Summary(4, 3, shift=2), "size"),
    ("moved", lambda: patterns.Moved(patterns.Full(), -1), "by must not"),
    ("other", lambda: patterns.Full() | 3, "patterns combine with patterns"),
  )
  def test_bad_arguments_are_named(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()
