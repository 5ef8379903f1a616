"""Patterns compile to disjoint pieces that hold exactly their edges."""

import dataclasses

import hypothesis
import numpy as np
from absl.testing import parameterized
from hypothesis import strategies as st

from jaxattn import patterns
from jaxattn._src import layout
from tests import pattern_strategies


def _count(pattern, q_len, k_len):
  found = pattern.resolve(q_len, k_len).count(
    np.arange(q_len)[:, None], np.arange(k_len)[None, :]
  )
  return np.broadcast_to(found, (q_len, k_len))


def _edges(pieces, q_len, k_len):
  total = np.zeros((q_len, k_len), int)
  for piece in pieces:
    found = piece.edges()
    total[:, : found.shape[1]] += found[:, :k_len]
  return total


@dataclasses.dataclass(frozen=True, eq=False)
class _Counting(patterns.Pattern):
  """Another pattern that notes how many pairs it is asked about."""

  inner: patterns.Pattern
  counts: list

  def mask(self, i, j):
    found = self.inner.mask(i, j)
    self.counts.append(np.size(found))
    return found

  def classes(self, rows, cols):
    return self.inner.classes(rows, cols)


class LayoutTest(parameterized.TestCase):
  @hypothesis.settings(max_examples=300)
  @hypothesis.given(
    pattern=pattern_strategies.patterns_strategy(),
    q_len=st.sampled_from(pattern_strategies.LENGTHS),
    k_len=st.sampled_from(pattern_strategies.LENGTHS),
    tile=st.sampled_from([8, 16, None]),
  )
  def test_pieces_hold_every_edge_once(self, pattern, q_len, k_len, tile):
    pieces = layout.compile_pattern(pattern, q_len, k_len, tile)
    np.testing.assert_array_equal(
      _edges(pieces, q_len, k_len), _count(pattern, q_len, k_len)
    )

  @hypothesis.settings(max_examples=100)
  @hypothesis.given(
    pattern=pattern_strategies.sums_strategy(),
    length=st.sampled_from(pattern_strategies.LENGTHS),
  )
  def test_pieces_of_a_sum_hold_edges_as_often_as_it(self, pattern, length):
    pieces = layout.compile_pattern(pattern, length, length, 8)
    np.testing.assert_array_equal(
      _edges(pieces, length, length), _count(pattern, length, length)
    )

  @hypothesis.settings(max_examples=100)
  @hypothesis.given(
    pattern=pattern_strategies.patterns_strategy(),
    length=st.sampled_from([31, 64]),
    transpose=st.booleans(),
  )
  def test_groups_visit_every_tile_once(self, pattern, length, transpose):
    for piece in layout.compile_pattern(pattern, length, length, 8):
      found, tiles = [], piece.layout
      for group in layout.groups(tiles, transpose=transpose):
        self.assertTrue((group.table[:, : group.num_full] == 0).all())
        for row, cols, table in zip(
          group.rows, group.cols, group.table, strict=True
        ):
          pairs = [
            (row, c)
            for c, t in zip(cols, table, strict=True)
            if t < len(tiles.masks)
          ]
          found += [p[::-1] for p in pairs] if transpose else pairs
      want = zip(tiles.rows, tiles.cols, strict=True)
      self.assertCountEqual(found, list(want))

  @parameterized.named_parameters(
    ("window", patterns.Window(256, 256), 3),
    (
      "bigbird",
      patterns.Window(96, 96)
      | patterns.Global(64)
      | patterns.RandomBlocks(3, 64),
      5,
    ),
    (
      "strided",
      patterns.Window(127, 0) | patterns.Strided(128) & patterns.Causal(),
      4,
    ),
    ("dilated", patterns.dilated(32, 32, dilation=4), 4),
    ("causal", patterns.Causal(), 2),
  )
  def test_equal_masks_are_stored_once(self, pattern, most):
    for piece in layout.compile_pattern(pattern, 4096, 4096):
      self.assertLessEqual(len(piece.layout.masks), most)

  def test_a_stride_costs_its_share_of_the_tiles(self):
    """Direct tiles would all be visited; residue classes visit one in 64."""
    (piece,) = layout.compile_pattern(patterns.Strided(64), 4096, 4096)
    self.assertEqual(piece.query.stride, 64)
    self.assertEqual(piece.layout.scores, 4096 * 4096 // 64)

  def test_summary_columns_are_gathered(self):
    fixed = patterns.fixed(128, 8) & patterns.Causal()
    pieces = layout.compile_pattern(fixed, 4096, 4096)
    self.assertIsInstance(pieces[-1].key, layout.Columns)
    scores = sum(p.layout.scores for p in pieces)
    # Half of the 4096 x 256 summaries, and 32 chunks of 128 x 128, in tiles.
    self.assertLess(scores, 0.08 * 4096**2)

  def test_only_partial_tiles_are_evaluated(self):
    """At 64K the predicate is asked about a hundredth of all pairs at most."""
    pattern = patterns.Window(192, 0) | patterns.Global(64)
    pattern = (pattern | patterns.RandomBlocks(3, 64)) & patterns.Causal()
    length, counts = 65536, []
    counting = _Counting(pattern.resolve(length, length), counts)
    layout.compile_pattern(counting, length, length)
    self.assertGreater(sum(counts), 0)
    self.assertLess(sum(counts), length**2 / 100)

  def test_equal_patterns_share_a_layout(self):
    first = layout.compile_pattern(patterns.Window(3, 0), 40, 40)
    second = layout.compile_pattern(patterns.Window(3, 0), 40, 40)
    self.assertIs(first, second)
    moved = layout.compile_pattern(patterns.Window(3, 0), 40, 40, 16)
    self.assertNotEqual(first[0].layout, moved[0].layout)
    self.assertEqual(hash(first[0].layout), hash(second[0].layout))
