"""ETC's layers and model against their equations, and its losses."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from flax import linen as nn

from jaxattn._src import etc as etc_op
from jaxattn._src import etc_labels
from jaxattn.models import etc
from jaxattn.models import losses
from jaxattn.models.layers import etc as etc_layers

_SMALL = dict(
  width=8,
  num_heads=2,
  num_layers=1,
  mlp_width=12,
  radius=2,
  max_distance=3,
  kernel_stddev=0.4,
)


def _cfg(**options):
  return etc_layers.EtcConfig(**_SMALL | options)


def _model_cfg(**options):
  return etc.EtcModelConfig(vocab_size=13, encoder=_cfg(**options))


def _streams(seed=0, long_len=11, global_len=3):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.normal(size=(2, n, 8)), jnp.float32)
    for n in (long_len, global_len)
  )


def _structure():
  ids = jnp.asarray(np.random.default_rng(1).integers(-1, 3, (2, 11)))
  return etc_labels.EtcStructure(
    long_valid=jnp.arange(11)[None] < jnp.array([[11], [8]]), sentence_ids=ids
  )


def _noisy(params, seed=5):
  """Parameters of which none is zero or one, so that each one matters."""
  leaves, tree = jax.tree.flatten(nn.unbox(params))
  rng = np.random.default_rng(seed)
  return tree.unflatten(
    [x + 0.3 * jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in leaves]
  )


def _norm(x, params):
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-12)
  return x * params["scale"][None, None] + params["bias"][None, None]


def _linear(x, params, contract=1):
  kernel, bias = params["kernel"], params["bias"]
  out = jnp.tensordot(x, kernel, contract)
  return out + jax.lax.broadcast_to_rank(bias, out.ndim)


def _layer(cfg, params, long, global_, structure):
  """An ETC layer, written out; parameters by name."""
  attention = params["attention"]

  def pick(*names):
    (name,) = (n for n in names if n in attention)
    return attention[name]

  def mix(long, global_):
    heads = []
    for own, other, x in (
      ("long", "global", long),
      ("global", "long", global_),
    ):
      found = [_linear(x, pick("query", f"{own}_query"))]
      for by in (own, other):
        for kind in ("key", "value"):
          names = (kind, f"{by}_to_{own}_{kind}", f"{by}_{kind}")
          found.append(_linear(x, pick(*names)))
      heads.append(etc_op.EtcHeads(*found))
    tables = [
      etc_op.EtcTable(attention[f"{s}_vectors"], attention[f"{s}_bias"])
      for s in ("long", "global")
    ]
    outs = etc_op.etc_attention(
      *heads,
      radius=cfg.radius,
      structure=structure,
      max_distance=cfg.max_distance,
      long_table=tables[0],
      global_table=tables[1],
    )
    return [
      _linear(x, pick("out", f"{s}_out"), 2)
      for s, x in zip(("long", "global"), outs, strict=True)
    ]

  def feed(x, stream):
    prefix = "" if cfg.share_feed_forward else f"{stream}_"
    hidden = _linear(x, params[f"{prefix}mlp_in"])
    hidden = 0.5 * hidden * (1 + jax.lax.erf(hidden / math.sqrt(2)))
    return _linear(hidden, params[f"{prefix}mlp_out"])

  def mlp_norm(x, stream):
    prefix = "" if cfg.share_feed_forward else f"{stream}_"
    return _norm(x, params[f"{prefix}mlp_norm"])

  names, streams = ("long", "global"), (long, global_)
  first = [params[f"{s}_attention_norm"] for s in names]
  if cfg.norm == "pre":
    normed = [_norm(x, p) for x, p in zip(streams, first, strict=True)]
    streams = [a + b for a, b in zip(streams, mix(*normed), strict=True)]
    return [
      x + feed(mlp_norm(x, s), s) for s, x in zip(names, streams, strict=True)
    ]
  streams = [a + b for a, b in zip(streams, mix(*streams), strict=True)]
  streams = [_norm(x, p) for x, p in zip(streams, first, strict=True)]
  return [
    mlp_norm(x + feed(x, s), s) for s, x in zip(names, streams, strict=True)
  ]


_SHARING = {
  "default": {},
  "all": dict(share_attention_output=True),
  "none": dict(share_qkv=False, share_feed_forward=False),
  "kv": dict(share_qkv=False, share_kv=True),
}
_PROJECTIONS = {
  "default": {"query", "key", "value", "long_out", "global_out"},
  "all": {"query", "key", "value", "out"},
  "none": {
    *("long_query", "global_query", "long_out", "global_out"),
    *(
      f"{a}_to_{b}_{kind}"
      for a in ("long", "global")
      for b in ("long", "global")
      for kind in ("key", "value")
    ),
  },
  "kv": {
    *("long_query", "long_key", "long_value", "long_out"),
    *("global_query", "global_key", "global_value", "global_out"),
  },
}


class LayerTest(parameterized.TestCase):
  @parameterized.parameters(
    *((k, "post") for k in _SHARING), ("default", "pre"), ("none", "pre")
  )
  def test_equals_its_equations(self, sharing, norm):
    cfg = _cfg(norm=norm, **_SHARING[sharing])
    layer = etc_layers.EtcLayer(cfg)
    streams, structure = _streams(), _structure()
    init = jax.jit(layer.init, static_argnums=4)
    params = init(jax.random.key(0), *streams, structure, False)["params"]
    tables = {
      f"{s}_{k}" for s in ("long", "global") for k in ("vectors", "bias")
    }
    self.assertEqual(set(params["attention"]) - tables, _PROJECTIONS[sharing])
    params = _noisy(params)

    @jax.jit
    def both(params, streams):
      got = layer.apply({"params": params}, *streams, structure, False)
      return got, _layer(cfg, params, *streams, structure)

    for got, want in zip(*both(params, streams), strict=True):
      np.testing.assert_allclose(got, want, atol=2e-5)

  def test_initial_values(self):
    cfg = etc_layers.EtcConfig(width=64, num_heads=2, max_distance=24)
    layer = etc_layers.EtcSelfAttention(cfg)
    x = jnp.zeros((1, 4, 64))
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(0), x, x)["params"])
    # A normal cut at two deviations keeps 0.88 of its deviation.
    np.testing.assert_allclose(
      np.std(params["query"]["kernel"]), 0.88 * 0.02, rtol=0.05
    )
    for stream in ("long", "global"):
      assert params[f"{stream}_vectors"].shape == (52, 2, 32)
      np.testing.assert_allclose(
        np.std(params[f"{stream}_vectors"]), 0.88 * 0.5, rtol=0.05
      )
      np.testing.assert_array_equal(params[f"{stream}_bias"], 0)

  def test_kernels_carry_logical_names(self):
    layer = etc_layers.EtcLayer(_cfg())
    variables = jax.eval_shape(
      lambda: layer.init(jax.random.key(0), *_streams(), None, False)
    )
    spec = nn.get_partition_spec(variables)["params"]
    attention = spec["attention"]
    self.assertEqual(
      tuple(attention["query"]["kernel"]), ("embed", "heads", "head_dim")
    )
    self.assertEqual(
      tuple(attention["long_vectors"]), (None, "heads", "head_dim")
    )
    self.assertEqual(tuple(spec["mlp_in"]["kernel"]), ("embed", "mlp"))

  @parameterized.named_parameters(
    ("kv", dict(share_kv=True), "share_kv has no effect"),
    ("labels", dict(num_labels=9), r"at least 2 max_distance \+ 4 = 10"),
    (
      "no_table",
      dict(max_distance=None, num_labels=9),
      "num_labels has no effect",
    ),
    ("heads", dict(num_heads=3), "num_heads must divide width"),
    ("radius", dict(radius=-1), "radius"),
    ("norm", dict(norm="none"), "norm must be one of"),
    ("dropout", dict(dropout=1.0), "dropout must be in"),
    ("layers", dict(num_layers=0), "num_layers must be positive"),
  )
  def test_bad_options_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      _cfg(**options)


class ModelTest(parameterized.TestCase):
  def _inputs(self, pad=0):
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 13, (2, 11)))
    tokens = tokens.at[1, 8:].set(0)
    tokens = jnp.pad(tokens, ((0, 0), (0, pad)))
    return etc.unstructured_inputs(tokens, tokens_per_block=4)

  def test_sizes_of_the_papers_models(self):
    """Table 1: 109M parameters shared, 166M not."""
    inputs = self._inputs()

    def count(cfg):
      params = jax.eval_shape(
        lambda: etc.EtcModel(cfg).init(jax.random.key(0), *inputs)
      )["params"]
      return sum(x.size for x in jax.tree.leaves(params)) / 1e6

    shared = etc.base(vocab_size=30522, share_attention_output=True)
    self.assertAlmostEqual(count(shared), 109, delta=1)
    unshared = etc.base(vocab_size=30522, share_qkv=False)
    self.assertAlmostEqual(count(unshared), 166, delta=1)
    large = etc.large(vocab_size=30522).encoder
    self.assertEqual((large.radius, large.least_labels), (169, 52))
    self.assertEqual(unshared.encoder.label_rows, 32)

  @parameterized.parameters("post", "pre")
  def test_equals_its_layers(self, norm):
    cfg = _model_cfg(norm=norm, num_layers=2)
    cfg = dataclasses.replace(cfg, max_positions=16)
    model, inputs = etc.EtcModel(cfg), self._inputs()
    params = _noisy(jax.jit(model.init)(jax.random.key(0), *inputs)["params"])
    got = jax.jit(model.apply)({"params": params}, *inputs)
    streams = []
    for stream, tokens, kind in (
      ("long", inputs.tokens, 1),
      ("global", inputs.global_tokens, 0),
    ):
      x = params["word_embed"]["embedding"][tokens]
      x = x + params["type_embed"]["embedding"][kind][None, None]
      table = params[f"{stream}_positions"]["embedding"]
      x = x + table[None, : tokens.shape[1]]
      streams.append(_norm(x, params[f"{stream}_embed_norm"]))
    layer = jax.jit(functools.partial(_layer, cfg.encoder))
    for i in range(2):
      streams = layer(params[f"layers_{i}"], *streams, inputs.structure)
    if norm == "pre":
      streams = [
        _norm(x, params[f"{s}_final_norm"])
        for s, x in zip(("long", "global"), streams, strict=True)
      ]
    for a, b in zip(got, streams, strict=True):
      np.testing.assert_allclose(a, b, atol=5e-5)

  def test_padding_changes_nothing(self):
    model = etc.EtcMaskedLM(_model_cfg())
    variables = jax.jit(model.init)(jax.random.key(0), *self._inputs())
    logits, global_ = jax.jit(model.apply)(variables, *self._inputs())
    padded, padded_global = jax.jit(model.apply)(
      variables, *self._inputs(pad=6)
    )
    assert padded_global.shape[1] == 5
    for row, (size, blocks) in enumerate(((11, 3), (8, 2))):
      np.testing.assert_allclose(
        padded[row, :size], logits[row, :size], atol=1e-5
      )
      np.testing.assert_allclose(
        padded_global[row, :blocks], global_[row, :blocks], atol=1e-5
      )

  def test_dropout_and_recomputation(self):
    inputs = self._inputs()
    plain = etc.EtcModel(_model_cfg(dropout=0.5))
    again = etc.EtcModel(_model_cfg(dropout=0.5, remat=True))
    variables = jax.jit(plain.init)(jax.random.key(0), *inputs)

    @functools.partial(jax.jit, static_argnums=0)
    def run(model, variables, rng):
      def loss(variables):
        long, global_ = model.apply(
          variables, *inputs, train=True, rngs={"dropout": rng}
        )
        return jnp.sum(long[0] ** 3) + jnp.sum(global_[0] ** 3)

      return jax.value_and_grad(loss)(variables)

    first = run(plain, variables, jax.random.key(1))
    other = run(plain, variables, jax.random.key(2))
    assert abs(first[0] - other[0]) > 1e-3
    for a, b in zip(
      jax.tree.leaves(first),
      jax.tree.leaves(run(again, variables, jax.random.key(1))),
      strict=True,
    ):
      scale = max(1.0, np.abs(b).max())
      np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * scale)

  def test_computes_in_bfloat16(self):
    inputs = self._inputs()
    exact = etc.EtcModel(_model_cfg())
    low = etc.EtcModel(_model_cfg(dtype=jnp.bfloat16))
    variables = jax.jit(exact.init)(jax.random.key(0), *inputs)
    for a, b in zip(
      jax.jit(low.apply)(variables, *inputs),
      jax.jit(exact.apply)(variables, *inputs),
      strict=True,
    ):
      assert a.dtype == jnp.bfloat16
      # Normalised values of size up to 3 through two layers at 8 bits.
      np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.2)

  def test_sentence_inputs(self):
    tokens = jnp.array([[5, 6, 7, 8, 0]])
    ids = jnp.array([[0, 0, 2, 2, -1]])
    found = etc.sentence_inputs(tokens, ids, num_global=4, global_id=3)
    np.testing.assert_array_equal(found.global_tokens, [[3] * 4])
    np.testing.assert_array_equal(
      found.structure.global_valid, [[True, False, True, False]]
    )
    np.testing.assert_array_equal(
      found.structure.long_valid, [[True] * 4 + [False]]
    )
    with self.assertRaisesRegex(ValueError, "sentence_ids must have the shape"):
      etc.sentence_inputs(tokens, ids[:, 1:], num_global=4)

  def test_bad_inputs_are_named(self):
    cfg = dataclasses.replace(_model_cfg(), max_positions=8)
    inputs = self._inputs()
    init = functools.partial(etc.EtcModel(cfg).init, jax.random.key(0))
    with self.assertRaisesRegex(ValueError, "exceed max_positions 8"):
      init(*inputs)
    with self.assertRaisesRegex(ValueError, "must be integers"):
      init(jnp.ones((2, 4)), inputs.global_tokens)
    with self.assertRaisesRegex(ValueError, "token types of the long stream"):
      init(*inputs, token_types=jnp.ones((2, 3), jnp.int32))
    with self.assertRaisesRegex(ValueError, "max_positions must be at least 0"):
      dataclasses.replace(cfg, max_positions=-1)


class PretrainingTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_a_model_learns_to_match_sentences(self):
    """The whole of pretraining, for a few steps."""
    ids = np.full((2, 30), -1)
    ids[0, :28] = np.repeat(np.arange(14), 2)
    ids[1, :10] = np.repeat(np.arange(2), 5)
    rng = np.random.default_rng(0)
    tokens = np.where(ids >= 0, rng.integers(1, 12, ids.shape), 0)
    tokens, ids = jnp.asarray(tokens), jnp.asarray(ids)
    cfg = _model_cfg(dropout=0.0)
    model = etc.EtcMaskedLM(cfg)
    found = losses.hide_sentences(
      jax.random.key(0),
      tokens,
      ids,
      num_sentences=14,
      max_hidden=2,
      max_length=4,
      mask_id=12,
      rate=0.2,
    )
    text = etc.sentence_inputs(found.tokens, ids, num_global=14)
    alone = found.sentence_tokens.reshape(4, 4)
    single = etc.sentence_inputs(
      alone, jnp.where(alone > 0, 0, -1), num_global=1
    )
    params = jax.jit(model.init)(jax.random.key(0), *text)["params"]

    def loss(params):
      logits, context = model.apply({"params": params}, *text)
      _, encoded = model.apply({"params": params}, *single)
      at = jnp.maximum(found.sentences, 0)[..., None]
      context = jnp.take_along_axis(context, at, axis=1)
      cpc = losses.cpc_loss(
        context, encoded.reshape(2, 2, -1), found.sentences >= 0
      )
      mlm = losses.masked_language_model_loss(logits, tokens, ids >= 0)
      return losses.etc_pretraining_loss(mlm, cpc), (mlm, cpc)

    optimizer = optax.adam(0.03)

    @jax.jit
    def step(params, state):
      grads, parts = jax.grad(loss, has_aux=True)(params)
      updates, state = optimizer.update(grads, state)
      return optax.apply_updates(params, updates), state, parts

    state, seen = optimizer.init(params), []
    for _ in range(40):
      params, state, parts = step(params, state)
      seen.append(np.asarray(parts))
    # Three hidden sentences: guessing costs log 3 = 1.1 nats.
    assert np.all(seen[-1] < seen[0] - 0.5), (seen[0], seen[-1])
