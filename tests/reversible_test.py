"""Reversible residuals, and functions of tokens by chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from tests import jaxpr_walker
from tests.method_cases import assert_close

_WIDTH = 8


def _attention(params, x, saved):
  """Self-attention of one head over the normalised stream."""
  del saved
  x = x - x.mean(-1, keepdims=True)
  x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  q, k, v = (x @ params[n] for n in ("query", "key", "value"))
  q, k, v = (y[:, :, None] for y in (q, k, v))
  return jaxattn.dense_attention(q, k, v, mask=jaxattn.CAUSAL)[:, :, 0], None


def _feed_forward(params, x, saved):
  del saved
  return jnp.tanh(x @ params["in"]) @ params["out"], None


def _draw(layers, seed=0):
  """Branches, parameters and streams of some layers."""
  rngs = iter(jax.random.split(jax.random.key(seed), 5 * layers + 2))

  def matrix(n, m):
    return jax.random.normal(next(rngs), (n, m)) / n**0.5

  params = []
  for _ in range(layers):
    names = ("query", "key", "value")
    params.append({name: matrix(_WIDTH, _WIDTH) for name in names})
    params.append(
      {"in": matrix(_WIDTH, 2 * _WIDTH), "out": matrix(2 * _WIDTH, _WIDTH)}
    )
  x1, x2 = (jax.random.normal(next(rngs), (2, 5, _WIDTH)) for _ in range(2))
  return (_attention, _feed_forward) * layers, params, x1, x2


def _plain(branches, params, x1, x2):
  """The same sums, with every activation kept."""
  streams = [x1, x2]
  for i, (branch, own) in enumerate(zip(branches, params, strict=True)):
    streams[i % 2] = streams[i % 2] + branch(own, streams[1 - i % 2], None)[0]
  return tuple(streams)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pull(run, branches, params, x1, x2):
  out, vjp = jax.vjp(functools.partial(run, branches), params, x1, x2)
  return out, vjp((jnp.cos(out[0]), jnp.sin(out[1])))


@pytest.mark.parametrize("odd", [False, True])
def test_equals_plain_residuals(odd):
  branches, params, x1, x2 = _draw(3)
  if odd:  # As in a decoder, whose layers have three branches.
    branches, params = branches[:5], params[:5]
  got = _pull(jaxattn.reversible_residuals, branches, params, x1, x2)
  assert_close(got, _pull(_plain, branches, params, x1, x2), 1e-5)


@pytest.mark.slow  # Compiling takes 10 seconds.
def test_24_layers_keep_their_gradient():
  """To 1e-3 of each gradient's size; rounding adds up from layer to layer."""
  arguments = _draw(24)
  _, got = _pull(jaxattn.reversible_residuals, *arguments)
  _, want = _pull(_plain, *arguments)
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.linalg.norm(g - w) < 1e-3 * np.linalg.norm(w)


def test_what_is_kept_does_not_grow_with_depth():
  """But for the parameters themselves."""

  def kept(run, layers):
    branches, params, x1, x2 = _draw(layers)
    run = functools.partial(run, branches)
    vjp = jax.eval_shape(lambda *x: jax.vjp(run, *x)[1], params, x1, x2)
    sizes = [x.size for x in jax.tree.leaves(vjp)]
    return sum(sizes) - sum(x.size for x in jax.tree.leaves(params))

  run = jaxattn.reversible_residuals
  assert kept(run, 6) == kept(run, 2) == 2 * 2 * 5 * _WIDTH
  assert kept(_plain, 6) > 2.5 * kept(_plain, 2)


def test_a_branch_gets_back_what_it_saved():
  """An order that is found once, and not again from rounded numbers."""
  found = []

  def branch(params, x, saved):
    found.append(saved is None)
    order = jnp.argsort(x[..., 0]) if saved is None else saved
    return params * jnp.take_along_axis(x, order[..., None], 1), order

  params = [jnp.float32(0.5)] * 4
  _, _, x1, x2 = _draw(1)
  branches = (branch,) * 4
  got = _pull(jaxattn.reversible_residuals, branches, params, x1, x2)
  assert found == [True] * 4 + [False] * 4
  assert_close(got, _pull(_plain, branches, params, x1, x2), 1e-5)


def test_keys_and_masks_come_in_as_parameters():
  def dropout(params, x, saved):
    kept = jax.random.bernoulli(params["rng"], 0.5, x.shape)
    kept = kept & params["mask"][..., None]
    return params["weight"] * jnp.where(kept, x, 0.0), saved

  _, _, x1, x2 = _draw(1)
  rngs = [jax.random.key(i) for i in range(3)]
  mask = jnp.arange(5)[None] < jnp.array([[5], [3]])

  def loss(run, weights):
    params = [
      {"weight": w, "rng": rng, "mask": mask}
      for w, rng in zip(weights, rngs, strict=True)
    ]
    y1, y2 = run((dropout,) * 3, params, x1, x2)
    return jnp.sum(y1**2) + jnp.sum(y2)

  weights = jnp.arange(1.0, 4.0)
  got = jax.jit(jax.grad(functools.partial(loss, jaxattn.reversible_residuals)))
  want = jax.jit(jax.grad(functools.partial(loss, _plain)))
  assert_close(got(weights), want(weights), 1e-5)


def test_batches_by_vmap():
  branches, params, x1, x2 = _draw(2)

  def run(x1, x2):
    out = jaxattn.reversible_residuals(branches, params, x1[None], x2[None])
    return out[0][0], out[1][0]

  want = jaxattn.reversible_residuals(branches, params, x1, x2)
  assert_close(jax.vmap(run)(x1, x2), want, 1e-6)


def test_streams_that_do_not_fit_are_named():
  branches, params, x1, x2 = _draw(1)
  run = jaxattn.reversible_residuals
  with pytest.raises(ValueError, match="x2 must be float32"):
    run(branches, params, x1, x2.astype(jnp.bfloat16))
  with pytest.raises(ValueError, match="agree"):
    run(branches, params, x1, x2[:1])
  with pytest.raises(ValueError, match="each of 2 branches"):
    run(branches, params[:1], x1, x2)


@pytest.mark.parametrize("chunk", [1, 4, 5, 9])
def test_chunks_of_tokens_give_the_same(chunk):
  _, (_, params), x, _ = _draw(1)

  def feed_forward(params, x):
    return _feed_forward(params, x, None)[0]

  def mapped(params, x):
    return jaxattn.map_tokens(lambda x: feed_forward(params, x), x, chunk=chunk)

  got, pull = jax.vjp(mapped, params, x)
  want, pull_plain = jax.vjp(feed_forward, params, x)
  assert_close(got, want, 1e-6)
  assert_close(pull(got), pull_plain(got), 1e-5)


def test_chunks_keep_the_wide_layer_small():
  """No array of T x 2 width, forward or backward."""
  x = jax.ShapeDtypeStruct((1, 4096, _WIDTH), jnp.float32)
  _, (_, params), _, _ = _draw(1)

  def both(x):
    out, vjp = jax.vjp(
      lambda x: jaxattn.map_tokens(
        lambda y: _feed_forward(params, y, None)[0], x, chunk=64
      ),
      x,
    )
    return vjp(out)

  jaxpr = jax.make_jaxpr(both)(x)
  jaxpr_walker.assert_no_intermediate(jaxpr, at_least=4096 * 2 * _WIDTH)


def test_a_chunk_must_be_positive():
  with pytest.raises(ValueError, match="chunk must be positive"):
    jaxattn.map_tokens(jnp.sin, jnp.ones((3, 2)), chunk=0)
