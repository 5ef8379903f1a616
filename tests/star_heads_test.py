"""Models of the Star Transformer: pooling, heads, and padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxattn
from jaxattn.models import star as models
from jaxattn.models.layers import star
from tests import star_tiny

_close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5)


def _model(kind, **options):
  encoder = star_tiny.config(**{"num_layers": 1, **options.pop("encoder", {})})
  cfg = models.StarModelConfig(
    **{
      "num_classes": 3,
      "vocab_size": 11,
      "embed_size": 4,
      "mlp_width": 8,
      "encoder": encoder,
      **options,
    }
  )
  return kind(cfg)


def _variables(model, *args):
  shapes = jax.eval_shape(
    functools.partial(model.init, jax.random.key(0)), *args
  )
  return star_tiny.loud(shapes)


def _tokens(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).integers(1, 11, shape))


def _padded(tokens, extra):
  """Padding of random tokens, and the mask that hides it."""
  noise = _tokens(99, tokens.shape[0], extra)
  valid = jnp.arange(tokens.shape[1] + extra) < tokens.shape[1]
  valid = jnp.tile(valid[None], (tokens.shape[0], 1))
  return jnp.concatenate([tokens, noise], 1), jaxattn.Mask(key_valid=valid)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _apply(model, variables, *args, **options):
  return model.apply(variables, *args, **options)


class ModelsTest(parameterized.TestCase):
  def test_pool_leaves_padding_out(self):
    """All values negative: a maximum over zeros would win."""
    nodes = -1.0 - jax.random.uniform(jax.random.key(0), (2, 4, 3))
    valid = jnp.array([[True, True, False, False], [False] * 4])
    mask = jaxattn.Mask(key_valid=valid)
    relay = jnp.full((2, 3), 5.0)
    nodes = jnp.where(valid[..., None], nodes, 0.0)
    got = models.pool(nodes, relay, mask=mask)
    _close(got[0], (5.0 + jnp.max(nodes[0, :2], axis=0)) / 2)
    _close(got[1], jnp.full(3, 2.5))
    _close(
      models.pool(nodes, None, mask=mask)[0], jnp.max(nodes[0, :2], axis=0)
    )
    grad = jax.grad(lambda n: jnp.sum(models.pool(n, relay, mask=mask)))(nodes)
    self.assertFalse(np.any(np.asarray(grad)[~np.asarray(valid)]))
    empty = models.pool(nodes[:, :0], relay)
    _close(empty, relay / 2)
    with self.assertRaisesRegex(ValueError, "relay must have shape"):
      models.pool(nodes, relay[:, :2], mask=mask)

  def test_classifier_ignores_padding(self):
    model = _model(models.StarClassifier)
    tokens = _tokens(0, 2, 5)
    variables = _variables(model, tokens)
    want = _apply(model, variables, tokens)
    self.assertEqual((want.shape, want.dtype), ((2, 3), jnp.float32))
    padded, mask = _padded(tokens, 3)
    _close(_apply(model, variables, padded, mask=mask), want)
    # The mask matters.
    self.assertGreater(
      float(jnp.max(jnp.abs(_apply(model, variables, padded) - want))), 1e-3
    )

  def test_classifier_is_encoder_pool_and_network(self):
    model = _model(models.StarClassifier)
    tokens = _tokens(1, 2, 5)
    variables = _variables(model, tokens)
    params = variables["params"]
    inner = params["encoder"]
    x = inner["embed"]["embedding"][tokens] @ inner["input"]["kernel"]
    x = x + inner["input"]["bias"][None, None]
    nodes, relay = star.StarEncoder(model.cfg.encoder).apply(
      {"params": inner["star"]}, x
    )
    y = 0.5 * (relay + nodes.max(1))
    head = params["head"]
    y = y @ head["hidden"]["kernel"] + head["hidden"]["bias"][None]
    y = jnp.where(y > 0, y, 0.01 * y)
    want = y @ head["out"]["kernel"] + head["out"]["bias"][None]
    _close(_apply(model, variables, tokens), want)

  def test_tagger(self):
    model = _model(models.StarTagger)
    tokens = _tokens(2, 2, 5)
    variables = _variables(model, tokens)
    want = _apply(model, variables, tokens)
    self.assertEqual(want.shape, (2, 5, 3))
    padded, mask = _padded(tokens, 4)
    got = _apply(model, variables, padded, mask=mask)
    _close(got[:, :5], want)
    self.assertFalse(np.any(got[:, 5:]))

  def test_pair_classifier(self):
    model = _model(models.StarPairClassifier)
    premise, hypothesis = _tokens(3, 2, 5), _tokens(4, 2, 3)
    variables = _variables(model, premise, hypothesis)
    want = _apply(model, variables, premise, hypothesis)
    self.assertEqual(want.shape, (2, 3))
    self.assertEqual(
      variables["params"]["head"]["hidden"]["kernel"].shape,
      (4 * star_tiny.WIDTH, 8),
    )
    (p, p_mask), (h, h_mask) = _padded(premise, 2), _padded(hypothesis, 4)
    got = model.apply(
      variables, p, h, premise_mask=p_mask, hypothesis_mask=h_mask
    )
    _close(got, want)
    swapped = _apply(model, variables, hypothesis, premise)
    self.assertGreater(float(jnp.max(jnp.abs(swapped - want))), 1e-3)
    with self.assertRaisesRegex(ValueError, "share their leading axes"):
      _apply(model, variables, premise, hypothesis[:1])

  def test_without_relay_the_maximum_is_pooled(self):
    model = _model(models.StarClassifier, encoder={"radical": False})
    tokens = _tokens(5, 2, 5)
    variables = _variables(model, tokens)
    padded, mask = _padded(tokens, 3)
    _close(
      _apply(model, variables, padded, mask=mask),
      _apply(model, variables, tokens),
    )

  def test_vectors_as_inputs(self):
    model = _model(models.StarClassifier, vocab_size=None)
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    variables = _variables(model, x)
    self.assertNotIn("embed", variables["params"]["encoder"])
    self.assertEqual(_apply(model, variables, x).shape, (2, 3))
    with self.assertRaisesRegex(ValueError, "token ids need vocab_size"):
      _apply(model, variables, _tokens(0, 2, 4))
    with self.assertRaisesRegex(ValueError, "vocab_size=None takes vectors"):
      _model(models.StarClassifier).init(jax.random.key(0), x)

  @parameterized.parameters(models.StarClassifier, models.StarTagger)
  def test_refuses_causal_masks(self, kind):
    with self.assertRaisesRegex(NotImplementedError, "causal"):
      _model(kind).init(
        jax.random.key(0), _tokens(0, 1, 4), mask=jaxattn.CAUSAL
      )

  def test_dropout_of_head_and_embeddings(self):
    model = _model(models.StarPairClassifier, dropout=0.5)
    tokens = _tokens(6, 2, 5)
    variables = _variables(model, tokens, tokens)
    rngs = {"dropout": jax.random.key(1)}
    noisy = _apply(model, variables, tokens, tokens, train=True, rngs=rngs)
    calm = _apply(model, variables, tokens, tokens)
    self.assertGreater(float(jnp.max(jnp.abs(noisy - calm))), 1e-3)

  def test_config_errors(self):
    with self.assertRaisesRegex(ValueError, "num_classes must be positive"):
      models.StarModelConfig(num_classes=0)
    with self.assertRaisesRegex(ValueError, "vocab_size must be positive"):
      models.StarModelConfig(num_classes=2, vocab_size=0)
    with self.assertRaisesRegex(ValueError, r"dropout must lie"):
      models.StarModelConfig(num_classes=2, dropout=-0.1)

  def test_defaults_are_those_of_the_authors(self):
    cfg = models.StarModelConfig(num_classes=2)
    encoder = cfg.encoder
    self.assertEqual(
      (encoder.width, encoder.num_layers, encoder.num_heads, encoder.head_dim),
      (300, 4, 8, 32),
    )
    self.assertEqual((encoder.max_length, encoder.dropout), (512, 0.1))
    self.assertEqual((cfg.mlp_width, cfg.dropout), (600, 0.1))


if __name__ == "__main__":
  absltest.main()
