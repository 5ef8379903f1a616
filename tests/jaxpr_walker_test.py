"""The walker must see into every kind of equation, or it proves nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from tests import jaxpr_walker

_N = 8
_PRODUCT = 2 * _N**3  # FLOPs of one [N, N] @ [N, N].


def _mul(x):
  return x @ x


def _scan(x):
  return jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=5)[0]


def _nested_scan(x):
  return jax.lax.scan(lambda c, _: (_scan(c), None), x, None, length=3)[0]


def _map(x):
  return jax.lax.map(lambda row: row @ x, jnp.stack([x] * 4))


def _fori(x):
  return jax.lax.fori_loop(0, 6, lambda _, c: c @ x, x)


def _cond(x):
  return jax.lax.cond(x.sum() > 0, lambda y: y @ y @ y, lambda y: y @ y, x)


@jax.custom_vjp
def _custom_vjp(x):
  return x @ x


_custom_vjp.defvjp(lambda x: (_custom_vjp(x), x), lambda x, g: (g @ x @ x @ x,))


@jax.custom_jvp
def _custom_jvp(x):
  return x @ x


_custom_jvp.defjvp(lambda x, t: (_custom_jvp(*x), t[0]))


def _shard_map(x):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
  half = jax.shard_map(
    lambda y: y @ y.T, mesh=mesh, in_specs=P("data"), out_specs=P("data")
  )
  return half(x)


def _pallas(x):
  def kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] @ x_ref[...]

  call = pl.pallas_call(
      kernel, out_shape=x, grid=(3,), interpret=True,
      in_specs=[pl.BlockSpec((_N, _N), lambda i: (0, 0))],
      out_specs=pl.BlockSpec((_N, _N), lambda i: (0, 0)),
  )  # fmt: skip
  return call(x)


class FlopsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("plain", _mul, 1),
    ("jit", jax.jit(_mul), 1),
    ("remat", jax.checkpoint(_mul), 1),
    ("custom_vjp", _custom_vjp, 1),
    ("custom_jvp", _custom_jvp, 1),
    ("scan", _scan, 5),
    ("nested_scan", _nested_scan, 15),
    ("map", _map, 4),
    ("fori", _fori, 6),
    ("cond_takes_the_dearest", _cond, 2),
    ("pallas", _pallas, 3),
    # One forward, two backward.
    ("gradient", jax.grad(lambda x: _mul(x).sum()), 3),
    # Two forward, the first of them again, two backward for each.
    ("remat_gradient", jax.grad(lambda x: jax.checkpoint(_cube)(x).sum()), 7),
    ("custom_vjp_gradient", jax.grad(lambda x: _custom_vjp(x).sum()), 4),
  )
  def test_products(self, fn, products):
    closed = jax.make_jaxpr(fn)(jnp.ones((_N, _N)))
    self.assertEqual(jaxpr_walker.matmul_flops(closed), products * _PRODUCT)

  def test_shard_map_counts_one_device(self):
    closed = jax.make_jaxpr(_shard_map)(jnp.ones((_N, _N)))
    want = 2 * (_N // 2) ** 2 * _N
    self.assertEqual(jaxpr_walker.matmul_flops(closed), want)

  def test_batched_product(self):
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
    closed = jax.make_jaxpr(jnp.matmul)(a, b)
    self.assertEqual(jaxpr_walker.matmul_flops(closed), 2 * 3 * 4 * 5 * 6)

  def test_convolution(self):
    conv = functools.partial(
      jax.lax.conv_general_dilated, window_strides=(1,), padding="VALID"
    )
    closed = jax.make_jaxpr(conv)(jnp.ones((2, 3, 10)), jnp.ones((7, 3, 4)))
    want = 2 * (2 * 7 * 7) * (3 * 4)  # Outputs [2, 7, 7], taps 3 * 4.
    self.assertEqual(jaxpr_walker.matmul_flops(closed), want)

  def test_while_needs_its_turns(self):
    def loop(x):
      return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c, x)

    closed = jax.make_jaxpr(loop)(jnp.ones((_N, _N)))
    with self.assertRaisesRegex(ValueError, "while_trips"):
      jaxpr_walker.matmul_flops(closed)
    got = jaxpr_walker.matmul_flops(closed, while_trips=7)
    self.assertEqual(got, 7 * _PRODUCT)


class IntermediatesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("plain", lambda f: f),
    ("jit", jax.jit),
    ("remat", jax.checkpoint),
    ("scan", lambda f: lambda x: jax.lax.map(f, x[None])),
    ("cond", lambda f: lambda x: jax.lax.cond(x[0] > 0, f, lambda y: y, x)),
    ("vmap", lambda f: lambda x: jax.vmap(f)(x[None])),
    ("grad", lambda f: jax.grad(lambda x: f(x).sum())),
  )
  def test_finds_the_square(self, wrap):
    def hidden(x):  # [L] -> [L], through [L, L].
      return jnp.exp(x[:, None] * x[None, :]).sum(-1)

    closed = jax.make_jaxpr(wrap(hidden))(jnp.ones(50))
    with self.assertRaisesRegex(AssertionError, r"\[(1, )?50, 50\]"):
      jaxpr_walker.assert_no_intermediate(closed, at_least=2500)

  def test_finds_the_square_in_custom_vjp_and_shard_map(self):
    for fn in (_custom_vjp, _shard_map):
      closed = jax.make_jaxpr(fn)(jnp.ones((_N, _N)))
      with self.assertRaises(AssertionError):
        jaxpr_walker.assert_no_intermediate(closed, at_least=_N**2 // 2)

  @parameterized.parameters(False, True)
  def test_finds_a_constant(self, jit):
    table = np.arange(2500.0, dtype=np.float32).reshape(50, 50)

    def constant(x):
      return x + table[3:4].sum() + jnp.asarray(table)[0]

    wrapped = jax.jit(constant) if jit else constant
    closed = jax.make_jaxpr(wrapped)(jnp.ones(50))
    self.assertEqual(jaxpr_walker.largest(closed)[0].size, 2500)

  def test_arguments_do_not_count(self):
    closed = jax.make_jaxpr(lambda x: x[0] + 1)(jnp.ones((50, 50)))
    jaxpr_walker.assert_no_intermediate(closed, at_least=2500)

  def test_growth(self):
    self.assertAlmostEqual(jaxpr_walker.growth([2, 4, 8], [5, 9, 36]), 2.0)


def _cube(x):
  return x @ x @ x
