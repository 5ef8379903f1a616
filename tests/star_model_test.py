"""The Star Transformer's encoder against its equations."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxattn
from jaxattn.models.layers import star
from tests import star_tiny


def _x(seed, *shape):
  return jax.random.normal(jax.random.key(seed), (*shape, star_tiny.WIDTH))


@functools.cache
def _encoder(cfg):
  model = star.StarEncoder(cfg)
  variables = jax.eval_shape(model.init, jax.random.key(0), _x(0, 1, 4))
  return model, star_tiny.loud(variables)


@functools.partial(jax.jit, static_argnames="cfg")
def _encode(cfg, variables, x, mask=jaxattn.FULL):
  return star.StarEncoder(cfg).apply(variables, x, mask=mask)


def _run(cfg, x, valid=None):
  mask = jaxattn.FULL
  if valid is not None:
    mask = jaxattn.Mask(key_valid=jnp.asarray(valid))
  return _encode(cfg, _encoder(cfg)[1], x, mask)


# --- The equations, in NumPy, one token after the other. ---


def _softmax_sum(query, keys, values):
  """Attention of `query [N, H]` to lists of `[N, H]`."""
  scores = np.stack([np.sum(query * k, -1) for k in keys])
  weights = np.exp(scores / np.sqrt(query.shape[-1]))
  weights = weights / weights.sum(0)
  return sum(w[:, None] * v for w, v in zip(weights, values, strict=True))


def _project(params, name, x):
  return (
    np.einsum("d,dnh->nh", x, params[name]["kernel"]) + (params[name]["bias"])
  )


def _finish(cfg, params, norm, mixed):
  out = np.einsum("nh,nhd->d", mixed, params["out"]["kernel"])
  out = out + params["out"]["bias"]
  slope = 0.0 if cfg.activation == "relu" else 0.01
  out = np.where(out > 0, out, slope * out)
  return out if norm is None else _normalise(norm, out)


def _normalise(norm, x):
  x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
  return x * norm["scale"] + norm["bias"]


def _reference(cfg, params, x):
  """Encoder of one sequence `[n, D]` without padding."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  count = len(x)
  x = np.asarray(x, np.float64)
  if cfg.positions == "learned":
    x = x + params["position_embed"][:count]
  h, s = list(x), x.mean(0) if count else np.zeros(x.shape[-1])
  post = cfg.norm == "post"
  for layer in range(cfg.num_layers):
    p = params[f"layers_{layer}"]
    ring, norm = p["ring"], p["ring_norm"]
    inner = h if post else [_normalise(norm, one) for one in h]
    keys = [_project(ring, "key", one) for one in inner]
    values = [_project(ring, "value", one) for one in inner]
    new = []
    for i in range(count):
      slots = [(keys[i], values[i])]
      for j in (i - 1, i + 1) if cfg.ring != "none" else ():
        if 0 <= j < count or cfg.ring == "cyclic":
          slots.append((keys[j % count], values[j % count]))
        elif cfg.ring == "ghost":
          slots.append((np.zeros_like(keys[i]), np.zeros_like(values[i])))
      for extra in (x[i], s) if cfg.radical else (x[i],):
        slots.append(
          (_project(ring, "key", extra), _project(ring, "value", extra))
        )
      mixed = _softmax_sum(
        _project(ring, "query", inner[i]), *zip(*slots, strict=True)
      )
      new.append(_finish(cfg, ring, norm if post else None, mixed))
    h = new
    if cfg.radical:
      relay = p["relay"]
      mixed = _softmax_sum(
        _project(relay, "query", s),
        [_project(relay, "key", one) for one in [s, *h]],
        [_project(relay, "value", one) for one in [s, *h]],
      )
      s = _finish(cfg, relay, p["relay_norm"] if post else None, mixed)
  return np.array(h).reshape(x.shape), s if cfg.radical else None


_close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5)


class EncoderTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, 7),
    ({}, 1),
    ({}, 2),
    ({"num_layers": 3, "positions": "none"}, 5),
    ({"ring": "open"}, 5),
    ({"ring": "none", "activation": "leaky_relu"}, 5),
    ({"radical": False}, 5),
    ({"norm": "pre"}, 5),
  )
  def test_equals_the_equations(self, options, length):
    cfg = star_tiny.config(**options)
    x = _x(1, length)
    nodes, relay = _run(cfg, x)
    want, want_relay = _reference(cfg, _encoder(cfg)[1]["params"], x)
    _close(nodes, want)
    if cfg.radical:
      _close(relay, want_relay)
    else:
      self.assertIsNone(relay)

  def test_form_of_the_authors_code(self):
    cfg = star.fastnlp(**_options(star_tiny.config()))
    self.assertEqual(
      (cfg.norm, cfg.activation, cfg.ring, cfg.padding),
      ("pre", "leaky_relu", "ghost", "fastnlp"),
    )
    x = _x(2, 6)
    nodes, relay = _run(cfg, x)
    want, want_relay = _reference(cfg, _encoder(cfg)[1]["params"], x)
    _close(nodes, want)
    _close(relay, want_relay)

  def test_authors_code_sees_padding(self):
    """Ours is the reference on the real tokens; theirs starts from a mean over
    all, and lets the last token see zeroed padding."""
    x, valid = _x(3, 1, 6), jnp.arange(6)[None] < 4
    masked = star_tiny.config(norm="pre", ring="ghost", positions="none")
    theirs = dataclasses.replace(masked, padding="fastnlp")
    want, want_relay = _reference(
      masked, _encoder(masked)[1]["params"], x[0, :4]
    )
    nodes, relay = _run(masked, x, valid)
    _close(nodes[0, :4], want)
    _close(relay[0], want_relay)
    nodes, relay = _run(theirs, x, valid)
    self.assertGreater(float(jnp.max(jnp.abs(nodes[0, :4] - want))), 1e-3)
    self.assertFalse(np.any(nodes[0, 4:]))
    # In the first layer it is as if padding were real.
    first = dataclasses.replace(theirs, num_layers=1)
    whole, _ = _run(dataclasses.replace(masked, num_layers=1), x)
    _close(_run(first, x, valid)[0][0, :4], whole[0, :4])

  @parameterized.product(
    norm=("post", "pre"), ring=("cyclic", "open", "ghost", "none")
  )
  def test_padding_has_no_influence(self, norm, ring):
    """Relay initialisation included; padding at the end and loud."""
    cfg = star_tiny.config(norm=norm, ring=ring)
    short = _x(4, 2, 5)
    long = jnp.concatenate([short, 50 * _x(5, 2, 4)], axis=1)
    valid = jnp.tile(jnp.arange(9)[None] < 5, (2, 1))
    want, want_relay = _run(cfg, short)
    nodes, relay = _run(cfg, long, valid)
    _close(nodes[:, :5], want)
    _close(relay, want_relay)
    self.assertFalse(np.any(nodes[:, 5:]))

  def test_padding_anywhere_is_left_out(self):
    cfg = star_tiny.config(positions="none")
    valid = np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)
    x = _x(6, 1, 8)
    nodes, relay = _run(cfg, x, valid[None])
    want, want_relay = _run(cfg, x[:, valid])
    _close(nodes[:, valid], want)
    _close(relay, want_relay)

  @parameterized.parameters("cyclic", "open", "none")
  def test_rotation(self, ring):
    """In a cycle it turns the satellites and leaves the relay as it is."""
    cfg = star_tiny.config(ring=ring, positions="none")
    x = _x(7, 9)
    nodes, relay = _run(cfg, x)
    turned, same = _run(cfg, jnp.roll(x, 4, axis=0))
    agrees = np.allclose(turned, jnp.roll(nodes, 4, axis=0), atol=1e-5)
    self.assertEqual(agrees, ring != "open")
    self.assertEqual(np.allclose(relay, same, atol=1e-5), ring != "open")

  def test_without_ring_any_order_will_do(self):
    cfg = star_tiny.config(ring="none", positions="none")
    x, order = _x(8, 9), np.random.default_rng(0).permutation(9)
    nodes, relay = _run(cfg, x)
    moved, same = _run(cfg, x[order])
    _close(moved, nodes[order])
    _close(same, relay)

  def test_without_relay_news_travels_a_token_a_layer(self):
    """Bit for bit; with the relay one layer reaches every token."""
    x = _x(9, 11)
    other = x.at[3].add(20.0)
    for layers in (1, 2):
      cfg = star_tiny.config(radical=False, num_layers=layers)
      changed = np.any(_run(cfg, x)[0] != _run(cfg, other)[0], axis=-1)
      distance = np.abs(np.arange(11) - 3)
      distance = np.minimum(distance, 11 - distance)
      np.testing.assert_array_equal(changed, distance <= layers)
    cfg = star_tiny.config(num_layers=1)
    # A token that hardly listens to the relay may round to what it was, so
    # every token has to change for one of several inputs.
    reached = np.zeros(11, bool)
    for seed in range(9, 17):
      x = _x(seed, 11)
      before, after = _run(cfg, x)[0], _run(cfg, x.at[3].add(20.0))[0]
      reached |= np.asarray(np.any(before != after, axis=-1))
    self.assertTrue(np.all(reached))

  @parameterized.parameters("post", "pre")
  def test_sequences_without_tokens(self, norm):
    """Finite in value and gradient, and no gradient to padding."""
    cfg = star_tiny.config(norm=norm)
    variables = _encoder(cfg)[1]
    valid = jnp.array([[True] * 4, [False] * 4])
    mask = jaxattn.Mask(key_valid=valid)

    def total(variables, x):
      nodes, relay = _encode(cfg, variables, x, mask)
      return jnp.sum(jnp.sin(nodes)) + jnp.sum(jnp.sin(relay)), nodes

    x = _x(10, 2, 4)
    (_, nodes), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(
      variables, x
    )
    chex.assert_tree_all_finite((nodes, grads))
    self.assertFalse(np.any(nodes[1]))
    self.assertFalse(np.any(grads[1][1]))
    self.assertTrue(np.all(np.any(grads[1][0] != 0, axis=-1)))
    nodes, relay = _encode(cfg, variables, x[:, :0])
    self.assertEqual(nodes.shape, (2, 0, star_tiny.WIDTH))
    self.assertTrue(bool(jnp.all(jnp.isfinite(relay))))

  def test_every_parameter_learns(self):
    cfg = star_tiny.config()
    x = _x(11, 2, 6)

    def total(variables):
      nodes, relay = _encode(cfg, variables, x)
      return jnp.sum(jnp.sin(nodes)) + jnp.sum(jnp.cos(relay))

    grads = jax.grad(total)(_encoder(cfg)[1])["params"]
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
      name = jax.tree_util.keystr(path)
      # A shift of all keys of a softmax alike changes nothing.
      if "'key']['bias'" not in name:
        self.assertGreater(float(jnp.max(jnp.abs(grad))), 1e-7, name)
    self.assertEqual(
      grads["layers_0"]["ring"]["query"]["kernel"].shape, (6, 3, 5)
    )
    self.assertEqual(
      set(grads["layers_1"]), {"ring", "ring_norm", "relay", "relay_norm"}
    )

  def test_vmap_equals_batch(self):
    cfg = star_tiny.config()
    variables = _encoder(cfg)[1]
    x, valid = _x(12, 3, 5), jnp.arange(5)[None] < jnp.array([[5], [2], [0]])
    rows = jax.vmap(
      lambda x, v: _encode(cfg, variables, x, jaxattn.Mask(key_valid=v))
    )(x, valid)
    chex.assert_trees_all_close(rows, _run(cfg, x, valid), atol=1e-5)

  def test_bfloat16(self):
    """A few roundings of 2^-8 in two layers, before norms of size one."""
    cfg = star_tiny.config()
    low = dataclasses.replace(cfg, dtype=jnp.bfloat16)
    x, variables = _x(13, 2, 6), _encoder(cfg)[1]
    for want, got in zip(
      _encode(cfg, variables, x), _encode(low, variables, x), strict=True
    ):
      self.assertEqual(got.dtype, jnp.bfloat16)
      error = jnp.max(jnp.abs(got.astype(jnp.float32) - want))
      self.assertLess(float(error), 0.05 * float(jnp.max(jnp.abs(want))))

  def test_dropout_is_on_embeddings(self):
    cfg = star_tiny.config(dropout=0.5)
    model, variables = _encoder(cfg)
    x = _x(14, 2, 6)
    rngs = {"dropout": jax.random.key(1)}
    noisy = jax.jit(functools.partial(model.apply, train=True, rngs=rngs))
    once, again = (noisy(variables, x)[0] for _ in range(2))
    _close(once, again)
    self.assertGreater(float(jnp.max(jnp.abs(once - _run(cfg, x)[0]))), 1e-3)

  def test_errors(self):
    cfg = star_tiny.config()
    model, variables = _encoder(cfg)
    with self.assertRaisesRegex(NotImplementedError, "causal"):
      model.apply(variables, _x(0, 1, 4), mask=jaxattn.CAUSAL)
    with self.assertRaisesRegex(ValueError, "17 exceeds max_length 16"):
      model.apply(variables, _x(0, 1, 17))
    with self.assertRaisesRegex(ValueError, r"\[\*B, T, 6\]"):
      model.apply(variables, jnp.ones((1, 4, 7)))
    with self.assertRaisesRegex(ValueError, "key_valid must have shape"):
      mask = jaxattn.Mask(key_valid=jnp.ones((1, 3), bool))
      model.apply(variables, _x(0, 1, 4), mask=mask)
    layer = star.StarLayer(dataclasses.replace(cfg, radical=False))
    x = _x(0, 1, 4)
    with self.assertRaisesRegex(ValueError, "relay to be None"):
      layer.init(jax.random.key(0), x, x[:, 0], x)

  @parameterized.parameters(
    (dict(width=0), "width must be positive"),
    (dict(ring="round"), "ring must be one of"),
    (dict(norm="both"), "norm must be one of"),
    (dict(padding="none"), "padding must be one of"),
    (dict(dropout=1.0), r"dropout must lie in \[0, 1\)"),
  )
  def test_config_errors(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      star_tiny.config(**options)

  def test_parameters_have_logical_names(self):
    cfg = star_tiny.config()
    boxed = jax.eval_shape(
      star.StarEncoder(cfg).init, jax.random.key(0), _x(0, 1, 4)
    )
    specs = nn.get_partition_spec(boxed)["params"]
    names = specs["layers_0"]["ring"]["out"]["kernel"]
    self.assertEqual(tuple(names), ("heads", "head_dim", "embed"))
    for path, spec in jax.tree_util.tree_leaves_with_path(
      specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec)
    ):
      self.assertTrue(any(spec), jax.tree_util.keystr(path))


def _options(cfg):
  return {
    name: getattr(cfg, name)
    for name in ("width", "num_layers", "num_heads", "head_dim", "max_length")
  }


if __name__ == "__main__":
  absltest.main()
