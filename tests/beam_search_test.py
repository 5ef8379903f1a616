"""Beam search against a list of all texts, and against a naive search."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxattn
from jaxattn.models import beam_search
from jaxattn.models import encoder_decoder
from tests.method_cases import assert_close

_VOCAB, _END, _START = 5, 2, 1
_LENGTHS = (9, 5)
_PLACES = jnp.array([[0, 7], [3, -1]])


def _model() -> tuple[Any, Any]:
  model = encoder_decoder.EncoderDecoder(
    encoder_decoder.led(
      vocab_size=_VOCAB,
      width=8,
      num_layers=2,
      num_heads=2,
      mlp_width=12,
      window=4,
      max_source=16,
      max_target=12,
      dropout=0.0,
    )
  )
  tokens = jnp.zeros((1, 4), jnp.int32)
  boxed = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
  rng = np.random.default_rng(4)

  def draw(path, x):
    around = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(around + 0.5 * rng.normal(size=x.shape), x.dtype)

  return model, jax.tree_util.tree_map_with_path(draw, nn.unbox(boxed))


def _source() -> tuple[Any, Any]:
  source = np.random.default_rng(1).integers(0, _VOCAB, (2, 9))
  valid = jnp.arange(9)[None] < jnp.asarray(_LENGTHS)[:, None]
  return jnp.asarray(source), jaxattn.Mask(key_valid=valid, query_valid=valid)


def _search(model, variables, rows=slice(None), **options) -> Any:
  source, mask = _source()
  mask = jax.tree.map(lambda x: x[rows], mask)
  return beam_search.beam_search(
    model,
    variables,
    source[rows],
    start_id=_START,
    eos_id=_END,
    source_mask=mask,
    global_positions=_PLACES[rows],
    **options,
  )


def _log_probs(model, variables, row: int, texts: np.ndarray) -> np.ndarray:
  """`[n, L, V]`: of the token at each place, by the parallel form."""
  source, mask = _source()
  n = 8 * -(-len(texts) // 8)  # Few shapes, few compilations.
  texts = np.concatenate(
    [texts, np.zeros_like(texts, shape=(n, *texts.shape[1:]))]
  )[:n]
  inputs = np.concatenate([np.full((n, 1), _START), texts[:, :-1]], axis=1)
  logits = _apply(
    model,
    variables,
    jnp.repeat(source[row][None], n, axis=0),
    jnp.asarray(inputs),
    jax.tree.map(lambda x: jnp.repeat(x[row][None], n, 0), mask),
    jnp.repeat(_PLACES[row][None], n, axis=0),
  )
  return np.asarray(jax.nn.log_softmax(logits), np.float64)


@functools.partial(jax.jit, static_argnames=("model",))
def _apply(model, variables, source, inputs, mask, places) -> Any:
  return model.apply(
    variables, source, inputs, source_mask=mask, global_positions=places
  )


def _repeats(text: tuple[int, ...], size: int) -> bool:
  found = [text[i : i + size] for i in range(len(text) - size + 1)]
  return size > 0 and len(set(found)) < len(found)


def _penalty(length: int, alpha: float) -> float:
  return ((5 + length) / 6) ** alpha


def _all_texts(
  model, variables, row: int, length: int, alpha: float, size: int
):
  """Every text that ends, with its score, the best first."""
  texts = np.asarray(list(itertools.product(range(_VOCAB), repeat=length)))
  each = _log_probs(model, variables, row, texts)
  each = np.take_along_axis(each[: len(texts)], texts[..., None], axis=2)[
    ..., 0
  ]
  found = {}
  for text, log_probs in zip(texts.tolist(), each, strict=True):
    if _END in text:
      count = text.index(_END) + 1
      short = tuple(text[:count])
      if not _repeats(short, size):
        score = log_probs[:count].sum() / _penalty(count, alpha)
        found[(*short, *[_END] * (length - count))] = score
  return sorted(found.items(), key=lambda item: -item[1])


def _naive(
  model, variables, row: int, length: int, beams: int, alpha: float, least=0
):
  """A search in Python that computes everything anew and stops at the end."""
  alive, done = [((), 0.0)], []
  for count in range(length):
    texts = np.full((len(alive), length), _END)
    for i, (text, _) in enumerate(alive):
      texts[i, :count] = text
    new = _log_probs(model, variables, row, texts)[:, count]
    grown = [
      ((*text, token), total + new[i, token])
      for i, (text, total) in enumerate(alive)
      for token in range(_VOCAB)
    ]
    grown = sorted(grown, key=lambda item: -item[1])
    done += [
      (text, total / _penalty(count + 1, alpha))
      for text, total in grown
      if text[-1] == _END and count >= least
    ]
    done = sorted(done, key=lambda item: -item[1])[:beams]
    alive = [item for item in grown if item[0][-1] != _END][:beams]
  return [((*t, *[_END] * (length - len(t))), score) for t, score in done]


class BeamSearchTest(parameterized.TestCase):
  @parameterized.parameters((0.0, 0), (0.8, 0), (2.0, 1), (0.8, 2))
  def test_wide_beams_find_the_best_of_all_texts(self, alpha, size):
    model, variables = _model()
    # No more than 64 texts go on from three tokens: nothing is left out.
    got = _search(
      model,
      variables,
      max_new_tokens=4,
      num_beams=64,
      alpha=alpha,
      no_repeat_ngram=size,
    )
    for row in range(2):
      want = _all_texts(model, variables, row, 4, alpha, size)[:64]
      count = len(want)
      scores = np.asarray(got.scores[row])
      assert_close(scores[:count], np.asarray([s for _, s in want]))
      self.assertTrue(bool(got.finished[row, :count].all()))
      self.assertFalse(bool(got.finished[row, count:].any()))
      np.testing.assert_array_equal(got.tokens[row, 0], want[0][0])
      texts = {tuple(t) for t in np.asarray(got.tokens[row, :count]).tolist()}
      self.assertLen(texts, count)
      self.assertEqual(texts, {t for t, _ in want})

  @parameterized.parameters(1, 2, 3)
  def test_narrow_beams_equal_a_naive_search(self, beams):
    """Stopping early and the reordered cache change nothing."""
    model, variables = _model()
    got = _search(
      model, variables, max_new_tokens=8, num_beams=beams, alpha=0.8
    )
    for row in range(2):
      want = _naive(model, variables, row, 8, beams, 0.8)
      finished = np.asarray(got.finished[row])
      self.assertEqual(int(finished.sum()), len(want))
      assert_close(
        np.asarray(got.scores[row])[finished], np.asarray([s for _, s in want])
      )
      np.testing.assert_array_equal(
        np.asarray(got.tokens[row])[finished], [t for t, _ in want]
      )
      alone = _search(
        model,
        variables,
        slice(row, row + 1),
        max_new_tokens=8,
        num_beams=beams,
        alpha=0.8,
      )
      np.testing.assert_array_equal(alone.tokens[0], got.tokens[row])

  def test_unfinished_texts_follow_finished_ones(self):
    model, variables = _model()
    got = _search(model, variables, max_new_tokens=1, num_beams=3)
    for row in range(2):
      np.testing.assert_array_equal(got.finished[row], [True, False, False])
      self.assertEqual(int(got.tokens[row, 0, 0]), _END)
      new = _log_probs(model, variables, row, np.array([[_END]]))[0, 0]
      others = np.delete(np.arange(_VOCAB), _END)
      best = others[np.argsort(-new[others])[:2]]
      np.testing.assert_array_equal(got.tokens[row, 1:, 0], best)
      assert_close(np.asarray(got.scores[row, 1:]), new[best])

  def test_texts_may_run_out(self):
    """Without any token twice, four texts at most go on, and then none."""
    model, variables = _model()
    got = _search(
      model, variables, max_new_tokens=8, num_beams=2, no_repeat_ngram=1
    )
    for text in np.asarray(got.tokens).reshape(-1, 8).tolist():
      short = text[: text.index(_END)]
      self.assertEqual(len(short), len(set(short)))
    self.assertTrue(bool(got.finished.all()))

  @parameterized.parameters(1, 5)
  def test_no_text_ends_before_the_least(self, least):
    model, variables = _model()
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3}
    free = _search(model, variables, **options)
    got = _search(model, variables, min_new_tokens=least, **options)
    shortest = jnp.sum(got.tokens != _END, axis=-1)[got.finished].min()
    self.assertGreaterEqual(int(shortest), least)
    self.assertLess(int(jnp.sum(free.tokens != _END, axis=-1).min()), least)
    for row in range(2):
      want = _naive(model, variables, row, 8, 3, 0.8, least)
      finished = np.asarray(got.finished[row])
      np.testing.assert_array_equal(
        np.asarray(got.tokens[row])[finished], [t for t, _ in want]
      )

  def test_bad_options_are_refused(self):
    model, variables = _model()
    good: dict[str, Any] = {"max_new_tokens": 4}
    for changes, message in (
      ({"num_beams": 0}, "num_beams must be at least 1"),
      ({"alpha": -1.0}, "alpha must be finite and not negative, got -1.0"),
      ({"alpha": float("nan")}, "alpha must be finite"),
      ({"no_repeat_ngram": -1}, "no_repeat_ngram must not be negative"),
      ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
      ({"min_new_tokens": 5}, r"min_new_tokens must be in \[0, 4\], max_new"),
      ({"max_new_tokens": 13}, "max_length 13 exceeds max_length 12"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        _search(model, variables, **(good | changes))
    source, _ = _source()
    with self.assertRaisesRegex(ValueError, r"eos_id must be in \[0, 5\)"):
      beam_search.beam_search(
        model, variables, source, start_id=1, eos_id=5, max_new_tokens=4
      )


if __name__ == "__main__":
  absltest.main()
