"""Sparse Transformer: the exact columns, limit cases, and coverage in hops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxattn
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

_HEADS, _DEPTH = 4, 8


def _draw(seed, length):
  rngs = jax.random.split(jax.random.key(seed), 3)
  shape = (2, length, _HEADS, _DEPTH)
  return [jax.random.normal(rng, shape) for rng in rngs]


@functools.partial(jax.jit, static_argnums=0)
def _pull(method, qkv, cotangent):
  out, vjp = jax.vjp(
    lambda *x: method.apply((), (), *x, mask=jaxattn.CAUSAL)[0], *qkv
  )
  return out, vjp(cotangent)


def _grid(length, **options):
  """The edges of every head under causality, `[N, T, T]`."""
  method = jaxattn.sparse_transformer(**options)
  found = method.pattern(_HEADS, length, length, causal=True)
  per_head = found if isinstance(found, tuple) else (found,) * _HEADS
  i, j = np.arange(length)[:, None], np.arange(length)[None, :]
  return np.stack([p.mask(i, j) & (j <= i) for p in per_head])


def _hops(*grids):
  """Which token reaches which in as many layers, the first one first."""
  reach = np.eye(len(grids[0]), dtype=bool)
  for grid in grids:
    reach = (grid.astype(int) @ reach.astype(int)) > 0
  return reach


class SparseTransformerTest(parameterized.TestCase):
  def test_columns_of_the_paper(self):
    """Indices from 0, at l = 8 and c = 2, by the definition."""
    for i in (0, 7, 8, 20):
      fixed = _grid(24, stride=8, summary=2)[0]
      want = [j for j in range(i + 1) if j // 8 == i // 8 or j % 8 in (6, 7)]
      self.assertEqual(np.nonzero(fixed[i])[0].tolist(), want)
      strided = _grid(24, stride=8, kind="strided")[0]
      want = [j for j in range(i + 1) if i - j < 8 or (i - j) % 8 == 0]
      self.assertEqual(np.nonzero(strided[i])[0].tolist(), want)

  def test_heads_take_subblocks_from_the_end_in_turn(self):
    grid = _grid(32, stride=8, summary=2, subblocks=2, factors="remote")
    columns = [np.nonzero(g[31])[0] % 8 for g in grid]
    self.assertEqual([sorted(set(c)) for c in columns], [[6, 7], [4, 5]] * 2)
    both = _grid(32, stride=8, summary=2, subblocks=2, factors="heads")
    local = _grid(32, stride=8, factors="local")[0]
    np.testing.assert_array_equal(both[0], local)
    np.testing.assert_array_equal(both[2], local)
    np.testing.assert_array_equal(both[1], grid[0])
    np.testing.assert_array_equal(both[3], grid[1])

  @parameterized.named_parameters(
    ("local_strided", dict(stride=17, kind="strided", factors="local")),
    ("local_fixed", dict(stride=17, factors="local")),
    ("remote_strided", dict(stride=1, kind="strided", factors="remote")),
    ("summary_of_all", dict(stride=4, summary=4, factors="remote")),
  )
  def test_limits_are_full_causal_attention(self, options):
    qkv, ct = _draw(0, 17), _draw(1, 17)[0]
    got = _pull(jaxattn.sparse_transformer(**options), qkv, ct)
    assert_close(got, _pull(jaxattn.dense(), qkv, ct), 1e-5)

  def test_strided_is_local_attention_of_the_transpose(self):
    """The authors' form: reshape to [n / l, l], transpose, causal per row."""
    stride, length = 4, 24
    q, k, v = _draw(2, length)
    got, _ = _pull(
      jaxattn.sparse_transformer(
        stride=stride, kind="strided", factors="remote"
      ),
      (q, k, v),
      q,
    )

    def turn(x):
      x = x.reshape(2, length // stride, stride, _HEADS, _DEPTH)
      return x.transpose(0, 2, 1, 3, 4)

    rows = [turn(x) for x in (q, k, v)]
    want = jaxattn.dense_attention(*rows, mask=jaxattn.CAUSAL)
    want = want.transpose(0, 2, 1, 3, 4).reshape(q.shape)
    assert_close(got, want, 1e-5)

  def test_two_strided_hops_reach_everything_in_either_order(self):
    local = _grid(30, stride=5, kind="strided", factors="local")[0]
    remote = _grid(30, stride=5, kind="strided", factors="remote")[0]
    causal = np.tri(30, dtype=bool)
    np.testing.assert_array_equal(_hops(local, remote), causal)
    np.testing.assert_array_equal(_hops(remote, local), causal)

  def test_two_fixed_hops_need_local_first_and_the_residual(self):
    local = _grid(30, stride=5, factors="local")[0]
    remote = _grid(30, stride=5, factors="remote")[0]
    merged = _grid(30, stride=5)[0]
    causal, eye = np.tri(30, dtype=bool), np.eye(30, dtype=bool)
    self.assertFalse(np.array_equal(_hops(local, remote), causal))
    np.testing.assert_array_equal(_hops(local | eye, remote | eye), causal)
    self.assertFalse(np.array_equal(_hops(remote | eye, local | eye), causal))
    np.testing.assert_array_equal(_hops(merged, merged), causal)
    # So is the order of the layers.
    method = jaxattn.sparse_transformer(stride=5)
    first, second = jaxattn.interleave(method, 2)
    self.assertEqual((first.factors, second.factors), ("local", "remote"))

  def test_rows_before_the_first_summary_are_zero(self):
    method = jaxattn.sparse_transformer(stride=8, summary=2, factors="remote")
    qkv, ct = _draw(3, 20), _draw(4, 20)[0]
    out, grads = _pull(method, qkv, ct)
    assert_zero(out[:, :6], grads[0][:, :6])
    self.assertTrue(bool((jnp.abs(out[:, 6:]).max((2, 3)) > 0).all()))

  def test_edges_grow_with_the_root_of_the_length(self):
    """At l = sqrt(n), below 2 l edges a row."""
    for length in (64, 256):
      stride = int(length**0.5)
      for kind in ("fixed", "strided"):
        grid = _grid(length, stride=stride, kind=kind)[0]
        self.assertLess(grid.sum(1).max(), 2 * stride)

  @parameterized.named_parameters(
    ("stride", dict(stride=0), "stride must be at least 1"),
    ("kind", dict(stride=4, kind="dense"), "kind must be one of"),
    ("factors", dict(stride=4, factors="x"), "factors must be one of"),
    ("summary", dict(stride=4, summary=3, subblocks=2), "at most stride=4"),
    ("strided", dict(stride=4, kind="strided", summary=2), "belong to kind"),
  )
  def test_bad_options_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      jaxattn.sparse_transformer(**options)

  def test_interleave_needs_layers_and_an_order(self):
    method = jaxattn.sparse_transformer(stride=4)
    with self.assertRaisesRegex(ValueError, "num_layers"):
      jaxattn.interleave(method, 0)
    with self.assertRaisesRegex(ValueError, "order"):
      jaxattn.interleave(method, 2, ())
