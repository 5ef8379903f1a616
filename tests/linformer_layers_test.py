"""Linformer in layers and models: parameters that layers have together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxattn
from jaxattn.models import encoder
from jaxattn.nn import linen as layers
from jaxattn.nn import nnx as nnx_layers
from tests.method_cases import assert_close

_LONGEST, _SLOTS = 12, 4


def _method(**options: Any) -> Any:
  options = {"max_length": _LONGEST, "k": _SLOTS, **options}
  return jaxattn.linformer(**options)


_LAYERWISE = _method(sharing="layerwise")


def _config(*methods: Any, **options: Any) -> Any:
  options = {
    "vocab_size": 13,
    "width": 8,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_width": 12,
    "max_length": 16,
    **options,
  }
  return encoder.EncoderConfig(methods=methods, **options)


def _tokens(length: int = _LONGEST) -> jax.Array:
  drawn = np.random.default_rng(0).integers(0, 13, (2, length))
  return jnp.asarray(drawn)


def _init(model: Any) -> Any:
  return nn.unbox(jax.jit(model.init)(jax.random.key(0), _tokens()))


def _shapes(model: Any) -> Any:
  return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), _tokens()))


def _apply(model: Any, variables: Any, *args: Any, **options: Any) -> Any:
  return jax.jit(lambda v, *args: model.apply(v, *args, **options))(
    variables, *args
  )


def _loss_and_gradient(model: Any, variables: Any) -> Any:
  @jax.jit
  def run(params, rest):
    def loss(params):
      out = model.apply({"params": params, **rest}, _tokens())
      return jnp.sum(out[..., 0] ** 3)

    return jax.value_and_grad(loss)(params)

  rest = {k: v for k, v in variables.items() if k != "params"}
  return run(variables["params"], rest)


def _method_leaves(tree: Any) -> dict[str, jax.Array]:
  """Arrays of methods, by their place."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  named = {jax.tree_util.keystr(path): leaf for path, leaf in flat}
  return {k: v for k, v in named.items() if "method" in k or "state" in k}


def test_layerwise_is_one_array_in_the_tree():
  model = encoder.Encoder(_config(_LAYERWISE))
  found = _method_leaves(_shapes(model))
  assert list(found) == ["['params']['shared_method']['method']['key_value']"]
  assert sum(x.size for x in found.values()) == _SLOTS * _LONGEST


@pytest.mark.parametrize("remat", ["none", "full"])
def test_layerwise_equals_copies_and_sums_their_gradients(remat):
  """Against a model whose layers have the same matrix, each its own."""
  model = encoder.Encoder(_config(_LAYERWISE, remat=remat))
  variables = _init(model)
  loss, grad = _loss_and_gradient(model, variables)
  params = dict(variables["params"])
  shared = params.pop("shared_method")
  for layer in range(2):
    block = params[f"blocks_{layer}"]
    attention = {**block["attention"], "method": shared["method"]}
    params[f"blocks_{layer}"] = {**block, "attention": attention}
  copies = encoder.Encoder(_config(_method(sharing="key_value")))
  want, want_grad = _loss_and_gradient(copies, {"params": params})
  assert_close(loss, want)
  each = [
    want_grad[f"blocks_{layer}"]["attention"].pop("method")
    for layer in range(2)
  ]
  got = grad.pop("shared_method")["method"]
  assert_close(got, jax.tree.map(lambda *x: sum(x), *each), 3e-5)
  assert min(np.abs(x["key_value"]).max() for x in each) > 1e-3
  assert_close(grad, want_grad, 3e-5)


def test_layers_of_other_methods_have_no_part_in_it():
  methods = (jaxattn.dense(), _LAYERWISE, _method(sharing="headwise"))
  variables = _shapes(encoder.Encoder(_config(*methods, num_layers=3)))
  assert list(_method_leaves(variables)) == [
    "['params']['blocks_2']['attention']['method']['key']",
    "['params']['blocks_2']['attention']['method']['value']",
    "['params']['shared_method']['method']['key_value']",
  ]


def test_untrained_layerwise_projection_is_one_state():
  method = _method(sharing="layerwise", trainable=False)
  model = encoder.Encoder(_config(method))
  variables = _init(model)
  found = _method_leaves(variables)
  place = "['attention']['shared_method']['state']['key_value']"
  assert list(found) == [place]
  want = _apply(model, variables, _tokens())
  out, after = _apply(
    model, variables, _tokens(), train=True, mutable=["attention"]
  )
  assert_close(out, want)
  assert_close(_method_leaves(after), found, 0.0)
  # The same as a trained one with that matrix.
  params = dict(variables["params"])
  params["shared_method"] = {"method": {"key_value": found[place]}}
  trained = encoder.Encoder(_config(_LAYERWISE))
  assert_close(_apply(trained, {"params": params}, _tokens()), want)


