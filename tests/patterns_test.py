"""What each pattern means, against loops over its definition."""

import numpy as np
from absl.testing import parameterized

from jaxattn import patterns

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

  @parameterized.named_parameters(
    ("stride", lambda: patterns.Strided(0), "stride must be at least 1"),
    ("dilation", lambda: patterns.dilated(1, 1, dilation=0), "dilation"),
    ("chunk", lambda: patterns.Chunked(0), "size must be at least 1"),
    ("count", lambda: patterns.fixed(4, 5), r"count must be in \[1, stride=4"),
    ("plan", lambda: patterns.RandomBlocks(1, 4, plan=np.ones(3)), "plan"),
    ("other", lambda: patterns.Full() | 3, "patterns combine with patterns"),
  )
  def test_bad_arguments_are_named(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()
