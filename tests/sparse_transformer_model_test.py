"""The model of Sparse Transformer: start, positions, recomputation, memory."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxattn
from jaxattn.models import decoder
from jaxattn.models import decoding
from jaxattn.models import sparse_transformer


def _config(**options: Any):
  options = {
    "vocab_size": 17,
    "position_axes": (3, 2, 4),
    "stride": 8,
    "kind": "strided",
    "factors": "interleaved",
    "width": 32,
    "num_layers": 4,
    "num_heads": 2,
    **options,
  }
  return sparse_transformer.config(**options)


def _model(**options: Any):
  model = decoder.Decoder(_config(**options))
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 17, (2, 24)))
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
  return model, variables, tokens


def _loss(model, tokens, rng, params):
  rngs = {} if rng is None else {"dropout": rng}
  logits = model.apply({"params": params}, tokens, train=bool(rngs), rngs=rngs)
  logp = jax.nn.log_softmax(logits[:, :-1])
  return -jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean()


class SparseTransformerModelTest(parameterized.TestCase):
  @parameterized.parameters("merged", "heads", "interleaved")
  def test_the_first_loss_is_the_log_of_the_vocabulary(self, factors):
    model, variables, tokens = _model(factors=factors)
    loss = jax.jit(functools.partial(_loss, model, tokens, None))(
      variables["params"]
    )
    np.testing.assert_allclose(loss, math.log(17), rtol=1e-6)

  def test_variances_of_the_start(self):
    """Of samples of 8192 and more: their spread is below 2 percent."""
    _, variables, _ = _model(width=128, num_heads=4)
    block = variables["params"]["blocks_0"]
    for kernel, inputs, branch in (
      (block["attention"]["query"]["kernel"], 128, 1),
      (block["mlp_in"]["kernel"], 128, 1),
      (block["attention"]["out"]["kernel"], 128, 8),
      (block["mlp_out"]["kernel"], 512, 8),
    ):
      want = 0.125 / inputs / branch
      np.testing.assert_allclose(np.var(kernel), want, rtol=0.1)
    self.assertEqual(np.abs(block["mlp_out"]["bias"]).max(), 0)
    tables = [variables["params"][f"axis_embeds_{i}"] for i in range(3)]
    self.assertEqual([t["embedding"].shape[0] for t in tables], [3, 2, 4])
    values = np.concatenate([t["embedding"].reshape(-1) for t in tables])
    np.testing.assert_allclose(np.var(values), 0.125 / 128 / 3, rtol=0.15)

  def test_the_residual_stream_keeps_its_variance(self):
    """Each of the 2 N branches adds a 2 N-th of what one adds unscaled."""
    model, variables, _ = _model(num_layers=6, stride=4)
    x = jax.random.normal(jax.random.key(2), (1, 24, 32))

    @jax.jit
    def through(variables, x):
      for block in model.bind(variables).blocks:
        x = block(x, jaxattn.CAUSAL, None, False, False)
      return x

    growth = jnp.var(through(variables, x)) / jnp.var(x)
    self.assertBetween(float(growth), 0.95, 1.1)

  def test_positions_are_sums_over_the_axes(self):
    """Row, column and channel of an image, the channel counting fastest."""
    model, variables, _ = _model()
    tables = [
      variables["params"][f"axis_embeds_{i}"]["embedding"] for i in range(3)
    ]
    bound = model.bind(variables)
    got = bound._on_axes(jnp.arange(24)[None])[0]
    for p in range(24):
      at = np.unravel_index(p, (3, 2, 4))
      want = sum(t[i] for t, i in zip(tables, at, strict=True))
      np.testing.assert_allclose(got[p], want, rtol=1e-6)

  def test_recomputed_gradients_are_equal_bit_for_bit(self):
    """With dropout on: its masks are drawn again, not saved."""
    grads = {}
    for remat in ("none", "full"):
      model, variables, tokens = _model(remat=remat, dropout=0.3)
      params = _loud(variables["params"])
      loss = functools.partial(_loss, model, tokens, jax.random.key(1))
      grads[remat] = jax.jit(jax.grad(loss))(params)
    jax.tree.map(np.testing.assert_array_equal, grads["none"], grads["full"])
    largest = max(
      float(jnp.abs(x).max()) for x in jax.tree.leaves(grads["full"])
    )
    self.assertGreater(largest, 1e-3)

  def test_recomputation_keeps_the_input_of_every_block(self):
    """Bytes kept from the forward to the backward pass, by depth."""
    added = {}
    for remat in ("none", "full"):
      found = []
      for depth in (2, 6):
        model, variables, tokens = _model(remat=remat, num_layers=depth)
        loss = functools.partial(_loss, model, tokens, None)
        kept = jax.eval_shape(
          lambda params, loss=loss: jax.vjp(loss, params)[1],
          variables["params"],
        )
        weights = sum(x.size for x in jax.tree.leaves(variables["params"]))
        sizes = [x.size for x in jax.tree.leaves(kept)]
        found.append(sum(sizes) - weights)  # The backward pass needs these.
      added[remat] = (found[1] - found[0]) / 4
    stream = 2 * 24 * 32  # Elements of one block's input; tables come on top.
    self.assertLess(added["full"], 2 * stream)
    self.assertGreater(added["none"], 10 * stream)

  def test_decoding_equals_the_parallel_form(self):
    model, variables, tokens = _model(factors="merged")
    variables = {"params": _loud(variables["params"])}
    want = jax.jit(model.apply)(variables, tokens)
    cache = decoding.init_cache(model, variables, batch_size=2, max_length=24)
    step = jax.jit(functools.partial(decoding.decode_step, model))
    got = []
    for start, stop in (
      (0, 9),
      (9, 10),
      (10, 14),
      *((i, i + 1) for i in range(14, 24)),
    ):
      logits, cache = step(variables, cache, tokens[:, start:stop])
      got.append(logits)
    scale = float(jnp.abs(want).max())
    np.testing.assert_allclose(jnp.concatenate(got, 1), want, atol=1e-5 * scale)

  @parameterized.named_parameters(
    ("axes", dict(position_axes=(0, 4), max_length=4), "position_axes"),
    ("short", dict(position_axes=(2, 2), max_length=24), "position_axes"),
    ("positions", dict(positions="rotary"), "position_axes go with"),
    ("tied", dict(tie_embeddings=True), "zero_unembed"),
    ("gain", dict(init_gain=0.0), "init_gain"),
    ("post", dict(norm="post"), "scale_embeddings"),
    ("layers", dict(order=()), "order"),
  )
  def test_bad_options_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      _config(**options)


def _loud(params):
  """Parameters of size 1/4, so that every part of the model shows."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(0.25 * rng.normal(size=x.shape), x.dtype), params
  )


if __name__ == "__main__":
  absltest.main()