def test_k_by_layer():
  """A tuple of methods; with layerwise sharing they must not differ."""
  methods = tuple(_method(k=k) for k in (6, 2))
  variables = _shapes(encoder.Encoder(_config(*methods)))
  shapes = [
    variables["params"][f"blocks_{i}"]["attention"]["method"]["key"].shape
    for i in range(2)
  ]
  assert shapes == [(6, _LONGEST), (2, _LONGEST)]
  others = (_LAYERWISE, _method(k=2, sharing="layerwise"))
  with pytest.raises(ValueError, match="must be equal in all layers.*k=2"):
    _config(*others)


def test_padding_changes_nothing_in_any_layer():
  """Padding that other layers have filled does not reach the projections."""
  model = encoder.Encoder(_config(_LAYERWISE))
  variables = _init(model)
  tokens = _tokens()
  valid = jnp.arange(_LONGEST)[None] < jnp.array([[12], [7]])
  mask: Any = jaxattn.Mask(key_valid=valid, query_valid=valid)
  apply = jax.jit(model.apply)
  want = apply(variables, tokens, mask=mask)
  other = apply(variables, jnp.where(valid, tokens, 1), mask=mask)
  assert_close(
    jnp.where(valid[..., None], other, 0.0),
    jnp.where(valid[..., None], want, 0.0),
    0.0,
  )
  alone = apply(variables, tokens[1:, :7])
  assert_close(want[1:, :7], alone, 3e-5)


def test_a_layer_by_itself_has_layerwise_parameters_of_its_own():
  x = jax.random.normal(jax.random.key(0), (2, 9, 8))
  layer = layers.Attention(method=_LAYERWISE, num_heads=2)
  variables = nn.unbox(layer.init(jax.random.key(0), x))
  matrix = variables["params"]["method"]["key_value"]
  assert matrix.shape == (_SLOTS, _LONGEST)
  want = layer.apply(variables, x)
  given = layer.apply(
    variables, x, method_variables=({"key_value": matrix}, ())
  )
  assert_close(given, want, 0.0)
  other = layer.apply(
    variables, x, method_variables=({"key_value": matrix[::-1] * 2.0}, ())
  )
  assert np.abs(other - want).max() > 1e-3
  per_head = layers.Attention(
    method=_method(sharing="none"), num_heads=4, num_kv_heads=2
  )
  found = nn.unbox(per_head.init(jax.random.key(0), x))["params"]["method"]
  assert found["key"].shape == (2, _SLOTS, _LONGEST)  # One for a key head.


class _Two(nnx.Module):
  """Two layers with one projection."""

  def __init__(self, *, shared: bool):
    options = {"method": _LAYERWISE, "num_heads": 2}
    self.one = nnx_layers.Attention(8, rngs=nnx.Rngs(0), **options)
    share = {"share_method_with": self.one} if shared else {}
    self.two = nnx_layers.Attention(8, rngs=nnx.Rngs(0), **options, **share)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.two(jnp.tanh(self.one(x)))


def test_nnx_layers_hold_one_parameter():
  x = jax.random.normal(jax.random.key(0), (2, 9, 8))

  def gradient(model):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params):
      def loss(params):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        return jnp.sum(merged(x) ** 2)

      return jax.value_and_grad(loss)(params)

    value, grad = run(params)
    return value, {
      jax.tree_util.keystr(path): leaf
      for path, leaf in jax.tree_util.tree_flatten_with_path(grad)[0]
      if "method_params" in jax.tree_util.keystr(path)
    }

  # The seeds are equal, so the copies hold one matrix too.
  want, copies = gradient(_Two(shared=False))
  got, one = gradient(_Two(shared=True))
  assert_close(got, want)
  assert (len(one), len(copies)) == (1, 2)
  assert_close(next(iter(one.values())), sum(copies.values()), 3e-5)
  with pytest.raises(ValueError, match="share_method_with must be a layer of"):
    nnx_layers.Attention(
      8,
      method=_method(),
      num_heads=2,
      share_method_with=_Two(shared=True).one,
      rngs=nnx.Rngs(0),
    )
