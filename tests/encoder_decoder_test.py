"""The encoder-decoder: cross-attention, decoding, masks, and writing."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxattn
from jaxattn.models import decoder
from jaxattn.models import encoder
from jaxattn.models import encoder_decoder
from jaxattn.models import seq2seq
from jaxattn.models.layers import cross
from jaxattn.nn import linen as layers
from tests.method_cases import assert_close

_PLACES = jnp.array([[0, 7], [3, -1]])
_VOCAB = 13


def _led(**options: Any) -> Any:
  options = {
    "vocab_size": _VOCAB,
    "width": 8,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_width": 12,
    "window": 4,
    "max_source": 16,
    "max_target": 12,
    "dropout": 0.0,
    **options,
  }
  return encoder_decoder.led(**options)


def _pegasus() -> Any:
  """Pre-norm, no shared table, unequal widths, other positions."""
  shared: Any = {"vocab_size": _VOCAB, "num_layers": 1, "num_heads": 2}
  return encoder_decoder.EncoderDecoderConfig(
    share_embeddings=False,
    encoder=encoder.EncoderConfig(
      width=12,
      norm="pre",
      positions="sinusoidal",
      methods=(jaxattn.sliding_window(left=2, right=2),),
      activation="relu",
      **shared,
    ),
    decoder=decoder.DecoderConfig(
      width=8,
      cross_attention=True,
      qk_norm=True,
      num_kv_heads=1,
      positions="rotary",
      tie_embeddings=False,
      **shared,
    ),
  )


def _tokens(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).integers(0, _VOCAB, shape))


def _loud(tree):
  """Unboxed parameters of size 1, so that every part of the model shows."""
  rng = np.random.default_rng(1)

  def draw(path, x):
    around = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(around + 0.7 * rng.normal(size=x.shape), x.dtype)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(tree))


def _model(cfg: Any) -> tuple[Any, Any]:
  model = encoder_decoder.EncoderDecoder(cfg)
  tokens = _tokens(0, 1, 4)
  boxed = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
  return model, _loud(boxed)


def _varied(path, x):
  """Without biases and with small branches, outputs differ by token."""
  if path[-1].key == "bias":
    return jnp.zeros_like(x)
  return 0.6 * x if path[-2].key in ("out", "mlp_out") else x


def _apply(model, variables, *args, **kwargs):
  return jax.jit(model.apply)(variables, *args, **kwargs)


def _valid(lengths, length):
  return jnp.arange(length)[None] < jnp.asarray(lengths)[:, None]


@functools.partial(jax.jit, static_argnames=("model", "max_length"))
def _start(model, variables, source, valid, places, max_length=None):
  mask = jaxattn.Mask(key_valid=valid, query_valid=valid)
  context = model.apply(
    variables, source, mask=mask, global_positions=places, method="encode"
  )
  return seq2seq.init_cache(
    model, variables, context, context_valid=valid, max_length=max_length
  )


@functools.partial(jax.jit, static_argnames=("model", "last_only"))
def _step(model, variables, cache, tokens, valid=None, last_only=False):
  return seq2seq.decode_step(
    model, variables, cache, tokens, valid, last_only=last_only
  )


class CrossAttentionTest(parameterized.TestCase):
  @parameterized.parameters(
    {}, {"use_bias": True, "num_kv_heads": 1, "qk_norm": True}
  )
  def test_equals_the_attention_layer(self, **options):
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    context = jax.random.normal(jax.random.key(1), (2, 7, 6))
    mask = jaxattn.Mask(
      key_valid=_valid([7, 3], 7), query_valid=_valid([5, 2], 5)
    )
    ours = cross.CrossAttention(
      num_heads=2, head_dim=4, out_features=8, **options
    )
    theirs = layers.Attention(
      method=jaxattn.dense(), num_heads=2, head_dim=4, **options
    )
    boxed = jax.eval_shape(ours.init, jax.random.key(0), x, context)
    other = jax.eval_shape(theirs.init, jax.random.key(0), x, context)
    chex.assert_trees_all_equal_shapes(nn.unbox(boxed), nn.unbox(other))
    self.assertEqual(
      jax.tree.leaves(nn.get_partition_spec(boxed)),
      jax.tree.leaves(nn.get_partition_spec(other)),
    )
    variables = _loud(boxed)
    want = _apply(theirs, variables, x, context, mask=mask)
    assert_close(_apply(ours, variables, x, context, mask=mask), want)
    # A single query takes another way.
    one = dataclasses.replace(mask, query_valid=None)
    got = _apply(ours, variables, x[:, 1:2], context, mask=one)
    assert_close(got, want[:, 1:2])

  def test_errors(self):
    layer = cross.CrossAttention(num_heads=2, head_dim=4, out_features=8)
    x = jnp.ones((1, 3, 8))
    variables = layer.init(jax.random.key(0), x, x)
    with self.assertRaisesRegex(ValueError, "context must be given"):
      layer.apply(variables, x)
    with self.assertRaisesRegex(ValueError, r"valid must have shape \(1, 3\)"):
      layer.apply(
        variables,
        x,
        jnp.ones((1, 4), bool),
        method="remember",
        mutable=["cache"],
      )


class DecodeTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("led", _led(), _PLACES), ("pegasus", _pegasus(), None)
  )
  def test_equals_parallel_forward(self, cfg, places):
    """Unequal sources and targets, several chunks: 1e-5 of the largest."""
    model, variables = _model(cfg)
    source, target = _tokens(1, 2, 11), _tokens(2, 2, 8)
    source_valid, valid = _valid([11, 6], 11), _valid([8, 5], 8)
    want = _apply(
      model,
      variables,
      source,
      target,
      source_mask=jaxattn.Mask(
        key_valid=source_valid, query_valid=source_valid
      ),
      target_mask=jaxattn.Mask(causal=True, key_valid=valid, query_valid=valid),
      global_positions=places,
    )
    cache = _start(model, variables, source, source_valid, places, 8)
    got, start = [], 0
    for size in (4, 1, 1, 2):
      rows = slice(start, start + size)
      logits, cache = _step(
        model, variables, cache, target[:, rows], valid[:, rows]
      )
      got.append(logits)
      start += size
    got = jnp.where(valid[..., None], jnp.concatenate(got, axis=1), 0.0)
    want = jnp.where(valid[..., None], want, 0.0)
    self.assertGreater(float(jnp.abs(want).max()), 1.0)
    assert_close(got, want)
    np.testing.assert_array_equal(cache["decoder"]["length"], [8, 5])

  def test_keys_of_the_source_are_computed_once(self):
    model, variables = _model(_led())
    source = _tokens(1, 2, 11)
    cache = _start(model, variables, source, jnp.ones((2, 11), bool), _PLACES)
    for i in range(2):
      kept = cache["decoder"][f"blocks_{i}"]["cross"]
      self.assertEqual(kept["key"].shape, (2, 11, 2, 4))
    # Steps read neither their projections nor the encoder.
    params = variables["params"]
    without = {
      **params,
      "encoder": jax.tree.map(jnp.zeros_like, params["encoder"]),
    }
    without["decoder"] = dict(params["decoder"])
    for i in range(2):
      block = dict(params["decoder"][f"blocks_{i}"])
      for name in ("key", "value"):
        zero = jax.tree.map(jnp.zeros_like, block["cross"][name])
        block["cross"] = {**block["cross"], name: zero}
      without["decoder"][f"blocks_{i}"] = block
    tokens = _tokens(2, 2, 1)
    want, new = _step(model, variables, cache, tokens)
    got, _ = _step(model, {"params": without}, cache, tokens)
    np.testing.assert_array_equal(got, want)
    for i in range(2):
      block = f"blocks_{i}"
      chex.assert_trees_all_equal(
        new["decoder"][block]["cross"], cache["decoder"][block]["cross"]
      )

  def test_take_selects_rows_with_their_sources(self):
    model, variables = _model(_led())
    source, valid = _tokens(1, 2, 11), _valid([11, 6], 11)
    cache = _start(model, variables, source, valid, _PLACES)
    _, cache = _step(model, variables, cache, _tokens(2, 2, 3))
    want, _ = _step(model, variables, cache, jnp.array([[4], [4]]))
    beams = jaxattn.take(cache, jnp.array([1, 0]))
    got, _ = _step(model, variables, beams, jnp.array([[4], [4]]))
    assert_close(got, want[::-1])
    self.assertGreater(float(jnp.abs(want[0] - want[1]).max()), 1e-2)

  def test_greedy_is_the_largest_logit_of_the_parallel_form(self):
    model, variables = _model(_led())
    variables["params"]["decoder"] = jax.tree_util.tree_map_with_path(
      _varied, variables["params"]["decoder"]
    )
    source, valid = _tokens(1, 2, 11), _valid([11, 6], 11)
    mask = jaxattn.Mask(key_valid=valid, query_valid=valid)
    write = functools.partial(
      seq2seq.greedy,
      model,
      variables,
      source,
      start_id=2,
      max_new_tokens=6,
      source_mask=mask,
      global_positions=_PLACES,
    )
    forward = jax.jit(model.apply)
    target = jnp.full((2, 7), 2)
    for step in range(6):
      logits = forward(
        variables,
        source,
        target[:, :6],
        source_mask=mask,
        global_positions=_PLACES,
      )
      best = jnp.argmax(logits[:, step], axis=-1)
      target = target.at[:, step + 1].set(best)
    want = np.asarray(target[:, 1:])
    np.testing.assert_array_equal(write(), want)
    self.assertGreater(len(np.unique(want)), 2, want)
    # Row 0 ends at its third token, which row 1 lacks.
    end = int(want[0, 2])
    self.assertNotIn(end, want[1])
    got = np.asarray(write(eos_id=end))
    for row in range(2):
      ends = np.flatnonzero(want[row] == end)
      stop = int(ends[0]) if len(ends) else 6
      np.testing.assert_array_equal(got[row, :stop], want[row, :stop])
      np.testing.assert_array_equal(got[row, stop:], end)

  def test_errors(self):
    model, variables = _model(_led())
    source = _tokens(1, 1, 5)
    options: dict[str, Any] = {"start_id": 2, "max_new_tokens": 4}
    for changes, message in (
      ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
      ({"max_new_tokens": 13}, "max_length 13 exceeds max_length 12"),
      (
        {"source_mask": jaxattn.packed(jnp.zeros((1, 5), int))},
        "source_mask has segment ids",
      ),
    ):
      with self.assertRaisesRegex(ValueError, message):
        given: dict[str, Any] = options | changes
        seq2seq.greedy(model, variables, source, **given)


class EncoderDecoderTest(parameterized.TestCase):
  def test_what_the_target_sees(self):
    """The past of the target, and every real token of the source."""
    model, variables = _model(_led())
    source, target = _tokens(1, 2, 11), _tokens(2, 2, 6)
    valid = _valid([11, 6], 11)
    mask = jaxattn.Mask(key_valid=valid, query_valid=valid)
    run = functools.partial(_apply, model, variables, source_mask=mask)
    want = run(source, target)
    # Padding of the source.
    other = jnp.where(valid, source, (source + 5) % _VOCAB)
    np.testing.assert_array_equal(run(other, target), want)
    # Its last real tokens reach the first token of the target.
    moved = source.at[0, 10].add(5).at[1, 5].add(5) % _VOCAB
    change = jnp.abs(run(moved, target) - want).max(-1)
    self.assertGreater(float(change.min()), 1e-4)
    # The future of the target does not reach its past.
    later = target.at[:, 4].add(5) % _VOCAB
    change = np.asarray(jnp.abs(run(source, later) - want).max(-1))
    np.testing.assert_array_equal(change[:, :4], 0.0)
    self.assertGreater(change[:, 4:].min(), 1e-4)

  def test_packed_pairs_equal_separate_ones(self):
    cfg = _pegasus()
    model, variables = _model(cfg)
    lengths = ((5, 3), (6, 4))
    pairs = [
      (_tokens(i, 1, s), _tokens(i + 5, 1, t))
      for i, (s, t) in enumerate(lengths)
    ]
    want = [_apply(model, variables, *pair) for pair in pairs]
    source, target = (
      jnp.concatenate(x, axis=1) for x in zip(*pairs, strict=True)
    )
    ids, places = [], []
    for sizes in zip(*lengths, strict=True):
      ids.append(jnp.array([[1] * sizes[0] + [2] * sizes[1]]))
      counts = [jnp.arange(size) for size in sizes]
      places.append(jnp.concatenate(counts)[None])
    got = _apply(
      model,
      variables,
      source,
      target,
      source_mask=jaxattn.packed(ids[0]),
      target_mask=jaxattn.packed(ids[1], causal=True),
      source_positions=places[0],
      target_positions=places[1],
    )
    assert_close(got, jnp.concatenate(want, axis=1))
    with self.assertRaisesRegex(ValueError, "both have segment ids or neither"):
      _apply(
        model, variables, source, target, source_mask=jaxattn.packed(ids[0])
      )

  def test_one_table_for_source_target_and_output(self):
    model, variables = _model(_led())
    params = variables["params"]
    self.assertEqual(set(params), {"embed", "encoder", "decoder"})
    for part in ("encoder", "decoder"):
      self.assertNotIn("embed", params[part])
      self.assertIn("embed_norm", params[part])
    table = params["embed"]["embedding"]
    source, target = jnp.array([[1, 2, 3]]), jnp.array([[4, 5]])

    def loss(table):
      tree = {"params": {**params, "embed": {"embedding": table}}}
      return jnp.sum(model.apply(tree, source, target)[..., 6] ** 2)

    reached = jnp.abs(jax.jit(jax.grad(loss))(table)).max(-1) > 0
    np.testing.assert_array_equal(np.flatnonzero(reached), [1, 2, 3, 4, 5, 6])
    _, apart = _model(_pegasus())
    self.assertEqual(set(apart["params"]), {"encoder", "decoder"})

  def test_remat_recomputes(self):
    products = []
    for remat in ("none", "full"):
      model, variables = _model(_led(remat=remat, num_layers=1))

      def loss(variables, model=model):
        source, target = _tokens(1, 2, 9), _tokens(2, 2, 5)
        out = model.apply(
          variables, source, target, global_positions=_PLACES, train=True
        )
        return jnp.sum(out)

      jaxpr = jax.make_jaxpr(jax.grad(loss))(variables)
      products.append(str(jaxpr).count("dot_general"))
    self.assertLess(products[0], products[1])

  def test_logical_axis_names(self):
    model = encoder_decoder.EncoderDecoder(_led())
    tokens = _tokens(0, 1, 4)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
    specs = nn.get_partition_spec(boxed)["params"]
    self.assertEqual(tuple(specs["embed"]["embedding"]), ("vocab", "embed"))
    block = specs["decoder"]["blocks_0"]
    self.assertEqual(
      tuple(block["cross"]["query"]["kernel"]), ("embed", "heads", "head_dim")
    )
    self.assertEqual(tuple(block["cross_norm"]["scale"]), ("embed",))

  def test_config(self):
    cfg = encoder_decoder.led(vocab_size=50_265)
    self.assertEqual(cfg.encoder.methods, (jaxattn.longformer(window=1024),))
    self.assertTrue(cfg.encoder.global_projections)
    self.assertEqual((cfg.encoder.norm, cfg.decoder.norm), ("post", "post"))
    plain = _led().decoder
    with self.assertRaisesRegex(ValueError, "cross_attention=True"):
      encoder_decoder.EncoderDecoderConfig(
        encoder=_led().encoder,
        decoder=dataclasses.replace(plain, cross_attention=False),
      )
    with self.assertRaisesRegex(ValueError, "share_embeddings=True needs one"):
      encoder_decoder.EncoderDecoderConfig(
        encoder=_led().encoder, decoder=dataclasses.replace(plain, norm="pre")
      )

  def test_a_decoder_needs_its_context_and_no_other(self):
    tokens = _tokens(0, 1, 4)
    blind = decoder.Decoder(
      decoder.DecoderConfig(vocab_size=_VOCAB, width=8, num_heads=2)
    )
    with self.assertRaisesRegex(ValueError, "context goes with"):
      blind.init(jax.random.key(0), tokens, context=jnp.ones((1, 3, 8)))
    seeing = decoder.Decoder(_led().decoder)
    with self.assertRaisesRegex(ValueError, "context goes with"):
      seeing.init(jax.random.key(0), tokens)


if __name__ == "__main__":
  absltest.main()
