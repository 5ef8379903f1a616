"""What Synthesizers can learn: the way of a place, not of a content."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxattn

LENGTH, VOCAB, ROWS = 8, 8, 64
_SHAPES = jaxattn.AttentionShapes(num_heads=1, head_dim=VOCAB)


def _reversal(rng):
  """Tokens `[B, T]`, and each row read backwards."""
  tokens = jax.random.randint(rng, (ROWS, LENGTH), 0, VOCAB)
  queries = values = jax.nn.one_hot(tokens, VOCAB)
  return queries, queries, values, tokens[:, ::-1]


def _recall(rng):
  """Every token is a pair of a name and a number; queries name a pair."""
  shuffle, numbers, wanted = jax.random.split(rng, 3)
  names = jax.vmap(lambda r: jax.random.permutation(r, VOCAB))(
    jax.random.split(shuffle, ROWS)
  )
  numbers = jax.random.randint(numbers, (ROWS, LENGTH), 0, VOCAB)
  asked = jax.random.randint(wanted, (ROWS, LENGTH), 0, LENGTH)
  queries = jnp.take_along_axis(names, asked, axis=1)
  answers = jnp.take_along_axis(numbers, asked, axis=1)
  one_hot = functools.partial(jax.nn.one_hot, num_classes=VOCAB)
  return one_hot(queries), one_hot(names), one_hot(numbers), answers


@functools.partial(jax.jit, static_argnames=("method", "task"))
def _accuracy(method, task):
  """Share of right answers in new rows, after training on many others."""
  rngs = jax.random.split(jax.random.key(0), 3)
  params, state = method.init(rngs[0], _SHAPES)
  eye = jnp.eye(VOCAB)
  weights = {"query": eye, "key": eye, "method": params}

  def shares(weights, rng):
    query, key, value, answers = task(rng)
    out, _ = method.apply(
      weights["method"],
      state,
      (query @ weights["query"])[:, :, None],
      (key @ weights["key"])[:, :, None],
      value[:, :, None],
    )
    return out[:, :, 0], answers

  def loss(weights, rng):
    out, answers = shares(weights, rng)
    right = jnp.take_along_axis(out, answers[..., None], axis=-1)
    return -jnp.mean(jnp.log(right + 1e-3))

  def step(weights, rng):
    grads = jax.grad(loss)(weights, rng)
    return jax.tree.map(lambda w, g: w - 3.0 * g, weights, grads), ()

  weights, _ = jax.lax.scan(step, weights, jax.random.split(rngs[1], 200))
  out, answers = shares(weights, rngs[2])
  return jnp.mean(jnp.argmax(out, axis=-1) == answers)


@pytest.mark.parametrize(
  ("parts", "reverses", "recalls"),
  [
    (("factorized_random",), True, False),
    (("dense",), False, False),
    (("random", "dot_product"), True, True),
  ],
)
def test_routes_by_place_and_recalls_by_content(parts, reverses, recalls):
  """Places are learned by random parts, contents by the dot product.

  A guess is right in 1 of 8, and the commonest number of the row in 3 of 10.
  """
  method = jaxattn.synthesizer(max_length=LENGTH, parts=parts)
  for task, can in ((_reversal, reverses), (_recall, recalls)):
    found = float(_accuracy(method, task))
    assert found > 0.95 if can else found < 0.5, (task.__name__, found)
