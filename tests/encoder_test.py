"""The encoder and its heads: naive forms, global tokens, padding, errors."""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxattn
from jaxattn.models import encoder
from jaxattn.models import heads
from jaxattn.models.layers import longformer
from tests.method_cases import assert_close

_WINDOW = jaxattn.longformer(window=4)
_PLACES = jnp.array([[0, 7], [3, -1]])
_METHODS = {
  "dense": jaxattn.dense(),
  "sliding_window": jaxattn.sliding_window(left=2, right=3),
  "longformer": jaxattn.longformer(window=4, dilation=(1, 2), num_global=1),
  "bigbird": jaxattn.bigbird(block=2, num_random=1),
}


def _config(**options: Any) -> Any:
  options = {
    "vocab_size": 13,
    "width": 8,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_width": 12,
    "max_length": 16,
    **options,
  }
  return encoder.EncoderConfig(**options)


def _tokens(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 13, shape))


def _loud(tree):
  """Unboxed parameters of size 1, so that every part of the model shows."""
  rng = np.random.default_rng(1)

  def draw(path, x):
    around = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(around + 0.7 * rng.normal(size=x.shape), x.dtype)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(tree))


def _model(**options: Any) -> tuple[Any, Any]:
  model = encoder.Encoder(_config(**options))
  boxed = jax.eval_shape(model.init, jax.random.key(0), _tokens(0, 1, 4))
  return model, _loud(boxed)


def _apply(model, variables, *args, train=False, **kwargs):
  apply = functools.partial(model.apply, train=train)
  return jax.jit(apply)(variables, *args, **kwargs)


def _mask(lengths, length) -> Any:
  valid = jnp.arange(length)[None] < jnp.asarray(lengths)[:, None]
  return jaxattn.Mask(key_valid=valid, query_valid=valid)


def _norm(params, x, eps):
  mean = x.mean(-1, keepdims=True)
  var = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + eps) * params["scale"] + params["bias"]


def _linear(params, x):
  return np.tensordot(x, params["kernel"], 1) + np.asarray(params["bias"])


def _attention(params, x):
  q, k, v = (_linear(params[n], x) for n in ("query", "key", "value"))
  scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum("bnts,bsnh->btnh", weights, v)
  return (
    np.einsum("btnh,nhd->btd", out, params["out"]["kernel"])
    + params["out"]["bias"]
  )


_NAIVE_ACTIVATIONS = {
  "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
  "relu": lambda x: np.maximum(x, 0),
}


