"""The method of Reformer: its state, its causality and its options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from tests.method_cases import assert_close
from tests.method_cases import assert_zero

T, N, H = 48, 2, 16
_SHAPES = jaxattn.AttentionShapes(num_heads=N, head_dim=H)


def _draw(seed=0, length=T):
  rngs = jax.random.split(jax.random.key(seed), 2)
  return tuple(jax.random.normal(r, (1, length, N, H)) for r in rngs)


@functools.partial(jax.jit, static_argnames=("method", "train"))
def _apply(method, state, x, value, selection=None, *, train=False):
  return method.apply(
    (), state, x, x, value, mask=jaxattn.CAUSAL, train=train,
    selection=selection,
  )  # fmt: skip


def test_training_draws_new_rotations_and_evaluation_does_not():
  method = jaxattn.reformer(chunk=8, num_buckets=8)
  _, state = method.init(jax.random.key(0), _SHAPES)
  x, value = _draw()
  out, same = _apply(method, state, x, value)
  assert_close(_apply(method, state, x, value)[0], out, 0)
  assert int(same["steps"]) == 0
  first, moved = _apply(method, state, x, value, train=True)
  assert int(moved["steps"]) == 1
  assert np.abs(first - out).max() > 1e-3
  # What was trained with is what evaluation goes on with.
  assert_close(_apply(method, moved, x, value)[0], first, 0)
  kept = dataclasses.replace(method, redraw=False)
  still, state = _apply(kept, state, x, value, train=True)
  assert int(state["steps"]) == 0
  assert_close(still, out, 0)


def test_selection_takes_the_place_of_hashing():
  method = jaxattn.reformer(chunk=8, num_buckets=8)
  _, state = method.init(jax.random.key(0), _SHAPES)
  x, value = _draw()
  for train in (False, True):
    selection = method.select((), state, x, x, train=train)
    out, _ = _apply(method, state, x, value, train=train)
    given, _ = _apply(method, state, x, value, selection, train=train)
    assert_close(given, out, 1e-6)
  # It is the buckets that count, not the vectors, once they are given.
  other, _ = _apply(method, state, x, value, (selection * 3 + 1) % 8)
  assert np.abs(other - out).max() > 1e-3


def test_short_rows_do_not_depend_on_the_hash():
  x, value = _draw(length=12)
  outs = []
  for seed, rounds in ((0, 1), (1, 1), (2, 4)):
    method = jaxattn.reformer(rounds=rounds, chunk=12)
    _, state = method.init(jax.random.key(seed), _SHAPES)
    outs.append(_apply(method, state, x, value)[0])
  assert_close(outs[1:], [outs[0]] * 2, 1e-6)


def test_rounds_may_differ_in_evaluation():
  """There are no parameters that would depend on them."""
  method = jaxattn.reformer(rounds=1, chunk=4, num_buckets=12)
  _, state = method.init(jax.random.key(0), _SHAPES)
  x, value = _draw()
  many = dataclasses.replace(method, rounds=8)
  dense = dataclasses.replace(method, chunk=T)
  want = _apply(dense, state, x, value)[0]
  one, eight = (_apply(m, state, x, value)[0] for m in (method, many))
  assert np.abs(eight - want).mean() < np.abs(one - want).mean()


@pytest.mark.parametrize("strict", [False, True])
def test_causality_by_gradient_and_by_perturbation(strict):
  """Values never leak; chunk borders move, unless strict."""
  method = jaxattn.reformer(chunk=8, num_buckets=8, strict=strict)
  _, state = method.init(jax.random.key(0), _SHAPES)
  x, value = _draw()
  run = functools.partial(_apply, method, state)

  def row(x, value):
    return jnp.sum(run(x, value)[0][:, 20] ** 2)

  grads = jax.grad(row, argnums=(0, 1))(x, value)
  assert_zero(*(g[:, 21:] for g in grads))
  assert np.abs(grads[0][:, :20]).max() > 1e-3
  out = run(x, value)[0]
  loud = value.at[:, -1].set(1e4)
  assert_close(run(x, loud)[0][:, :-1], out[:, :-1], 1e-6)
  moved = []
  for seed in range(4):
    last = x.at[:, -1].set(20 * _draw(seed + 5)[0][:, -1])
    change = np.abs(run(last, value)[0] - out)[:, :-1].max((0, 2, 3))
    moved.append(int((change > 1e-6).sum()))
  if strict:
    assert moved == [0] * 4
  else:  # The documented exception: earlier rows see other chunks.
    assert max(moved) > 0


def test_the_gradient_of_shared_vectors_has_both_parts():
  """Of queries, and of keys over their length."""
  method = jaxattn.reformer(chunk=48)
  _, state = method.init(jax.random.key(0), _SHAPES)
  x, value = _draw()

  def naive(x):
    key = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    scores = jnp.einsum("btnh,bsnh->bnts", x, key, precision="highest")
    allowed = jnp.tril(jnp.ones((T, T), bool), -1).at[0, 0].set(True)
    weights = jax.nn.softmax(jnp.where(allowed[None, None], scores, -1e30))
    return jnp.einsum("bnts,bsnv->btnv", weights, value, precision="highest")

  got = jax.grad(lambda x: jnp.sum(_apply(method, state, x, value)[0] ** 2))(x)
  want = jax.grad(lambda x: jnp.sum(naive(x) ** 2))(x)
  assert_close(got, want, 2e-5)


def test_wrong_options_are_named():
  for options, word in (
    (dict(rounds=0), "rounds"),
    (dict(chunk=0), "chunk"),
    (dict(num_buckets=7), "even"),
    (dict(num_buckets=(4, 3)), "even"),
    (dict(after=-1), "after"),
    (dict(strict=True), "num_buckets"),
    (dict(strict=True, num_buckets=8, within=True), "within"),
  ):
    with pytest.raises(ValueError, match=word):
      jaxattn.reformer(**options)
  method = jaxattn.reformer()
  with pytest.raises(NotImplementedError, match="strict=True"):
    method.extend((), {}, {}, *_draw(), None)
