"""Markov models against a naive implementation, and compressors."""

import collections
import gzip
import lzma
import math

import numpy as np
import pytest

from experiments.lm import floors

_RNG = np.random.default_rng(0)


def _draw(letters, count):
  return _RNG.choice(list(letters), count).astype(np.uint8).tobytes()


_TRAIN = [_draw(b"aabbc", n) for n in (40, 1, 7, 90)]
_TEST = [_draw(b"abcd", n) for n in (3, 25, 1)]


class _Naive:
  """The formula of the docstring, one byte at a time."""

  def __init__(self, train, alphabet):
    self._alphabet = alphabet
    self._counts = collections.defaultdict(collections.Counter)
    for text in train:
      for i in range(len(text)):
        for order in range(min(i, 5) + 1):
          self._counts[text[i - order : i]][text[i]] += 1

  def probability(self, context, symbol):
    shorter = (
      self.probability(context[1:], symbol) if context else 1 / self._alphabet
    )
    counts = self._counts.get(context)
    if not counts:
      return shorter
    kinds = len(counts)
    return (counts[symbol] + kinds * shorter) / (sum(counts.values()) + kinds)


def test_equals_naive():
  naive = _Naive(_TRAIN, 256)
  got = floors.witten_bell(_TRAIN, _TEST)
  for order in range(6):
    bits = [
      -math.log2(naive.probability(text[max(0, i - order) : i], text[i]))
      for text in _TEST
      for i in range(len(text))
    ]
    assert got[order] == pytest.approx(np.mean(bits), rel=1e-12)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_probabilities_sum_to_one(order):
  """Over the next byte, after seen, partly seen and unseen contexts."""
  for context in (b"", b"abca", b"ddda", b"dddd"):
    total = 0.0
    size = len(context) + 1
    before = 0.0
    if context:
      before = floors.witten_bell(
        _TRAIN, [context], orders=(order,), alphabet=4
      )[order] * len(context)
    for symbol in b"abcd":
      bits = floors.witten_bell(
        _TRAIN, [context + bytes([symbol])], orders=(order,), alphabet=4
      )[order]
      total += 2.0 ** -(bits * size - before)
    assert total == pytest.approx(1.0, rel=1e-9)


def test_documents_do_not_leak_into_each_other():
  """The first byte of a document has no context."""
  alone = floors.witten_bell([b"ab", b"ab"], [b"ba"], orders=(1,))[1]
  joined = floors.witten_bell([b"abab"], [b"ba"], orders=(1,))[1]
  assert alone != joined


def test_short_documents():
  """No document reaches the highest orders."""
  got = floors.witten_bell([b"a", b"b"], [b"a"])
  assert len(set(got.values())) == 1


def test_orders_out_of_range():
  with pytest.raises(ValueError, match="orders must lie"):
    floors.witten_bell(_TRAIN, _TEST, orders=(7,))


def test_compressors_pack_the_joined_documents():
  got = floors.compressors(_TEST)
  text = b"".join(_TEST)
  assert sorted(got) == ["bzip2", "gzip", "xz"]
  best = lzma.PRESET_EXTREME | 9
  assert got["xz"] == 8 * len(lzma.compress(text, preset=best)) / len(text)
  assert got["gzip"] == 8 * len(gzip.compress(text, 9)) / len(text)


def test_texts_shorter_than_the_order():
  """One byte has no context at all: every order is order 0."""
  found = floors.witten_bell([b"abcab"], [b"a"], orders=(0, 5))
  assert found[5] == found[0]
  assert floors.witten_bell([b"ab"], [b"abc"], orders=(5,))[5] > 0
