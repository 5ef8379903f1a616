"""The decoder: structure, packing, sharding, and decoding with a cache."""

import dataclasses
import functools
from typing import Any
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxattn
from jaxattn import positions
from jaxattn.models import decoder
from jaxattn.models import decoding


def _config(**options: Any):
  options = {
    "vocab_size": 13,
    "width": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_length": 24,
    **options,
  }
  return decoder.DecoderConfig(**options)


def _tokens(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 13, shape))


def _model(**options: Any) -> tuple[Any, Any]:
  model = decoder.Decoder(_config(**options))
  variables = jax.jit(model.init)(jax.random.key(0), _tokens(0, 1, 4))
  return model, nn.unbox(variables)


def _loud(variables):
  """Parameters of size 1/2, so that every part of the model shows."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), variables
  )


def _apply(model, variables, tokens, train=False, **kwargs):
  apply = functools.partial(model.apply, train=train)
  return jax.jit(apply)(variables, tokens, **kwargs)


@functools.partial(jax.jit, static_argnames=("model", "last_only"))
def _step(model, variables, cache, tokens, valid, last_only=False):
  return decoding.decode_step(
    model, variables, cache, tokens, valid, last_only=last_only
  )


_WINDOW = jaxattn.sliding_window(left=3)
_WIDE = jaxattn.sliding_window(left=40)


class DecodeTest(parameterized.TestCase):
  @parameterized.parameters(
    ((jaxattn.dense(),), "learned", (6, 1, 1, 1)),
    ((jaxattn.dense(),), "rotary", (3, 4, 2)),
    ((jaxattn.dense(),), "relative", (6, 1, 1, 1)),
    ((_WINDOW,), "learned", (3, 4, 2)),
    ((_WINDOW,), "rotary", (6, 1, 1, 1)),
    ((_WINDOW,), "relative", (2, 3, 1, 3)),
    ((_WIDE,), "rotary", (5, 2, 1, 1)),
    ((_WIDE,), "relative", (5, 1, 1, 2)),
    (
      (jaxattn.sliding_window(left=2, dilation=2), jaxattn.dense()),
      "none",
      (5, 2, 1, 1),
    ),
  )
  def test_equals_parallel_forward(self, methods, kind, chunks):
    """Unequal prompts, grouped heads, several chunks: 1e-5 of the largest."""
    model, variables = _model(
      methods=methods, positions=kind, use_bias=True, qk_norm=True
    )
    variables = _loud(variables)
    tokens, lengths = _tokens(3, 3, 9), jnp.array([9, 7, 4])
    valid = jnp.arange(9)[None] < lengths[:, None]
    want = _apply(
      model,
      variables,
      tokens,
      mask=jaxattn.Mask(causal=True, key_valid=valid, query_valid=valid),
    )
    cache = decoding.init_cache(model, variables, batch_size=3, max_length=9)
    got, start = [], 0
    for size in chunks:
      rows = slice(start, start + size)
      logits, cache = _step(
        model, variables, cache, tokens[:, rows], valid[:, rows]
      )
      got.append(logits)
      start += size
    got = jnp.where(valid[..., None], jnp.concatenate(got, axis=1), 0.0)
    want = jnp.where(valid[..., None], want, 0.0)
    scale = float(jnp.abs(want).max())
    self.assertGreater(scale, 1.0)
    np.testing.assert_allclose(got, want, atol=1e-5 * scale)
    np.testing.assert_array_equal(cache["length"], lengths)

  def test_padding_leaves_no_trace(self):
    model, variables = _model(positions="learned", methods=(_WINDOW,))
    variables = _loud(variables)
    tokens = _tokens(3, 2, 6)
    valid = jnp.arange(6)[None] < jnp.array([[4], [2]])
    caches = []
    for pad in (0, 7):
      cache = decoding.init_cache(model, variables, batch_size=2)
      rows = jnp.where(valid, tokens, pad)
      caches.append(_step(model, variables, cache, rows, valid)[1])
    chex.assert_trees_all_equal(*caches)

  def test_padding_beyond_the_learned_table_is_harmless(self):
    model, variables = _model(positions="learned", max_length=8)
    cache = decoding.init_cache(model, variables, batch_size=2)
    _, cache = _step(model, variables, cache, _tokens(0, 2, 6), None)
    valid = jnp.arange(6)[None] < jnp.array([[2], [1]])
    logits, cache = _step(model, variables, cache, _tokens(1, 2, 6), valid)
    self.assertTrue(bool(jnp.isfinite(logits[0, :2]).all()))
    self.assertTrue(bool(jnp.isfinite(logits[1, :1]).all()))
    # A ninth token in row 0 has no position: NaN, not a silent repeat.
    logits, _ = _step(model, variables, cache, _tokens(1, 2, 1), None)
    self.assertTrue(bool(jnp.isnan(logits[0]).all()))
    self.assertTrue(bool(jnp.isfinite(logits[1]).all()))

  def test_last_only(self):
    model, variables = _model()
    cache = decoding.init_cache(model, variables, batch_size=2)
    tokens = _tokens(0, 2, 6)
    valid = jnp.arange(6)[None] < jnp.array([[6], [3]])
    every, _ = _step(model, variables, cache, tokens, valid)
    last, _ = _step(model, variables, cache, tokens, valid, last_only=True)
    np.testing.assert_allclose(
      last, jnp.stack([every[0, 5], every[1, 2]]), atol=1e-6
    )

  def test_memory_is_that_of_the_pattern(self):
    model, variables = _model(methods=(_WINDOW, jaxattn.dense()))
    cache = decoding.init_cache(model, variables, batch_size=2, max_length=24)
    sizes = [
      cache[f"blocks_{i}"]["attention"]["cache"]["key"].shape[1]
      for i in range(2)
    ]
    self.assertEqual(sizes, [4, 24])

  def test_take_selects_rows(self):
    model, variables = _model(methods=(_WINDOW, jaxattn.dense()))
    cache = decoding.init_cache(model, variables, batch_size=2)
    _, cache = _step(model, variables, cache, _tokens(0, 2, 5), None)
    beams = jaxattn.take(cache, jnp.array([1, 1, 0]))
    token = jnp.array([[4], [5], [4]])
    got, _ = _step(model, variables, beams, token, None)
    want, _ = _step(model, variables, cache, jnp.array([[4], [4]]), None)
    np.testing.assert_allclose(got[0], want[1], atol=1e-6)
    np.testing.assert_allclose(got[2], want[0], atol=1e-6)
    self.assertGreater(float(jnp.abs(got[1] - got[0]).max()), 1e-4)

  def test_errors(self):
    model, variables = _model(positions="learned")
    with self.assertRaisesRegex(ValueError, "max_length 25 exceeds"):
      decoding.init_cache(model, variables, batch_size=1, max_length=25)
    with self.assertRaisesRegex(ValueError, "collection 'cache'"):
      decoding.decode_step(model, variables, {}, _tokens(0, 1, 2))
    cache = decoding.init_cache(model, variables, batch_size=1)
    with self.assertRaisesRegex(ValueError, "key_valid must have the shape"):
      decoding.decode_step(
        model, variables, cache, _tokens(0, 1, 2), jnp.ones((1, 3), bool)
      )


class DecoderTest(parameterized.TestCase):
  @parameterized.parameters("learned", "rotary", "relative", "none")
  def test_is_causal_by_gradient(self, kind):
    # Untied, so that the table's row t matters through the input at t only.
    model, variables = _model(positions=kind, tie_embeddings=False)
    params = _loud(variables)["params"]

    def logits_at_4(table):
      moved = {**params, "embed": {"embedding": table}}
      out = model.apply({"params": moved}, jnp.arange(8)[None])
      return jnp.sum(out[0, 4] ** 2)

    grad = jax.jit(jax.grad(logits_at_4))(params["embed"]["embedding"])
    size = jnp.abs(grad).max(axis=1)
    np.testing.assert_array_equal(size[5:], 0.0)
    self.assertGreater(float(size[:5].min()), 0.0)

  def test_positions_that_nothing_reads_are_refused(self):
    for kind in ("relative", "none"):
      model, variables = _model(positions=kind)
      tokens = _tokens(1, 1, 5)
      with self.assertRaisesRegex(ValueError, "leave them out"):
        _apply(model, variables, tokens, positions=jnp.arange(5)[None])

  def test_packed_documents_equal_separate_ones(self):
    for kind in ("learned", "rotary", "relative"):
      model, variables = _model(positions=kind, methods=(_WINDOW,))
      variables = _loud(variables)
      first, second = _tokens(1, 1, 5), _tokens(2, 1, 6)
      segments = jnp.array([[1] * 5 + [2] * 6])
      places = jnp.concatenate([jnp.arange(5), jnp.arange(6)])[None]
      got = _apply(
        model,
        variables,
        jnp.concatenate([first, second], axis=1),
        mask=jaxattn.packed(segments, causal=True),
        positions=None if kind == "relative" else places,
      )
      want = jnp.concatenate(
        [_apply(model, variables, x) for x in (first, second)], axis=1
      )
      scale = float(jnp.abs(want).max())
      np.testing.assert_allclose(got, want, atol=1e-5 * scale)

  def test_layers_take_their_own_methods(self):
    methods = (_WINDOW, jaxattn.dense())
    both, variables = _model(methods=methods)
    variables = _loud(variables)
    tokens = _tokens(0, 1, 9)
    outputs = [
      _apply(decoder.Decoder(_config(methods=m)), variables, tokens)
      for m in (methods, methods[::-1], methods[1:])
    ]
    np.testing.assert_allclose(
      _apply(both, variables, tokens), outputs[0], atol=1e-6
    )
    for other in outputs[1:]:
      self.assertGreater(float(jnp.abs(outputs[0] - other).max()), 1e-3)

  @parameterized.parameters("full", "dots")
  def test_remat_changes_no_gradient_but_recomputes(self, policy):
    tokens = _tokens(0, 2, 8)
    grads, saved = [], []
    for remat in ("none", policy):
      model, variables = _model(remat=remat, dropout=0.1)
      rngs = {"dropout": jax.random.key(1)}

      def loss(params, model=model, rngs=rngs):
        logits = model.apply({"params": params}, tokens, train=True, rngs=rngs)
        return jnp.mean(jnp.square(logits))

      grads.append(jax.jit(jax.grad(loss))(_loud(variables)["params"]))
      jaxpr = jax.make_jaxpr(jax.grad(loss))(variables["params"])
      saved.append(str(jaxpr).count("dot_general"))
    chex.assert_trees_all_close(*grads, rtol=1e-4, atol=1e-5)
    self.assertEqual(jax.tree.structure(grads[0]), jax.tree.structure(grads[1]))
    self.assertGreater(saved[1], saved[0])

  def test_initial_scale(self):
    _, variables = _model(
      width=64, num_layers=4, num_kv_heads=None, tie_embeddings=False
    )
    params = variables["params"]
    # 1024 draws at least: the standard deviation is known to about 2 %.
    for block in range(4):
      layer = params[f"blocks_{block}"]
      for kernel, want in (
        (layer["attention"]["query"]["kernel"], 64**-0.5),
        (layer["attention"]["out"]["kernel"], (64 * 8) ** -0.5),
        (layer["mlp_in"]["kernel"], 64**-0.5),
        (layer["mlp_out"]["kernel"], (256 * 8) ** -0.5),
      ):
        np.testing.assert_allclose(float(jnp.std(kernel)), want, rtol=0.08)
    np.testing.assert_allclose(
      float(jnp.std(params["unembed"])), 0.02, rtol=0.1
    )
    table = params["embed"]["embedding"]
    np.testing.assert_allclose(float(jnp.std(table)), 64**-0.5, rtol=0.1)

  def test_tied_embeddings(self):
    model, variables = _model()
    self.assertNotIn("unembed", variables["params"])
    tokens = _tokens(0, 1, 4)
    table = variables["params"]["embed"]["embedding"]
    # Row 12 of the table moves the logit of token 12, which is not an input.
    moved = {
      "params": {
        **variables["params"],
        "embed": {"embedding": table.at[12].multiply(2.0)},
      }
    }
    self.assertNotIn(12, np.asarray(tokens))
    a, b = (_apply(model, v, tokens) for v in (variables, moved))
    changed = np.abs(np.asarray(a - b)).max(axis=(0, 1)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(changed), [12])

  def test_dropout_acts_in_training_only(self):
    model, variables = _model(dropout=0.5)
    tokens = _tokens(0, 1, 4)
    quiet = _apply(model, variables, tokens)
    a, b = (
      _apply(
        model,
        variables,
        tokens,
        train=True,
        rngs={"dropout": jax.random.key(i)},
      )
      for i in range(2)
    )
    self.assertGreater(float(jnp.abs(a - b).max()), 1e-3)
    self.assertGreater(float(jnp.abs(a - quiet).max()), 1e-3)

  def test_bfloat16_activations_give_float32_logits(self):
    model, variables = _model(dtype=jnp.bfloat16)
    tokens = _tokens(0, 2, 8)
    got = _apply(model, variables, tokens)
    want = _apply(decoder.Decoder(_config()), variables, tokens)
    self.assertEqual(got.dtype, jnp.float32)
    # Some twenty roundings to 8 bits, relative to the largest logit.
    np.testing.assert_allclose(
      got, want, atol=4e-2 * float(jnp.abs(want).max())
    )
    chex.assert_trees_all_equal_dtypes(variables, _model()[1])

  def test_logical_axis_names(self):
    model = decoder.Decoder(_config(positions="learned", use_bias=True))
    variables = jax.eval_shape(model.init, jax.random.key(0), _tokens(0, 1, 4))
    names = {
      name
      for spec in jax.tree.leaves(
        nn.get_partition_spec(variables),
        is_leaf=lambda s: isinstance(s, jax.sharding.PartitionSpec),
      )
      for name in spec
    }
    self.assertEqual(
      names, {"embed", "mlp", "heads", "kv_heads", "head_dim", "vocab", None}
    )

  def test_sharded_loss_and_gradient_equal_one_device(self):
    model: Any = decoder.Decoder(_config(vocab_size=16))
    tokens = _tokens(0, 8, 8)
    alone = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
    mesh = jax.make_mesh(
      (2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)
    shardings = nn.logical_to_mesh_sharding(
      nn.get_partition_spec(boxed), mesh, (("embed", "fsdp"),)
    )
    variables = jax.jit(
      lambda r: nn.unbox(model.init(r, tokens)), out_shardings=shardings
    )(jax.random.key(0))
    self.assertFalse(
      variables["params"]["blocks_0"]["mlp_in"][
        "kernel"
      ].sharding.is_fully_replicated
    )
    rows = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(("data", "fsdp"))
    )

    def loss(variables, tokens):
      logits = model.apply(variables, tokens)
      picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1
      )
      return -jnp.mean(picked)

    step = jax.jit(jax.value_and_grad(loss))
    want = step(alone, tokens)
    got = step(variables, jax.device_put(tokens, rows))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    chex.assert_trees_all_close(got[1], want[1], atol=1e-5)

  def test_relative_positions_fill_in_a_scheme(self):
    alibi = jaxattn.dense(relative=positions.ALiBi(max_distance=23))
    cfg = _config(positions="relative", methods=(_WINDOW, alibi))
    methods: Any = cfg.layer_methods()
    first, second = methods
    self.assertEqual(first.relative, positions.T5Bias(bidirectional=False))
    self.assertEqual(second, alibi)
    _, variables = _model(positions="relative", methods=(_WINDOW, alibi))
    table = variables["params"]["blocks_0"]["attention"]["method"]["table"]
    self.assertEqual(table.shape, (4, 32))
    self.assertNotIn("method", variables["params"]["blocks_1"]["attention"])

  def test_state_collection_only_when_needed(self):
    model, variables = _model()
    self.assertEqual(set(variables), {"params"})
    model, variables = _model(methods=(_Counting(), jaxattn.dense()))
    self.assertEqual(set(variables), {"params", "attention"})
    for remat in ("none", "full"):
      model = decoder.Decoder(
        _config(methods=(_Counting(), jaxattn.dense()), remat=remat)
      )
      train = functools.partial(model.apply, train=True, mutable=["attention"])
      _, new = jax.jit(train)(variables, _tokens(0, 1, 4))
      steps = new["attention"]["blocks_0"]["attention"]["state"]
      self.assertEqual(int(steps), 1)

  @parameterized.parameters(
    ({"num_heads": 3, "num_kv_heads": None}, "num_heads must divide width"),
    ({"num_kv_heads": 3}, "num_kv_heads must divide"),
    ({"methods": (jaxattn.dense(),) * 3}, "methods must be a tuple"),
    ({"methods": jaxattn.dense()}, "methods must be a tuple"),
    ({"positions": "absolute"}, "positions must be one of"),
    ({"remat": "some"}, "remat must be one of"),
    ({"dropout": 1.0}, "dropout must be in"),
    ({"vocab_size": 0}, "vocab_size must be positive"),
  )
  def test_config_errors(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      _config(**options)

  def test_methods_that_cannot_serve_are_named(self):
    with self.assertRaisesRegex(ValueError, "relative.*_Counting"):
      _config(positions="relative", methods=(_Counting(),))
    with self.assertRaisesRegex(ValueError, "_Blind.*causal"):
      _config(methods=(_Blind(),))

  def test_call_errors(self):
    model, variables = _model(positions="learned", max_length=4)
    for tokens, kwargs, message in (
      (_tokens(0, 1, 5), {}, "exceed max_length 4"),
      (_tokens(0, 5), {}, r"tokens must be integers \[B, T\]"),
      (jnp.ones((1, 4)), {}, r"tokens must be integers \[B, T\]"),
      (
        _tokens(0, 2, 4),
        {"positions": jnp.zeros((1, 4), int)},
        "positions must have the shape of tokens",
      ),
    ):
      with self.assertRaisesRegex(ValueError, message):
        model.apply(variables, tokens, **kwargs)


@dataclasses.dataclass(frozen=True)
class _Counting:
  """Dense attention that counts its training steps."""

  honours: ClassVar[frozenset[str]] = jaxattn.Dense.honours
  causality: ClassVar[str] = "strict"
  time_exponent: ClassVar[float] = 2.0
  memory_exponent: ClassVar[float] = 1.0

  def init(self, rng, shapes):
    del rng, shapes
    return (), jnp.zeros((), jnp.int32)

  def apply(
    self,
    params,
    state,
    query,
    key,
    value,
    *,
    mask=jaxattn.FULL,
    rng=None,
    train=False,
  ):
    del params, rng
    out = jaxattn.dense_attention(query, key, value, mask=mask)
    return out, state + (1 if train else 0)

  def init_cache(self, params, state, **options):
    raise NotImplementedError

  def extend(self, params, state, cache, query, key, value, *, key_valid=None):
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Blind(_Counting):
  causality: ClassVar[str] = "none"


if __name__ == "__main__":
  absltest.main()
