"""BigBird's plans: our own draw, and published tables recorded from the code.

The recorded tables were printed by the authors' code and by Hugging Face
Transformers; `tests/parity` compares with the latter where it is installed.
"""

import hashlib
import json
import subprocess
import sys

import numpy as np
from absl.testing import parameterized

from jaxattn._src import bigbird_plans


def _digest(plan):
  data = np.ascontiguousarray(plan, "<i4").tobytes()
  return hashlib.sha256(data).hexdigest()[:16]


class UniformPlanTest(parameterized.TestCase):
  @parameterized.product(
    num_blocks=(1, 2, 3, 5, 6, 9, 40),
    num_random=(0, 1, 3, 8),
    window=(1, 3, 7),
    ends=(True, False),
  )
  def test_slots_are_what_nothing_else_has(
    self, num_blocks, num_random, window, ends
  ):
    plan = bigbird_plans.uniform_plan(
      3, num_blocks, num_random, window=window, seed=5, ends=ends
    )
    rows = list(range(num_blocks))[1:-1] if ends else list(range(num_blocks))
    self.assertEqual(plan.shape, (3, len(rows), num_random))
    self.assertEqual(plan.dtype, np.int32)
    for head in plan:
      for row, slots in zip(rows, head.tolist(), strict=True):
        allowed = {c for c in rows if abs(c - row) > window // 2}
        used = [c for c in slots if c >= 0]
        self.assertEqual(slots, used + [-1] * (num_random - len(used)))
        self.assertEqual(used, sorted(set(used)))
        self.assertLen(used, min(num_random, len(allowed)))
        self.assertLessEqual(set(used), allowed)

  def test_every_block_is_as_likely(self):
    """3 of 9 blocks on 6000 heads: 2000 times each, with a spread of 37."""
    plan = bigbird_plans.uniform_plan(6000, 13, 3)
    for row in (0, 4, 10):
      counts = np.bincount(plan[:, row].reshape(-1), minlength=13)
      allowed = [c for c in range(1, 12) if abs(c - row - 1) > 1]
      expected = 6000 * 3 / len(allowed)
      self.assertEqual(counts.sum(), 18000)
      np.testing.assert_allclose(counts[allowed], expected, atol=190)

  def test_seed_layer_and_head_draw_their_own(self):
    first = bigbird_plans.uniform_plan(4, 30, 3, seed=1, layer=2)
    again = bigbird_plans.uniform_plan(4, 30, 3, seed=1, layer=2)
    np.testing.assert_array_equal(first, again)
    others = [
      bigbird_plans.uniform_plan(4, 30, 3, seed=1, layer=3),
      bigbird_plans.uniform_plan(4, 30, 3, seed=2, layer=2),
      first[[1, 2, 3, 0]],
    ]
    for other in others:
      for head in range(4):
        self.assertTrue((first[head] != other[head]).any())
    more = bigbird_plans.uniform_plan(6, 30, 3, seed=1, layer=2)
    np.testing.assert_array_equal(first, more[:4])

  def test_recorded(self):
    """A restored model must find its blocks again: these may never change."""
    plan = bigbird_plans.uniform_plan(1, 8, 2)
    want = [[3, 6], [5, 6], [5, 6], [2, 6], [1, 2], [2, 3]]
    self.assertEqual(plan[0].tolist(), want)
    plan = bigbird_plans.uniform_plan(12, 64, 3, seed=3, layer=7)
    self.assertEqual(_digest(plan), "14dd49edbd473c62")

  def test_is_the_same_in_another_process(self):
    program = (
      "import json; from jaxattn._src import bigbird_plans as p;"
      "print(json.dumps(p.uniform_plan(2, 20, 3, seed=9).tolist()))"
    )
    found = subprocess.run(
      [sys.executable, "-c", program],
      capture_output=True,
      text=True,
      check=True,
    )
    want = bigbird_plans.uniform_plan(2, 20, 3, seed=9)
    self.assertEqual(json.loads(found.stdout), want.tolist())

  @parameterized.parameters(
    (dict(num_heads=0), "num_heads must be at least 1, got 0"),
    (dict(num_blocks=0), "num_blocks must be at least 1"),
    (dict(num_random=-1), "num_random must be at least 0"),
    (dict(window=2), "window must be odd, got 2"),
    (dict(seed=-1), "seed must be at least 0"),
    (dict(layer=-1), "layer must be at least 0"),
  )
  def test_errors(self, change, message):
    options = dict(num_heads=1, num_blocks=9, num_random=1) | change
    with self.assertRaisesRegex(ValueError, message):
      bigbird_plans.uniform_plan(**options)


class PaperPlanTest(parameterized.TestCase):
  def test_recorded_tables(self):
    """Printed by the authors' code, for each way in which it makes a plan."""
    plan = bigbird_plans.paper_plan(2, 1024, layer=0)
    want = [
      [
        [9, 14, 7], [9, 6, 7], [10, 5, 14], [6, 8, 12], [2, 13, 1],
        [4, 11, 3], [1, 10, 5], [2, 3, 15], [13, 11, 14], [15, 13, 8],
        [9, 7, 4], [1, 2, 5], [8, 9, 7], [2, 6, 5],
      ],
      [
        [6, 11, 10], [8, 4, 12], [12, 11, 10], [7, 11, 10], [14, 11, 13],
        [3, 2, 13], [15, 12, 3], [11, 14, 6], [4, 11, 3], [6, 2, 12],
        [13, 5, 14], [10, 3, 7], [2, 15, 3], [11, 8, 10],
      ],
    ]  # fmt: skip
    self.assertEqual(plan.tolist(), want)
    plan = bigbird_plans.paper_plan(2, 192, block=16, layer=1)
    want = [
      [
        [3, 4, 6], [9, 5, 6], [7, 1, 5], [6, 1, 8], [8, 3, 1],
        [8, 1, 3], [4, 3, 5], [4, 3, 5], [2, 3, 6], [2, 3, 1],
      ],
      [
        [7, 3, 8], [5, 8, 4], [7, 9, 8], [6, 8, 2], [2, 3, 1],
        [2, 3, 1], [4, 5, 3], [3, 2, 1], [2, 7, 3], [1, 6, 3],
      ],
    ]  # fmt: skip
    self.assertEqual(plan.tolist(), want)
    plan = bigbird_plans.paper_plan(1, 64, block=8, layer=2)
    want = [[4, 3, 5], [6, 4, 5], [1, 6, 5], [6, 2, 1], [2, 1, 3], [3, 2, 4]]
    self.assertEqual(plan[0].tolist(), want)

  @parameterized.parameters(
    (12, 1024, 64, 3, 0, "868d9dcb71bb7057"),
    (12, 2048, 64, 3, 4, "22555a8234a7f510"),
    (12, 3072, 64, 3, 7, "fa9226fc257c35bd"),
    (12, 4096, 64, 3, 11, "fd5862370db994a1"),
    (16, 4096, 64, 3, 23, "d1c90e499064a76c"),
    (12, 8192, 64, 3, 5, "313132b5cc3a8851"),
    (12, 768, 64, 3, 1, "38c67d975e22a2e6"),
    (4, 4096, 16, 2, 6, "64db2f3ef46cc61d"),
    (4, 168, 8, 8, 3, "d8dcfd6278ac4edb"),
    (4, 200, 8, 2, 9, "3c8fccf5b2d35cc6"),
  )
  def test_recorded_digests(self, heads, length, block, num, layer, digest):
    plan = bigbird_plans.paper_plan(
      heads, length, block=block, num_random=num, layer=layer
    )
    self.assertEqual(_digest(plan), digest)

  def test_facts_of_the_authors_plan(self):
    """Random blocks come from the start only, and may repeat the last one."""
    for length, last in ((4096, 15), (2048, 15), (8192, 9), (1024, 15)):
      plan = bigbird_plans.paper_plan(12, length)
      self.assertEqual(plan.min(), 1)
      self.assertEqual(plan.max(), last)
    plan = bigbird_plans.paper_plan(1, 1024)
    self.assertEqual((plan == 15).sum(), 2)  # Also the global last block.

  def test_slots_are_empty_where_the_authors_code_fails(self):
    for num_blocks in (1, 2, 3, 4, 5, 7, 9):
      plan = bigbird_plans.paper_plan(2, 8 * num_blocks, block=8)
      self.assertEqual(plan.shape, (2, max(num_blocks - 2, 0), 3))
      self.assertTrue(num_blocks < 3 or (plan == -1).any())
      self.assertTrue((plan < num_blocks).all())

  @parameterized.parameters(
    (dict(length=1000), "length must be a multiple of block=64, got 1000"),
    (dict(max_length=2048), "length 4096 is above max_length=2048"),
    (dict(block=0), "block must be at least 1"),
    (dict(layer=-1), "layer must be at least 0"),
    (dict(num_random=-1), "num_random must be at least 0"),
  )
  def test_errors(self, change, message):
    options = dict(num_heads=1, length=4096) | change
    with self.assertRaisesRegex(ValueError, message):
      bigbird_plans.paper_plan(**options)


class HuggingfacePlanTest(parameterized.TestCase):
  @parameterized.parameters(
    (12, 1024, 0, 4096, "868d9dcb71bb7057"),
    (12, 2048, 4, 4096, "f16f4089f6b8b5de"),  # Not in their list.
    (12, 3072, 7, 4096, "fa9226fc257c35bd"),
    (12, 4096, 11, 4096, "fd5862370db994a1"),
    (12, 768, 1, 4096, "38c67d975e22a2e6"),
    (2, 1024, 1, 2048, "1e7c03cce809b293"),
  )
  def test_recorded_digests(self, heads, length, layer, longest, digest):
    plan = bigbird_plans.huggingface_plan(
      heads, length, layer=layer, max_length=longest, train=True
    )
    self.assertEqual(_digest(plan), digest)

  def test_evaluation_reads_the_first_block_only(self):
    plan = bigbird_plans.huggingface_plan(3, 768, num_random=2, train=False)
    np.testing.assert_array_equal(plan, np.zeros((3, 10, 2), np.int32))
    with self.assertRaisesRegex(ValueError, "multiple of block=64"):
      bigbird_plans.huggingface_plan(3, 100, train=False)
