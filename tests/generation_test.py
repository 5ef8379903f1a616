"""Sampling: exact sets and frequencies; generation against a naive loop."""

from typing import Any
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxattn
from jaxattn.models import decoder
from jaxattn.models import decoding
from jaxattn.models import generation

_DRAWS = 20_000
_PROBS = np.array([0.05, 0.3, 0.15, 0.4, 0.1])


def _draws(logits, **options):
  """Token frequencies over 20 000 draws from one key."""
  rows = jnp.broadcast_to(jnp.asarray(logits), (_DRAWS, len(logits)))
  ids = jax.jit(lambda r, x: generation.sample_logits(r, x, **options))(
    jax.random.key(0), rows
  )
  return np.bincount(np.asarray(ids), minlength=len(logits)) / _DRAWS


def _kept(probs, *, top_k=None, top_p=None):
  """The sets by definition, in a loop."""
  order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
  if top_k is not None:
    order = order[:top_k]
  if top_p is None or top_p == 1.0:
    return set(order)
  total, kept = sum(probs[i] for i in order), set()
  for i in order:
    kept.add(i)
    if sum(probs[j] for j in kept) / total >= top_p:
      break
  return kept


class SampleTest(parameterized.TestCase):
  @parameterized.parameters(
    (1.0, None, None),
    (0.5, None, None),
    (2.0, None, None),
    (1.0, 2, None),
    (1.0, 9, None),
    (1.0, None, 0.69),
    (1.0, None, 0.75),
    (1.0, None, 1.0),
    (0.7, 4, 0.8),
    (1.0, 1, None),
    (1.0, None, 1e-6),
  )
  def test_frequencies(self, temperature, top_k, top_p):
    got = _draws(
      np.log(_PROBS), temperature=temperature, top_k=top_k, top_p=top_p
    )
    hot = _PROBS ** (1 / temperature)
    hot = hot / hot.sum()
    kept = _kept(hot, top_k=top_k, top_p=top_p)
    want = np.array([hot[i] if i in kept else 0.0 for i in range(5)])
    want = want / want.sum()
    self.assertEqual(set(np.flatnonzero(got)), set(np.flatnonzero(want)))
    # A frequency of 20 000 draws has a standard deviation of at most 0.0036.
    np.testing.assert_allclose(got, want, atol=4 * 0.0036)

  def test_top_p_keeps_the_crossing_token(self):
    # 0.4 < 0.69 <= 0.4 + 0.3: two tokens; 0.7 < 0.75 <= 0.85: three.
    for top_p, want in ((0.39, {3}), (0.69, {1, 3}), (0.75, {1, 2, 3})):
      got = _draws(np.log(_PROBS), top_p=top_p)
      self.assertEqual(set(np.flatnonzero(got)), want)

  @parameterized.parameters(*range(4))
  def test_sets_of_random_logits(self, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=12).astype(np.float32) * 1.5
    top_k, top_p = int(rng.integers(3, 10)), float(rng.uniform(0.5, 0.9))
    probs = np.exp(logits) / np.exp(logits).sum()
    want = _kept(probs, top_k=top_k, top_p=top_p)
    got = _draws(logits, top_k=top_k, top_p=top_p)
    # The rarest token kept has a probability of 1 % or more: a miss in 20 000
    # draws has a probability of e^-200.
    self.assertGreater(min(probs[i] for i in want), 0.005)
    self.assertEqual(set(np.flatnonzero(got)), want)

  def test_ties_go_to_lower_ids(self):
    got = _draws(np.zeros(5), top_k=2)
    self.assertEqual(set(np.flatnonzero(got)), {0, 1})
    greedy = generation.sample_logits(
      jax.random.key(0), jnp.zeros((3, 5)), temperature=0.0
    )
    np.testing.assert_array_equal(greedy, 0)

  def test_forbidden_tokens_are_never_drawn(self):
    logits = np.log(_PROBS)
    logits[3] = -np.inf
    for options in ({}, {"top_k": 5}, {"top_p": 0.99}):
      self.assertEqual(_draws(logits, **options)[3], 0)

  def test_options_per_row_and_traced(self):
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(_PROBS)), (3, 500, 5))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def draw(temperature, top_p):
      return generation.sample_logits(
        jax.random.key(0),
        logits,
        temperature=temperature[:, None],
        top_p=top_p[:, None],
      )

    ids = draw(jnp.array([0.0, 1.0, 1.0]), jnp.array([1.0, 0.69, 1.0]))
    sets = [set(np.unique(row)) for row in np.asarray(ids)]
    self.assertEqual(sets, [{3}, {1, 3}, {0, 1, 2, 3, 4}])
    draw(jnp.array([0.5, 0.5, 0.5]), jnp.array([0.5, 0.5, 0.5]))

  @parameterized.parameters(
    ({"temperature": -1.0}, "temperature"),
    ({"top_k": 0}, "top_k"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
  )
  def test_errors(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      generation.sample_logits(jax.random.key(0), jnp.zeros((2, 4)), **options)


def _model(**options: Any) -> tuple[Any, Any]:
  options = {
    "vocab_size": 13,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "max_length": 16,
    "methods": (jaxattn.sliding_window(left=3),),
    **options,
  }
  model = decoder.Decoder(decoder.DecoderConfig(**options))
  variables = nn.unbox(
    jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))
  )
  rng = np.random.default_rng(2)

  def loud(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    return jnp.asarray(rng.normal(size=x.shape), x.dtype)

  return model, jax.tree.map(loud, variables)


def _naive(model, variables, prompt, count):
  """Greedy continuation of one row by the parallel forward, always 16 wide."""
  apply = jax.jit(model.apply)
  row = list(prompt)
  for _ in range(count):
    padded = jnp.asarray([row + [0] * (16 - len(row))])
    logits = apply(variables, padded)[0, len(row) - 1]
    row.append(int(jnp.argmax(logits)))
  return row[len(prompt) :]


class GenerateTest(parameterized.TestCase):
  @parameterized.parameters("learned", "rotary", "relative")
  def test_greedy_equals_a_naive_loop(self, kind):
    model, variables = _model(positions=kind)
    prompts = ([5, 1, 7, 2, 9], [3, 4], [8, 8, 8, 1])
    padded = jnp.array([p + [0] * (5 - len(p)) for p in prompts])
    got = generation.generate(
      model,
      variables,
      padded,
      prompt_lengths=jnp.array([5, 2, 4]),
      max_new_tokens=8,
      temperature=0.0,
    )
    want = [_naive(model, variables, p, 8) for p in prompts]
    np.testing.assert_array_equal(got, want)
    self.assertGreater(len(np.unique(want)), 2)
    # The rows end when they draw a token that the first row draws third.
    eos = want[0][2]
    cut = [
      row[: row.index(eos)] + [eos] * (8 - row.index(eos))
      if eos in row
      else row
      for row in want
    ]
    got = generation.generate(
      model,
      variables,
      padded,
      prompt_lengths=jnp.array([5, 2, 4]),
      max_new_tokens=8,
      temperature=0.0,
      eos_id=eos,
    )
    np.testing.assert_array_equal(got, cut)

  def test_methods_that_do_not_decode_read_whole_rows(self):
    # In one chunk, so that what is not there yet cannot move the others.
    method = jaxattn.reformer(chunk=16, num_buckets=2)
    model, variables = _model(methods=(method, jaxattn.dense()))
    prompts = ([5, 1, 7, 2], [3, 4])
    got = generation.generate(
      model,
      variables,
      jnp.array([p + [9] * (4 - len(p)) for p in prompts]),
      prompt_lengths=jnp.array([4, 2]),
      max_new_tokens=6,
      temperature=0.0,
    )
    want = [_naive(model, variables, p, 6) for p in prompts]
    np.testing.assert_array_equal(got, want)
    self.assertGreater(len(np.unique(want)), 2)

  def test_compiles_once(self):
    model, variables = _model(num_layers=1)
    prompt = jnp.array([[1, 2, 3]])
    traced = mock.patch.object(
      decoding, "decode_step", wraps=decoding.decode_step
    )
    with traced as step:
      for seed, temperature in ((0, 1.0), (1, 0.5), (2, 0.0)):
        generation.generate(
          decoder.Decoder(model.cfg),
          variables,
          prompt + seed,
          max_new_tokens=4,
          rng=jax.random.key(seed),
          temperature=temperature,
          top_p=0.9 - 0.1 * seed,
          eos_id=seed,
        )
        # Traced for the prompt and for the step, in the first call only.
        self.assertEqual(step.call_count, 2)

  def test_first_token_is_drawn_from_the_model(self):
    model, variables = _model(num_layers=1)
    variables = jax.tree.map(lambda x: 0.3 * x, variables)
    rows = 4000
    prompt = jnp.broadcast_to(jnp.array([1, 2, 3]), (rows, 3))
    tokens = generation.generate(
      model, variables, prompt, max_new_tokens=2, rng=jax.random.key(0)
    )
    apply = jax.jit(model.apply)
    logits = apply(variables, prompt[:1])[0, -1]
    got = np.bincount(np.asarray(tokens[:, 0]), minlength=13) / rows
    # Standard deviation of a frequency: at most sqrt(1 / 4 / 4000) = 0.008.
    np.testing.assert_allclose(got, jax.nn.softmax(logits), atol=4 * 0.008)
    likely = int(np.argmax(got))
    second = tokens[:, 1][tokens[:, 0] == likely]
    logits = apply(variables, jnp.array([[1, 2, 3, likely]]))[0, -1]
    got = np.bincount(np.asarray(second), minlength=13) / len(second)
    spread = (0.25 / len(second)) ** 0.5
    np.testing.assert_allclose(got, jax.nn.softmax(logits), atol=4 * spread)

  def test_same_key_same_text(self):
    model, variables = _model(num_layers=1)
    prompt = jnp.array([[1, 2, 3], [1, 2, 3]])
    a, b, c = (
      generation.generate(
        model,
        variables,
        prompt,
        max_new_tokens=8,
        rng=jax.random.key(seed),
        temperature=3.0,
      )
      for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    self.assertTrue(bool(jnp.any(a != c)))
    self.assertTrue(bool(jnp.any(a[0] != a[1])))  # Rows draw independently.

  @parameterized.parameters(
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"prompt_lengths": jnp.array([4])}, r"must lie in \[1, 3"),
    ({"prompt_lengths": jnp.array([0])}, r"must lie in \[1, 3"),
    ({"prompt_lengths": jnp.array([1, 2])}, "prompt_lengths must have shape"),
    ({"rng": None}, "rng is needed"),
    ({"max_new_tokens": 15}, "max_length 17 exceeds"),
    ({"top_k": 0}, "top_k"),
  )
  def test_errors(self, given, message):
    model, variables = _model(num_layers=1, positions="learned")
    options: Any = {"max_new_tokens": 2, "rng": jax.random.key(0), **given}
    with self.assertRaisesRegex(ValueError, message):
      generation.generate(model, variables, jnp.array([[1, 2, 3]]), **options)


if __name__ == "__main__":
  absltest.main()