def _naive(params, cfg, tokens, positions, types):
  """The encoder in NumPy and float64, written from the papers."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = params["embed"]["embedding"][tokens]
  x = x + params["position_embed"]["embedding"][positions]
  x = x + params["type_embed"]["embedding"][types]
  eps = cfg.layer_norm_eps
  pre = cfg.norm == "pre"
  x = x * cfg.width**0.5 if pre else _norm(params["embed_norm"], x, eps)
  for i in range(cfg.num_layers):
    block = params[f"blocks_{i}"]

    def feed(x, block=block):
      hidden = _NAIVE_ACTIVATIONS[cfg.activation](_linear(block["mlp_in"], x))
      return _linear(block["mlp_out"], hidden)

    attend = functools.partial(_attention, block["attention"])
    for branch, norm in (
      (attend, block["attention_norm"]),
      (feed, block["mlp_norm"]),
    ):
      if pre:
        x = x + branch(_norm(norm, x, eps))
      else:
        x = _norm(norm, x + branch(x), eps)
  return _norm(params["final_norm"], x, eps) if pre else x


class EncoderTest(parameterized.TestCase):
  @parameterized.parameters(
    ("post", "gelu", 1e-12), ("post", "relu", 1e-5), ("pre", "gelu", 1e-5)
  )
  def test_equals_a_naive_form(self, norm, activation, eps):
    model, variables = _model(
      norm=norm, activation=activation, layer_norm_eps=eps, type_vocab_size=2
    )
    tokens, places = _tokens(1, 2, 7), _tokens(2, 2, 7)
    types = _tokens(3, 2, 7) % 2
    got = _apply(model, variables, tokens, positions=places, type_ids=types)
    args = (np.asarray(a) for a in (tokens, places, types))
    want = _naive(variables["params"], model.cfg, *args)
    # Some ten roundings of sums of at most 12 terms, amplified by the norms.
    assert_close(got, want, 3e-5)

  @parameterized.parameters(*_METHODS)
  def test_padding_and_what_it_holds_change_nothing(self, name):
    model, variables = _model(methods=(_METHODS[name],))
    tokens, mask = _tokens(1, 2, 11), _mask([11, 6], 11)
    want = _apply(model, variables, tokens, mask=mask)
    self.assertTrue(bool(jnp.isfinite(want).all()))
    other = jnp.where(mask.key_valid, tokens, (tokens + 5) % 13)
    got = _apply(model, variables, other, mask=mask)
    valid = mask.key_valid[..., None]
    np.testing.assert_array_equal(
      jnp.where(valid, got, 0.0), jnp.where(valid, want, 0.0)
    )
    if name != "bigbird":  # Its last block is that of the array.
      alone = _apply(model, variables, tokens[1:, :6])
      assert_close(got[1:, :6], alone, 3e-5)
    if name != "dense":
      dense, _ = _model()
      away = jnp.abs(_apply(dense, variables, tokens, mask=mask) - want)
      self.assertGreater(float(jnp.where(valid, away, 0.0).max()), 1e-3)

  def test_defaults_of_positions_and_types(self):
    for kind in ("learned", "sinusoidal", "rotary"):
      model, variables = _model(positions=kind, type_vocab_size=2)
      tokens = _tokens(1, 2, 7)
      places = jnp.broadcast_to(jnp.arange(7)[None], (2, 7))
      want = _apply(model, variables, tokens)
      types = jnp.zeros((2, 7), int)
      got = _apply(model, variables, tokens, positions=places, type_ids=types)
      assert_close(got, want)
      shifted = _apply(model, variables, tokens, positions=places + 5)
      moved = float(jnp.abs(shifted - want).max())
      if kind == "rotary":  # Distances alone matter.
        self.assertLess(moved, 1e-4)
      else:
        self.assertGreater(moved, 1e-2)

  def test_without_positions_order_does_not_matter(self):
    model, variables = _model(positions="none")
    tokens = _tokens(1, 1, 7)
    order = jnp.array([3, 0, 6, 2, 1, 5, 4])
    want = _apply(model, variables, tokens)[:, order]
    assert_close(_apply(model, variables, tokens[:, order]), want)

  def test_receptive_field_is_layers_times_window_times_dilation(self):
    method = jaxattn.longformer(window=4, dilation=2)
    model, variables = _model(methods=(method,))
    tokens = _tokens(1, 1, 16)
    want = _apply(model, variables, tokens)
    moved = tokens.at[0, 0].add(5) % 13
    change = jnp.abs(_apply(model, variables, moved) - want)[0].max(-1)
    reached = [0, 2, 4, 6, 8]  # Two layers, two keys each side, every second.
    np.testing.assert_array_equal(np.flatnonzero(change), reached)

  def test_windows_by_layer(self):
    methods = (jaxattn.longformer(window=2), jaxattn.longformer(window=8))
    model, variables = _model(methods=methods)
    tokens = _tokens(1, 1, 16)
    want = _apply(model, variables, tokens)
    moved = tokens.at[0, 0].add(5) % 13
    change = jnp.abs(_apply(model, variables, moved) - want)[0].max(-1)
    np.testing.assert_array_equal(np.flatnonzero(change), [0, 1, 2, 3, 4, 5])

  def test_remat_changes_no_gradient_but_recomputes(self):
    def loss(variables, remat):
      model: Any = encoder.Encoder(_config(remat=remat, **options))
      out = model.apply(variables, _tokens(1, 2, 9), global_positions=_PLACES)
      return jnp.sum(out[..., 0] ** 3)

    options = dict(num_layers=1, methods=(_WINDOW,), global_projections=True)
    _, variables = _model(**options)
    products = []
    for remat in ("none", "dots", "full"):
      grad = jax.grad(functools.partial(loss, remat=remat))
      jaxpr = jax.make_jaxpr(grad)(variables)
      products.append(str(jaxpr).count("dot_general"))
    self.assertLess(products[0], products[1])
    self.assertLess(products[1], products[2])
    grads = [
      jax.jit(jax.grad(functools.partial(loss, remat=remat)))(variables)
      for remat in ("none", "full")
    ]
    chex.assert_trees_all_close(*grads, rtol=1e-4, atol=1e-4)

  def test_dropout_acts_in_training_only(self):
    model, variables = _model(dropout=0.5)
    tokens = _tokens(0, 1, 4)
    quiet = _apply(model, variables, tokens)
    rngs = [{"dropout": jax.random.key(i)} for i in range(2)]
    a, b = (_apply(model, variables, tokens, train=True, rngs=r) for r in rngs)
    self.assertGreater(float(jnp.abs(a - b).max()), 1e-3)
    self.assertGreater(float(jnp.abs(a - quiet).max()), 1e-3)

  def test_bfloat16(self):
    model, variables = _model(dtype=jnp.bfloat16)
    got = _apply(model, variables, _tokens(0, 2, 8))
    want = _apply(encoder.Encoder(_config()), variables, _tokens(0, 2, 8))
    self.assertEqual(got.dtype, jnp.bfloat16)
    # Some thirty roundings to 8 bits between norms.
    assert_close(got.astype(jnp.float32), want, 8e-2)

  def test_logical_axis_names(self):
    model = encoder.Encoder(
      _config(
        type_vocab_size=2,
        num_kv_heads=1,
        methods=(_WINDOW,),
        global_projections=True,
      )
    )
    boxed = jax.eval_shape(model.init, jax.random.key(0), _tokens(0, 1, 4))
    specs = nn.get_partition_spec(boxed)
    names = {
      name
      for spec in jax.tree.leaves(
        specs, is_leaf=lambda s: isinstance(s, jax.sharding.PartitionSpec)
      )
      for name in spec
    }
    self.assertEqual(
      names, {"embed", "mlp", "heads", "kv_heads", "head_dim", "vocab", None}
    )
    attention = specs["params"]["blocks_0"]["attention"]
    self.assertEqual(
      tuple(attention["value_global"]["kernel"]),
      ("embed", "kv_heads", "head_dim"),
    )

  @parameterized.parameters(
    ({"num_heads": 3}, "num_heads must divide width"),
    ({"num_kv_heads": 4}, "num_kv_heads must divide"),
    ({"methods": (jaxattn.dense(),) * 3}, "methods must be a tuple"),
    ({"positions": "relative"}, "positions must be one of"),
    ({"norm": "sandwich"}, "norm must be one of"),
    ({"activation": "swish"}, "activation must be one of"),
    ({"remat": "some"}, "remat must be one of"),
    ({"dropout": 1.0}, "dropout must be in"),
    ({"max_length": 0}, "max_length must be positive"),
    ({"type_vocab_size": -1}, "type_vocab_size must not be negative"),
    ({"global_projections": True}, "global_projections=True.*Dense"),
  )
  def test_config_errors(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      _config(**options)

  def test_call_errors(self):
    tokens = _tokens(0, 2, 5)
    for options, given, kwargs, message in (
      ({"max_length": 4}, tokens, {}, "exceed max_length 4"),
      ({}, tokens[0], {}, r"tokens must be integers \[B, T\]"),
      ({}, tokens, {"type_ids": tokens}, "type_ids need type_vocab_size"),
      (
        {"positions": "none"},
        tokens,
        {"positions": tokens},
        "nothing to act on",
      ),
      ({}, tokens, {"positions": tokens[:1]}, "positions must be integers in"),
      (
        {},
        tokens,
        {"global_positions": _PLACES},
        "global_positions needs methods that are static patterns.*Dense",
      ),
      (
        {"methods": (_WINDOW, jaxattn.sliding_window(left=2))},
        tokens,
        {"global_positions": _PLACES},
        "SlidingWindow",
      ),
    ):
      model, variables = _model(**options)
      with self.assertRaisesRegex(ValueError, message):
        model.apply(variables, given, **kwargs)


class GlobalTokensTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_they_carry_over_any_distance(self, separate):
    """Token 15 hears of token 0 through a global token, and only so."""
    model, variables = _model(methods=(_WINDOW,), global_projections=separate)
    tokens = _tokens(1, 1, 16)
    moved = tokens.at[0, 0].add(5) % 13
    for places, heard in (([[8]], True), ([[-1]], False)):
      places = jnp.array(places)
      a, b = (
        _apply(model, variables, t, global_positions=places)
        for t in (tokens, moved)
      )
      change = float(jnp.abs(a - b)[0, 15].max())
      self.assertEqual(change > 1e-4, heard)

  def test_rows_have_their_own(self):
    model, variables = _model(methods=(_WINDOW,), global_projections=True)
    tokens, mask = _tokens(1, 2, 13), _mask([13, 8], 13)
    both = _apply(model, variables, tokens, global_positions=_PLACES, mask=mask)
    for row, length in ((0, 13), (1, 8)):
      alone = _apply(
        model,
        variables,
        tokens[row : row + 1, :length],
        global_positions=_PLACES[row : row + 1],
      )
      assert_close(both[row, :length], alone[0], 3e-5)

  def test_copied_projections_equal_shared_ones(self):
    model, variables = _model(methods=(_WINDOW,), global_projections=True)
    copied = longformer.copy_global(variables)
    shared, _ = _model(methods=(_WINDOW,))
    tokens = _tokens(1, 2, 13)
    # A global row over its own pattern: both look by the same weights.
    want = _apply(shared, copied, tokens, global_positions=_PLACES)
    got = _apply(model, copied, tokens, global_positions=_PLACES)
    assert_close(got, want)
    drawn = _apply(model, variables, tokens, global_positions=_PLACES)
    self.assertGreater(float(jnp.abs(drawn - want).max()), 1e-2)

  def test_leading_global_tokens_equal_those_of_the_method(self):
    static = jaxattn.longformer(window=4, num_global=2)
    model, variables = _model(methods=(static,))
    tokens = _tokens(1, 2, 13)
    want = _apply(model, variables, tokens)
    dynamic, _ = _model(methods=(_WINDOW,))
    places = jnp.array([[0, 1], [1, 0]])
    got = _apply(dynamic, variables, tokens, global_positions=places)
    assert_close(got, want)


class HeadsTest(parameterized.TestCase):
  def test_pool(self):
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    valid = jnp.array([[1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
    mask = jaxattn.Mask(key_valid=valid)
    mean = heads.pool(x, pooling="mean", mask=mask)
    first = heads.pool(x, mask=mask)
    assert_close(mean[0], x[0, :3].mean(0))
    assert_close(mean[1], x[1, 2:].mean(0))
    assert_close(first, jnp.stack([x[0, 0], x[1, 2], jnp.zeros(5)]))
    assert_close(mean[2], jnp.zeros(5), 0.0)
    assert_close(heads.pool(x), x[:, 0])
    # Padding that is not a number stays out.
    loud = jnp.where(valid[..., None], x, jnp.nan)
    assert_close(heads.pool(loud, pooling="mean", mask=mask), mean)
    with self.assertRaisesRegex(ValueError, "pooling must be one of"):
      heads.pool(x, pooling="max")  # pyrefly: ignore
    with self.assertRaisesRegex(NotImplementedError, "causal"):
      heads.pool(x, mask=jaxattn.CAUSAL)

  @parameterized.parameters(None, 0)
  def test_classification(self, hidden):
    head = heads.ClassificationHead(
      num_classes=3, hidden=hidden, pooling="mean"
    )
    x, mask = jax.random.normal(jax.random.key(0), (2, 4, 5)), _mask([4, 2], 4)
    params = _loud(jax.eval_shape(head.init, jax.random.key(0), x))["params"]
    got = head.apply({"params": params}, x, mask=mask)
    pooled = np.stack([x[0].mean(0), x[1, :2].mean(0)])
    if hidden is None:
      pooled = np.tanh(_linear(params["hidden_layer"], pooled))
    assert_close(got, _linear(params["out"], pooled))

  @parameterized.parameters("products", "pair")
  def test_retrieval(self, features):
    head = heads.RetrievalHead(features=features)
    texts = [
      jax.random.normal(jax.random.key(i), (2, 3 + i, 4)) for i in (0, 1)
    ]
    mask = _mask([4, 2], 4)
    params = _loud(jax.eval_shape(head.init, jax.random.key(0), *texts))[
      "params"
    ]
    got = head.apply({"params": params}, *texts, second_mask=mask)
    a, b = (
      texts[0].mean(1),
      np.stack([texts[1][0].mean(0), texts[1][1, :2].mean(0)]),
    )
    x = np.concatenate(
      [a, b] if features == "pair" else [a, b, a * b, a - b], axis=-1
    )
    for i in range(1 if features == "products" else 2):
      x = np.maximum(_linear(params[f"layer_{i}"], x), 0)
    assert_close(got, _linear(params["out"], x))
    with self.assertRaisesRegex(ValueError, "of the same B and D"):
      head.apply({"params": params}, texts[0], texts[1][:1])
    with self.assertRaisesRegex(ValueError, "products or pair"):
      heads.RetrievalHead(features="sum").init(  # pyrefly: ignore
        jax.random.key(0), *texts
      )

  def test_token_head(self):
    head = heads.TokenHead(num_outputs=2)
    x = jax.random.normal(jax.random.key(0), (2, 4, 5))
    params = _loud(jax.eval_shape(head.init, jax.random.key(0), x))["params"]
    got = head.apply({"params": params}, x)
    assert_close(got, _linear(params["out"], x))

  def test_masked_language_model(self):
    model = heads.MaskedLanguageModel(_config(num_layers=1))
    tokens = _tokens(1, 2, 6)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)
    variables = _loud(boxed)
    every = _apply(model, variables, tokens)
    predict = jnp.array([[5, 0, 5], [2, 3, 1]])
    some = _apply(model, variables, tokens, predict=predict)
    want = jnp.stack([every[row][predict[row]] for row in range(2)])
    assert_close(some, want)
    params = jax.tree.map(np.asarray, variables["params"])
    inner = {"params": params["encoder"]}
    x = np.asarray(_apply(encoder.Encoder(model.cfg), inner, tokens))
    x = _NAIVE_ACTIVATIONS["gelu"](_linear(params["transform"], x))
    x = _norm(params["norm"], x, model.cfg.layer_norm_eps)
    table = params["encoder"]["embed"]["embedding"]
    assert_close(every, x @ table.T + params["bias"], 3e-5)
    with self.assertRaisesRegex(ValueError, r"predict must be integers \[B, P"):
      model.apply(variables, tokens, predict=predict[0])


if __name__ == "__main__":
  absltest.main()
