"""BigBird: edges and their multiplicities, oracles, cost and limit cases."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxattn
from jaxattn import patterns
from jaxattn._src import bigbird as bigbird_lib
from jaxattn._src import bigbird_plans
from jaxattn._src import layout
from jaxattn._src import pattern_base
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

_HEADS, _DEPTH = 2, 8
bigbird = bigbird_lib.bigbird


def _found(method, length):
  """How often each edge counts in the method's pattern, `[N, T, T]`."""
  found = method.pattern(_HEADS, length, length)
  per_head = found if isinstance(found, tuple) else (found,) * _HEADS
  i = np.arange(length)
  counts = [p.count(i[:, None], i[None, :]) for p in per_head]
  return np.stack([np.broadcast_to(c, (length, length)) for c in counts])


def _read(plan, length, block):
  """How often the authors' code reads each edge, from the plan alone.

  It writes out which blocks the first two rows of blocks, the last two and the
  others concatenate; at least five blocks are needed.
  """
  num = -(-length // block)
  counts = np.zeros((len(plan), num, num), int)
  for head, table in enumerate(plan):
    for row in range(num):
      if row in (0, num - 1):
        reads = list(range(num))
      elif row == 1:
        reads = [0, 1, 2, num - 1]
      elif row == num - 2:
        reads = [0, num - 3, num - 2, num - 1]
      else:
        reads = [0, row - 1, row, row + 1, num - 1]
      if 0 < row < num - 1:
        reads += [c for c in table[row - 1].tolist() if c >= 0]
      np.add.at(counts[head, row], reads, 1)
  return counts.repeat(block, 1).repeat(block, 2)[:, :length, :length]


def _draw(seed, length):
  rngs = jax.random.split(jax.random.key(seed), 4)
  shape = (2, length, _HEADS, _DEPTH)
  return [jax.random.normal(rng, shape) for rng in rngs]


def _oracle(q, k, v, counts):
  """Softmax over all keys, each score raised by the log of its count."""
  scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest")
  weight = jnp.log(jnp.asarray(counts, jnp.float32))[None]
  weights = jax.nn.softmax(scores * jnp.float32(_DEPTH**-0.5) + weight, axis=-1)
  return jnp.einsum("bnts,bsnh->btnh", weights, v, precision="highest")


@functools.partial(jax.jit, static_argnums=0)
def _pull(attend, qkv, cotangent, *rest):
  """Output and gradients of a function or a method."""
  out, vjp = jax.vjp(lambda *x: _call(attend, *x, *rest), *qkv)
  return out, vjp(cotangent)


def _call(attend, q, k, v, *rest):
  if isinstance(attend, jaxattn.AttentionMethod):
    return attend.apply((), (), q, k, v)[0]
  return attend(q, k, v, *rest)


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def _apply(method, qkv, **options):
  return method.apply((), (), *qkv, **options)[0]


class EdgesTest(parameterized.TestCase):
  @parameterized.parameters(
    (40, 8, 3), (96, 8, 3), (97, 8, 3), (300, 16, 2), (64, 8, 0)
  )  # fmt: skip
  def test_uniform_edges_count_once(self, length, block, num_random):
    method = bigbird(block=block, num_random=num_random, seed=4, layer=2)
    plan = bigbird_plans.uniform_plan(
      _HEADS, -(-length // block), num_random, seed=4, layer=2
    )
    want = _read(plan, length, block)
    self.assertEqual(want.max(), 1)
    np.testing.assert_array_equal(_found(method, length), want)

  @parameterized.parameters((1024, 64), (96, 8), (2048, 128), (90, 8), (56, 8))
  def test_paper_edges_count_as_the_authors_read_them(self, length, block):
    method = bigbird(block=block, plan="paper", layer=1)
    whole = -(-length // block) * block
    plan = bigbird_plans.paper_plan(_HEADS, whole, block=block, layer=1)
    want = _read(plan, length, block)
    np.testing.assert_array_equal(_found(method, length), want)
    self.assertEqual(want.max(), 2 if length == 1024 else 1)

  @parameterized.product(train=(False, True), length=(93, 100, 1024))
  def test_huggingface_edges(self, train, length):
    block = 64 if length == 1024 else 8
    name = "huggingface_train" if train else "huggingface"
    method = bigbird(block=block, plan=name, layer=1)
    whole = -(-length // block) * block
    plan = bigbird_plans.huggingface_plan(
      _HEADS, whole, block=block, layer=1, train=train
    )
    want = _read(plan, length, block)
    np.testing.assert_array_equal(_found(method, length), want)
    if not train:
      self.assertEqual(want[0, block, 0], 4)

  def test_huggingface_is_full_where_their_models_are(self):
    for name in ("huggingface", "huggingface_train"):
      method = bigbird(block=8, plan=name)
      self.assertEqual(method.pattern(2, 88, 88), patterns.Full())
      self.assertGreater((_found(method, 89) == 0).sum(), 0)

  def test_an_explicit_plan_counts_repeats(self):
    # A global block, one of the window, one thrice; an empty slot; none.
    plan = np.array([[[0, 4, -1], [2, 4, 4], [5, 5, 5], [-1, -1, -1]]])
    method = bigbird(block=4, plan=plan)
    self.assertEqual(method, bigbird(block=4, plan=plan.tolist()))
    self.assertEqual(method.num_random, 3)
    found = _found(method, 23)
    np.testing.assert_array_equal(found, _read(plan.repeat(2, 0), 23, 4))
    self.assertEqual(found[0, 8, [8, 16]].tolist(), [2, 2])
    self.assertEqual(found[0, 12, 20], 4)

  @parameterized.parameters((1, 8), (8, 8), (17, 8), (32, 8))
  def test_up_to_four_blocks_is_full_attention(self, length, block):
    for options in ({}, dict(plan="paper"), dict(num_random=0)):
      found = _found(bigbird(block=block, **options), length)
      np.testing.assert_array_equal(found, np.ones_like(found))
    self.assertEqual(_found(bigbird(block=8, num_random=0), 33).min(), 0)

  @parameterized.parameters(
    (50, 3, 3, 2), (67, 0, 5, 1), (5, 5, 3, 2), (4, 9, 3, 1)
  )
  def test_etc_edges(self, length, num_global, window, num_random):
    method = bigbird(
      block=4,
      form="etc",
      num_global=num_global,
      window_blocks=window,
      num_random=num_random,
      seed=1,
    )
    blocks = max(-(-(length - num_global) // 4), 1)
    plan = bigbird_plans.uniform_plan(
      _HEADS, blocks, num_random, window=window, seed=1, ends=False
    )
    want = np.ones((_HEADS, length, length), int)
    for head in range(_HEADS):
      for i in range(num_global, length):
        row = (i - num_global) // 4
        for j in range(num_global, length):
          col = (j - num_global) // 4
          near = abs(col - row) <= window // 2
          want[head, i, j] = near or col in plan[head, row]
    np.testing.assert_array_equal(_found(method, length), want)

  def test_etc_counts_repeats(self):
    plan = [[[2, 2], [1, -1], [-1, -1]]]
    found = _found(bigbird(block=2, form="etc", num_global=1, plan=plan), 7)
    self.assertEqual(found[0, 1].tolist(), [1, 1, 1, 1, 1, 2, 2])
    self.assertEqual(found[0, 3].tolist(), [1, 1, 1, 2, 2, 1, 1])
    self.assertEqual(found[0, 0].tolist(), [1] * 7)

  def test_the_last_block_is_that_of_the_array(self):
    """Padding is part of the array: its last block is the global one."""
    method = bigbird(block=4, num_random=0)
    found = _found(method, 27)[0]
    self.assertEqual(found[:, 24:].min(), 1)
    self.assertEqual(found[24:].min(), 1)
    self.assertEqual(found[8, 20:24].max(), 0)

  @parameterized.product(row_tile=(2, 4, 8), col_tile=(2, 4, 8))
  def test_classes_of_a_plan_are_exact(self, row_tile, col_tile):
    plan = bigbird_plans.uniform_plan(1, 8, 2, ends=False)[0]
    pattern = patterns.RandomBlocks(2, 4, plan=plan)
    index = np.arange(32)
    rows, cols = (
      pattern_base.Tiles(index.reshape(-1, n)) for n in (row_tile, col_tile)
    )
    mask = pattern.mask(index[:, None], index[None, :])
    mask = mask.reshape(rows.num, row_tile, cols.num, col_tile)
    want = pattern_base.all_any(mask.all((1, 3)), mask.any((1, 3)))
    np.testing.assert_array_equal(pattern.classes(rows, cols), want)


class AttentionTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 8), (7, 8), (64, 16), (65, 16), (100, 8), (300, 16)
  )  # fmt: skip
  def test_equals_dense_attention_over_its_edges(self, length, block):
    """In value and gradient, by the oracle and by softmax written out."""
    method = bigbird(block=block, num_random=2)
    *qkv, ct = _draw(length, length)
    found = method.pattern(_HEADS, length, length)
    got = _pull(method, qkv, ct)
    dense = functools.partial(jaxattn.dense_attention, pattern=found)
    assert_close(got, _pull(dense, qkv, ct), 2e-5)
    counts = np.ones((_HEADS, length, length))
    if length > 4 * block:
      plan = bigbird_plans.uniform_plan(_HEADS, -(-length // block), 2)
      counts = _read(plan, length, block)
    assert_close(got, _pull(_oracle, qkv, ct, counts), 2e-5)

  @parameterized.parameters((9, 8, 3), (65, 16, 16), (100, 8, 5))
  def test_etc_equals_dense_attention(self, length, block, num_global):
    method = bigbird(
      block=block, form="etc", num_global=num_global, num_random=1
    )
    *qkv, ct = _draw(length, length)
    want = _pull(_oracle, qkv, ct, _found(method, length))
    assert_close(_pull(method, qkv, ct), want, 2e-5)

  @parameterized.named_parameters(
    ("window_global_thrice", dict(plan=[
      [[0, 4, -1], [2, 4, 4], [5, 5, 5], [-1, -1, -1]],
      [[3, -1, -1], [-1, -1, -1], [5, 0, 0], [1, 1, 2]],
    ]), 6),
    ("huggingface", dict(plan="huggingface", num_random=2), 11),
  )  # fmt: skip
  def test_multiplicity_weighs_by_its_log(self, options, blocks):
    length = 8 * blocks - 3
    method = bigbird(block=8, **options)
    *qkv, ct = _draw(0, length)
    whole = method.table(_HEADS, blocks)
    counts = _read(whole.repeat(_HEADS // len(whole), 0), length, 8)
    self.assertGreater(counts.max(), 1)
    got = _pull(method, qkv, ct)
    assert_close(got, _pull(_oracle, qkv, ct, counts), 2e-5)
    once = _oracle(*qkv, np.minimum(counts, 1))
    self.assertGreater(float(jnp.abs(once - got[0]).max()), 1e-2)

  @parameterized.named_parameters(
    ("wide", dict(block=4, num_random=0, window_blocks=33)),
    ("one_block", dict(block=64, num_random=0)),
    ("all_global", dict(block=4, form="etc", num_global=60, num_random=0)),
  )
  def test_limits_are_full_attention(self, options):
    *qkv, ct = _draw(1, 60)
    want = _pull(jaxattn.dense(), qkv, ct)
    assert_close(_pull(bigbird(**options), qkv, ct), want, 1e-5)

  def test_padding(self):
    """Padded queries give zero; what stands at padding does not matter.

    The length of the array does: it says which block is the last.
    """
    *qkv, _ = _draw(2, 48)
    valid = jnp.tile(jnp.arange(48)[None] < 37, (2, 1))
    mask = jaxattn.Mask(key_valid=valid, query_valid=valid)
    method = bigbird(block=4, num_random=1)
    out = _apply(method, qkv, mask=mask)
    assert_zero(out[:, 37:])
    loud = jnp.where(valid[..., None, None], 0.0, 100.0)
    noisy = _apply(method, [x + loud for x in qkv], mask=mask)
    assert_close(noisy, out, 1e-6)
    cut = _apply(method, [x[:, :37] for x in qkv])
    self.assertGreater(float(jnp.abs(cut - out[:, :37]).max()), 1e-2)

  def test_the_same_edges_in_training_and_evaluation(self):
    *qkv, _ = _draw(3, 50)
    for name in ("uniform", "huggingface_train"):
      method = bigbird(block=4, num_random=1, plan=name)
      outs = [
        _apply(method, qkv, train=train, rng=jax.random.key(train))
        for train in (False, True)
      ]
      np.testing.assert_array_equal(*outs)

  def test_layers_draw_different_blocks(self):
    for name in ("uniform", "paper", "huggingface_train"):
      first, second = (
        bigbird(block=4, plan=name, layer=layer) for layer in (0, 1)
      )
      self.assertTrue((_found(first, 80) != _found(second, 80)).any())
    seeds = [_found(bigbird(block=4, seed=seed), 80) for seed in (0, 1)]
    self.assertTrue((seeds[0] != seeds[1]).any())


class CostTest(parameterized.TestCase):
  def test_scores_are_those_of_the_formula(self):
    """Two dense rows, two with 4 + r blocks, and 5 + r blocks in the others."""
    n, w, r = 4096, 64, 3
    for name in ("uniform", "paper"):
      want = 2 * w * n + 2 * (4 + r) * w**2 + (n // w - 4) * (5 + r) * w**2
      for pattern in bigbird(plan=name).pattern(2, n, n):
        found = jaxattn.explain(pattern, n)
        self.assertEqual(found.edges, want)
        self.assertEqual(found.scores, want)  # Every tile is full.

  def test_etc_scores(self):
    n, g, w, r = 1024, 128, 64, 2
    method = bigbird(form="etc", num_global=g, num_random=r)
    found = jaxattn.explain(method.pattern(1, n + g, n + g), n + g)
    want = g * (g + 2 * n) + n * (3 + r) * w - 2 * w**2
    self.assertEqual(found.edges, want)
    self.assertEqual(found.scores, want)

  @parameterized.parameters("uniform", "paper", "huggingface")
  def test_heads_run_together(self, plan):
    found = bigbird(plan=plan).pattern(8, 4096, 4096)
    heads = found if isinstance(found, tuple) else (found,)
    self.assertLen(heads, 1 if plan == "huggingface" else 8)
    maps = {
      tuple((p.query, p.key) for p in layout.compile_pattern(x, 4096, 4096))
      for x in heads
    }
    self.assertLen(maps, 1)


class OptionsTest(parameterized.TestCase):
  def test_is_a_value(self):
    method = bigbird(block=8)
    self.assertIsInstance(method, jaxattn.AttentionMethod)
    self.assertEqual(method, dataclasses.replace(method))
    self.assertEqual(method, bigbird(block=8, num_random=3))
    self.assertNotEqual(method, bigbird(block=8, layer=1))

  @parameterized.parameters(
    (dict(block=0), "block must be at least 1"),
    (dict(window_blocks=2), "window_blocks must be odd"),
    (dict(window_blocks=-1), "window_blocks must be odd"),
    (dict(seed=-1), "seed must not be negative"),
    (dict(layer=-1), "layer must not be negative"),
    (dict(num_random=-1), "num_random must not be negative"),
    (dict(form="mtc"), "form must be one of"),
    (dict(num_global=2), "num_global is of form='etc'"),
    (dict(form="etc"), "form='etc' needs num_global"),
    (dict(form="etc", num_global=-1), "form='etc' needs num_global"),
    (dict(plan="random"), "plan must be one of"),
    (dict(plan="paper", form="etc", num_global=1), "published for form='itc'"),
    (dict(plan="paper", window_blocks=5), "published for window_blocks=3"),
    (dict(plan="huggingface", seed=1), "published for seed=0"),
    (dict(plan=np.ones((2, 3), int)), "plan must be integers"),
    (dict(plan=np.ones((2, 3, 1))), "plan must be integers"),
    (dict(plan=[[[1]]], num_random=2), "the plan has 1; leave it out"),
    (dict(plan=[[[1]]], layer=1), "seed and layer are of named plans"),
  )
  def test_errors(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      bigbird(**options)

  @parameterized.parameters(
    ([[[1]]] * 3, 12, r"\[2 or 1, 1, num_random\].*got \(3, 1, 1\)"),
    ([[[1]]], 16, r"\[2 or 1, 2, num_random\].*got \(1, 1, 1\)"),
    ([[[3]]], 12, r"blocks in \[0, 3\)"),
    ([[[-2]]], 12, r"blocks in \[0, 3\)"),
  )
  def test_a_plan_must_fit_the_input(self, plan, length, message):
    with self.assertRaisesRegex(ValueError, message):
      bigbird(block=4, plan=plan).pattern(2, length, length)

  def test_a_plan_of_no_rows_or_slots(self):
    for shape, length in (((1, 0, 2), 8), ((2, 3, 0), 18)):
      method = bigbird(block=4, plan=np.zeros(shape, int))
      want = bigbird(block=4, num_random=0)
      np.testing.assert_array_equal(
        _found(method, length), _found(want, length)
      )

  def test_is_an_encoder(self):
    q, k, v, _ = _draw(4, 20)
    method = bigbird(block=4)
    with self.assertRaisesRegex(ValueError, "T=7 and S=20"):
      method.apply((), (), q[:, :7], k, v)
    with self.assertRaisesRegex(NotImplementedError, "causal"):
      method.apply((), (), q, k, v, mask=jaxattn.CAUSAL)
    shapes = jaxattn.AttentionShapes(num_heads=_HEADS, head_dim=_DEPTH)
    with self.assertRaisesRegex(NotImplementedError, "does not decode"):
      method.init_cache((), (), batch_shape=(2,), max_length=4, shapes=shapes)
