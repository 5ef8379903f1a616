"""What `explain` tells is what the engine does."""

import numpy as np
from absl.testing import parameterized

import jaxattn
from jaxattn import patterns
from jaxattn._src import dispatch


class ExplainTest(parameterized.TestCase):
  def test_counts_a_window_by_hand(self):
    """Four tiles of 8: each row sees its own and the one before, but row 0."""
    found = jaxattn.explain(
      patterns.Window(7, 0), 32, num_heads=2, head_dim=4, tile=8
    )
    self.assertEqual(found.edges, 32 * 8 - 28)
    self.assertEqual(found.tiles, 7)
    self.assertEqual(found.scores, 7 * 64)
    self.assertEqual(found.density, 7 / 16)
    self.assertEqual(found.flops, 2 * 2 * 7 * 64 * 4 * 2)
    (piece,) = found.pieces
    self.assertEqual((piece.full_tiles, piece.masks), (0, 2))
    self.assertEqual(sum(rows for rows, _, _ in piece.rows), 4)

  def test_says_who_would_serve_and_why(self):
    window = patterns.Window(100, 0)
    found = jaxattn.explain(window, 4096, bytes_per_element=2)
    self.assertEqual(found.implementation, "xla")
    self.assertIn("need an NVIDIA Hopper GPU or a TPU", found.reason)
    with dispatch.emulate("tpu"):
      found = jaxattn.explain(window, 4096, bytes_per_element=2)
    self.assertEqual(found.implementation, "tpu")
    self.assertIn(found.pieces[0].query_tile, (128, 256, 512))
    with dispatch.emulate("tpu"):
      found = jaxattn.explain(window, 4096, head_dim=512)
    self.assertEqual(found.implementation, "xla")
    self.assertIn("up to 256 features", found.reason)

  def test_names_the_re_indexing(self):
    found = jaxattn.explain(
      patterns.fixed(128, 8) | patterns.Strided(64), 4096, causal=True
    )
    self.assertEqual(
      [p.reindexing for p in found.pieces],
      ["none", "256 key columns gathered", "residue classes modulo 64"],
    )
    for part in ("GFLOP", "residue classes modulo 64", "by xla"):
      self.assertIn(part, str(found))

  def test_draws_cells(self):
    drawn = jaxattn.explain(patterns.Window(3, 0), 8).draw(4)
    self.assertEqual(drawn.split("\n"), ["+...", "#+..", "+#+.", ".+#+"])

  def test_a_drawing_of_a_long_pattern_is_small(self):
    lines = jaxattn.explain(patterns.Window(500, 0), 16384).draw(16).split("\n")
    self.assertEqual({len(line) for line in lines}, {16})
    np.testing.assert_array_equal(
      [line.count("+") for line in lines], [1] + [2] * 15
    )

  @parameterized.named_parameters(
    ("pattern", (3, 8), "pattern must be"),
    ("length", (patterns.Full(), 0), "query_length must be at least 1"),
  )
  def test_bad_arguments_are_named(self, args, message):
    with self.assertRaisesRegex(ValueError, message):
      jaxattn.explain(*args)
