"""The Linen and NNX layers: against Flax, each other, and their own cache."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx

import jaxattn
from jaxattn import positions
from jaxattn.nn import linen as linen_layers
from jaxattn.nn import nnx as nnx_layers
from tests import stateful_method


def _x(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _linen(**options: Any) -> Any:
  options = {"method": jaxattn.dense(), "num_heads": 2, **options}
  return linen_layers.Attention(**options)


def _init(layer, *args):
  return jax.jit(layer.init)(jax.random.key(0), *args)


def _apply(layer, variables, *args, **kwargs):
  """`layer.apply` under jit: an eager call compiles every operation alone."""
  static = {
    name: kwargs.pop(name)
    for name in ("mutable", "train", "decode")
    if name in kwargs
  }
  return jax.jit(functools.partial(layer.apply, **static))(
    variables, *args, **kwargs
  )


def _call(layer, *args, decode=False, **kwargs):
  """The call of an NNX layer under jit."""
  return nnx.jit(lambda m, a, k: m(*a, decode=decode, **k))(layer, args, kwargs)


def _randomised(variables):
  """The same variables, unboxed, with biases, scales and tables at random."""
  params = nn.unbox(variables["params"])
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  leaves = [
    jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype) for x in leaves
  ]
  return {
    **nn.unbox(dict(variables)),
    "params": jax.tree.unflatten(tree, leaves),
  }


class LinenTest(parameterized.TestCase):
  @parameterized.product(use_bias=(True, False), cross=(True, False))
  def test_dense_equals_flax(self, use_bias, cross):
    x, context = _x(0, 2, 7, 8), (_x(1, 2, 5, 8) if cross else None)
    ours = _linen(use_bias=use_bias)
    flax = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=use_bias)
    variables = _randomised(_init(ours, x, context))
    chex.assert_trees_all_equal_shapes(
      variables["params"],
      _init(flax, x, context)["params"],
    )
    got = _apply(ours, variables, x, context)
    want = _apply(flax, variables, x, context)
    # Sums of 8 products of size 1 in float32, in another order.
    np.testing.assert_allclose(got, want, atol=2e-5)

  def test_causal_equals_flax(self):
    x = _x(0, 2, 7, 8)
    variables = _randomised(_init(_linen(), x))
    flax = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False)
    causal = nn.make_causal_mask(jnp.ones((2, 7)))
    want = _apply(flax, variables, x, mask=causal)
    got = _apply(_linen(), variables, x, mask=jaxattn.CAUSAL)
    np.testing.assert_allclose(got, want, atol=2e-5)

  def test_grouped_heads_and_widths(self):
    layer = _linen(num_heads=4, num_kv_heads=2, head_dim=6, out_features=3)
    x = _x(0, 2, 7, 8)
    variables = _randomised(_init(layer, x))
    p = {k: v["kernel"] for k, v in variables["params"].items()}
    q, k, v = (
      jnp.einsum("btd,dnh->btnh", x, p[n]) for n in ("query", "key", "value")
    )
    out = jaxattn.dense_attention(
      q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
    )
    want = jnp.einsum("btnh,nhd->btd", out, p["out"])
    np.testing.assert_allclose(_apply(layer, variables, x), want, atol=1e-4)

  def test_qk_norm_and_rotary(self):
    layer = _linen(qk_norm=True, rotary=100.0)
    x, pos = _x(0, 1, 7, 8), jnp.array([[0, 1, 2, 0, 1, 2, 3]])
    variables = _randomised(_init(layer, x))
    p = variables["params"]
    self.assertEqual(p["query_norm"]["scale"].shape, (4,))

    def heads(name):
      y = jnp.einsum("btd,dnh->btnh", x, p[name]["kernel"])
      if name == "value":
        return y
      y = y / jnp.sqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-6)
      y = y * p[f"{name}_norm"]["scale"][None, None, None]
      return positions.apply_rotary(y, pos, base=100.0)

    out = jaxattn.dense_attention(*map(heads, ("query", "key", "value")))
    want = jnp.einsum("btnh,nhd->btd", out, p["out"]["kernel"])
    got = _apply(layer, variables, x, positions=pos)
    np.testing.assert_allclose(got, want, atol=1e-5)
    other = _apply(layer, variables, x)
    self.assertGreater(float(jnp.abs(got - other).max()), 1e-3)

  def test_collections_exist_only_when_needed(self):
    x = _x(0, 1, 4, 8)
    plain = _init(_linen(), x)
    self.assertEqual(set(plain), {"params"})
    self.assertNotIn("method", plain["params"])
    stateful = _init(_linen(method=stateful_method.Stateful()), x)
    self.assertEqual(set(stateful), {"params", "attention"})
    self.assertEqual(stateful["params"]["method"]["gain"].shape, (2,))
    scheme = _linen(method=jaxattn.dense(relative=positions.T5Bias()))
    table = _init(scheme, x)["params"]["method"]["table"]
    self.assertEqual(table.shape, (2, 32))

  def test_state_moves_in_training_only(self):
    layer, x = _linen(method=stateful_method.Stateful()), _x(0, 1, 4, 8)
    variables = _init(layer, x)
    self.assertEqual(variables["attention"]["state"]["steps"], 0)
    _, new = _apply(layer, variables, x, train=True, mutable=["attention"])
    self.assertEqual(new["attention"]["state"]["steps"], 1)
    _, same = _apply(layer, variables, x, mutable=["attention"])
    self.assertEqual(same["attention"]["state"]["steps"], 0)
    with self.assertRaises(Exception):  # noqa: B017, Flax's own error.
      _apply(layer, variables, x, train=True)

  def test_rng_stream_reaches_the_method(self):
    layer, x = _linen(method=stateful_method.Stateful()), _x(0, 1, 4, 8)
    variables = _init(layer, x)
    a, b, c = (
      _apply(layer, variables, x, rngs=rngs)
      for rngs in (
        {},
        {"attention": jax.random.key(1)},
        {"attention": jax.random.key(2)},
      )
    )
    self.assertGreater(float(jnp.abs(a - b).max()), 1e-2)
    self.assertGreater(float(jnp.abs(c - b).max()), 1e-2)

  def test_gradients_reach_all_parameters(self):
    layer = _linen(
      method=jaxattn.dense(relative=positions.ShawRelative(max_distance=2)),
      qk_norm=True,
      use_bias=True,
    )
    x = _x(0, 1, 6, 8)
    params = _randomised(_init(layer, x))["params"]

    def loss(params):
      out = layer.apply({"params": params}, x, mask=jaxattn.CAUSAL)
      return jnp.sum(out**2)

    grad = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grad):
      self.assertGreater(float(jnp.abs(leaf).max()), 0, path)

  def test_bfloat16_computation_keeps_float32_parameters(self):
    layer, x = _linen(dtype=jnp.bfloat16), _x(0, 1, 6, 8)
    variables = _init(layer, x)
    chex.assert_trees_all_equal_dtypes(
      variables, jax.tree.map(lambda a: a.astype(jnp.float32), variables)
    )
    out = _apply(layer, variables, x)
    self.assertEqual(out.dtype, jnp.bfloat16)
    # Three roundings to 8 bits of values of size 1.
    np.testing.assert_allclose(
      out.astype(jnp.float32), _apply(_linen(), variables, x), atol=3e-2
    )

  def test_logical_axis_names(self):
    x = _x(0, 1, 4, 8)
    spec = nn.get_partition_spec(
      _init(_linen(num_heads=4, num_kv_heads=2, use_bias=True, qk_norm=True), x)
    )["params"]
    as_tuple = jax.tree.map(
      tuple, spec, is_leaf=lambda s: isinstance(s, jax.sharding.PartitionSpec)
    )
    self.assertEqual(
      as_tuple,
      {
        "query": {
          "kernel": ("embed", "heads", "head_dim"),
          "bias": ("heads", "head_dim"),
        },
        "key": {
          "kernel": ("embed", "kv_heads", "head_dim"),
          "bias": ("kv_heads", "head_dim"),
        },
        "value": {
          "kernel": ("embed", "kv_heads", "head_dim"),
          "bias": ("kv_heads", "head_dim"),
        },
        "out": {"kernel": ("heads", "head_dim", "embed"), "bias": ("embed",)},
        "query_norm": {"scale": ("head_dim",)},
        "key_norm": {"scale": ("head_dim",)},
      },
    )

  def test_initialises_sharded_under_a_mesh(self):
    layer, x = _linen(num_heads=4, use_bias=True), _x(0, 8, 4, 16)
    mesh = jax.make_mesh(
      (4, 2),
      ("fsdp", "tensor"),
      axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    rules = (("embed", "fsdp"), ("heads", "tensor"))
    alone = nn.unbox(_init(layer, x))
    with nn.logical_axis_rules(rules), jax.set_mesh(mesh):
      variables = nn.unbox(jax.jit(layer.init)(jax.random.key(0), x))
      got = jax.jit(layer.apply)(variables, x)
    kernel = variables["params"]["query"]["kernel"]
    self.assertEqual(tuple(kernel.sharding.spec)[:2], ("fsdp", "tensor"))
    chex.assert_trees_all_close(variables, alone, atol=1e-6)
    np.testing.assert_allclose(got, layer.apply(alone, x), atol=1e-5)

  @parameterized.parameters(
    ({}, {"positions": jnp.zeros((1, 4), int)}, "rotary"),
    (
      {"rotary": 10.0},
      {"context_positions": jnp.zeros((1, 4), int)},
      "context_positions needs context",
    ),
    ({"num_heads": 3}, {}, "num_heads must divide"),
    ({}, {"decode": True}, "decoding is causal"),
    ({}, {"decode": True, "mask": jaxattn.CAUSAL}, "init_cache"),
    ({}, {"decode": True, "mask": jaxattn.CAUSAL, "train": True}, "exclude"),
    ({}, {"decode": True, "context": jnp.ones((1, 4, 8))}, "cross-attention"),
  )
  def test_errors(self, options, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      _linen(**options).init(
        jax.random.key(0), jnp.ones((1, 4, 8)), **arguments
      )


_METHODS = {
  "dense": jaxattn.dense(),
  "window": jaxattn.sliding_window(left=3),
  "t5": jaxattn.dense(relative=positions.T5Bias(bidirectional=False)),
  "stateful": stateful_method.Stateful(),
}


def _nnx(variables, *, width=8, **options: Any) -> Any:
  """An NNX layer with the variables of a Linen one."""
  options = {"method": jaxattn.dense(), "num_heads": 2, **options}
  layer: Any = nnx_layers.Attention(width, rngs=nnx.Rngs(0), **options)
  for name, leaves in variables["params"].items():
    if name == "method":
      layer.method_params.set_value(leaves)
      continue
    for leaf, value in leaves.items():
      getattr(getattr(layer, name), leaf).set_value(value)
  if "attention" in variables:
    layer.method_state.set_value(variables["attention"]["state"])
  return layer


class LinenAndNnxTest(parameterized.TestCase):
  @parameterized.parameters(
    *((method, True) for method in _METHODS),
    ("t5", False),  # Tree mode, where parameters and state are at stake.
    ("stateful", False),
  )
  def test_equal_outputs_and_gradients(self, method, graph):
    options = {
      "method": _METHODS[method],
      "num_heads": 4,
      "num_kv_heads": 2,
      "use_bias": True,
      "qk_norm": True,
      "rotary": 100.0,
    }
    x = _x(0, 2, 7, 8)
    linen = _linen(**options)
    variables = _randomised(_init(linen, x))

    def linen_loss(params):
      out, new = linen.apply(
        {**variables, "params": params},
        x,
        mask=jaxattn.CAUSAL,
        train=True,
        mutable=["attention"],
      )
      return jnp.sum(out**2), new

    (want, new), want_grad = jax.jit(
      jax.value_and_grad(linen_loss, has_aux=True)
    )(variables["params"])
    with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
      layer = _nnx(variables, **options)
      graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

      @jax.jit
      def step(params, rest):
        def loss(params, rest):
          model = nnx.merge(graphdef, params, rest, copy=True)
          out = model(x, mask=jaxattn.CAUSAL, train=True)
          return jnp.sum(out**2), nnx.split(model, nnx.Param, ...)[2]

        return jax.value_and_grad(loss, has_aux=True)(params, rest)

      (got, rest), grad = step(params, rest)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for name in ("query", "key", "value", "out", "query_norm", "key_norm"):
      for leaf, value in want_grad[name].items():
        # Gradients of size up to 100 in float32.
        np.testing.assert_allclose(
          grad[name][leaf][...], value, atol=1e-4, rtol=1e-4
        )
    if "method" in want_grad:
      chex.assert_trees_all_close(
        grad["method_params"].get_value(),
        want_grad["method"],
        rtol=1e-4,
        atol=1e-4,
      )
    if method == "stateful":
      self.assertEqual(new["attention"]["state"]["steps"], 1)
      self.assertEqual(rest["method_state"].get_value()["steps"], 1)

  def test_cross_attention(self):
    options = {"rotary": 100.0, "num_heads": 2}
    x, context = _x(0, 2, 7, 8), _x(1, 2, 5, 6)
    linen = _linen(**options)
    variables = _randomised(_init(linen, x, context))
    layer = _nnx(variables, context_features=6, **options)
    mask = jaxattn.Mask(key_valid=jnp.arange(5)[None] < jnp.array([[3], [5]]))
    later = jnp.arange(5)[None] + 4
    got = _call(layer, x, context, mask=mask, context_positions=later)
    want = _apply(
      linen, variables, x, context, mask=mask, context_positions=later
    )
    np.testing.assert_allclose(got, want, atol=1e-5)
    noise = context.at[0, 3:].add(9.0)  # At masked keys only.
    np.testing.assert_allclose(
      got,
      _call(layer, x, noise, mask=mask, context_positions=later),
      atol=1e-5,
    )
    other = _call(layer, x, context, mask=mask)
    self.assertGreater(float(jnp.abs(got - other).max()), 1e-4)

  def test_nnx_names_and_rngs(self):
    layer = _nnx({"params": {}}, method=stateful_method.Stateful())
    spec: Any = nnx.get_partition_spec(nnx.state(layer))
    self.assertEqual(
      tuple(spec["query"]["kernel"].get_value()),
      ("embed", "heads", "head_dim"),
    )
    x = _x(0, 1, 4, 8)
    a, b = (layer(x, rngs=rngs) for rngs in (None, nnx.Rngs(attention=1)))
    self.assertGreater(float(jnp.abs(a - b).max()), 1e-2)

  def test_nnx_errors(self):
    layer = _nnx({"params": {}})
    with self.assertRaisesRegex(ValueError, "init_cache"):
      layer(jnp.ones((1, 4, 8)), mask=jaxattn.CAUSAL, decode=True)
    with self.assertRaisesRegex(ValueError, "rotary"):
      layer(jnp.ones((1, 4, 8)), positions=jnp.zeros((1, 4), int))


class DecodeTest(parameterized.TestCase):
  """Prefill and steps against the parallel form, rows of unequal length."""

  @parameterized.parameters(
    ("dense", (4, 3, 2)),
    ("window", (6, 1, 1, 1)),
    ("t5", (4, 3, 2)),
    ("stateful", (6, 1, 1, 1)),
  )
  def test_cache_equals_parallel(self, method, chunks):
    options = {
      "method": _METHODS[method],
      "num_heads": 4,
      "num_kv_heads": 2,
      "qk_norm": True,
      "rotary": 100.0,
    }
    x, lengths = _x(0, 2, 9, 8), jnp.array([9, 7])
    linen = _linen(**options)
    variables = _randomised(_init(linen, x))
    valid = jnp.arange(9)[None] < lengths[:, None]
    mask = jaxattn.Mask(causal=True, key_valid=valid, query_valid=valid)
    want = _apply(linen, variables, x, mask=mask)
    layer = _nnx(variables, **options)
    layer.init_cache((2,), 9)
    _, cache = linen.apply(
      variables, (2,), 9, method="init_cache", mutable=["cache"]
    )
    chex.assert_trees_all_equal(
      cache["cache"]["cache"], layer.cache.get_value()
    )
    start, linen_out, nnx_out = 0, [], []
    for size in chunks:
      rows = slice(start, start + size)
      part = jaxattn.Mask(causal=True, key_valid=valid[:, rows])
      out, cache = _apply(
        linen,
        {**variables, **cache},
        x[:, rows],
        mask=part,
        decode=True,
        mutable=["cache"],
      )
      linen_out.append(out)
      nnx_out.append(_call(layer, x[:, rows], mask=part, decode=True))
      start += size
    real = valid[..., None]
    scale = float(jnp.abs(want).max())
    for got in (linen_out, nnx_out):
      got = jnp.where(real, jnp.concatenate(got, axis=1), 0.0)
      np.testing.assert_allclose(
        got, jnp.where(real, want, 0.0), atol=1e-5 * scale
      )
    np.testing.assert_array_equal(cache["cache"]["cache"]["length"], lengths)

  def test_nnx_decodes_under_jit(self):
    layer = _nnx({"params": {}}, method=jaxattn.sliding_window(left=2))
    x = _x(0, 1, 6, 8)
    want = _call(layer, x, mask=jaxattn.CAUSAL)
    layer.init_cache((1,), 6)
    step = nnx.jit(lambda m, x: m(x, mask=jaxattn.CAUSAL, decode=True))
    got = [step(layer, x[:, i : i + 1]) for i in range(6)]
    np.testing.assert_allclose(jnp.concatenate(got, 1), want, atol=1e-5)
    self.assertEqual(layer.cache.get_value()["key"].shape, (1, 3, 2, 4))

  def test_cache_has_the_dtype_of_the_computation(self):
    layer = _linen(dtype=jnp.bfloat16)
    variables = _init(layer, _x(0, 1, 4, 8))
    _, cache = layer.apply(
      variables, (3, 2), 5, method="init_cache", mutable=["cache"]
    )
    key = cache["cache"]["cache"]["key"]
    self.assertEqual((key.dtype, key.shape), (jnp.bfloat16, (3, 2, 5, 2, 4)))


if __name__ == "__main__":
  absltest.main()
