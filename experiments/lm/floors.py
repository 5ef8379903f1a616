"""What any language model must beat: Markov models and compressors."""

import bz2
import gzip
import lzma
from collections.abc import Sequence

import numpy as np

from experiments.common import counting

ORDERS = (0, 1, 2, 3, 4, 5)


def witten_bell(
  train: Sequence[bytes],
  test: Sequence[bytes],
  *,
  orders: Sequence[int] = ORDERS,
  alphabet: int = 256,
) -> dict[int, float]:
  """Bits per byte of interpolated Witten-Bell Markov models.

  With n(c, b) the count of byte b after the k bytes c in `train`, n(c) its sum
  and T(c) the number of different bytes seen after c,

    P_k(b | c) = (n(c, b) + T(c) P_{k-1}(b | c')) / (n(c) + T(c)),

  where c' drops the first byte of c and P_{-1} is uniform; a context that was
  never seen has P_k = P_{k-1}. The first k bytes of a document have shorter
  contexts. Counts are fixed: nothing is learned from `test`.

  Args:
    train: documents to count in.
    test: documents to predict, every byte of them.
    orders: which k to return, each at most 6.
    alphabet: number of symbols, at most 256.

  Returns:
    Order -> bits per byte.

  Example:
    >>> round(witten_bell([b"abab"], [b"ab"], orders=(0,))[0], 3)
    1.579

  Source: Bell, Cleary and Witten, 1990, Text Compression; Chen and Goodman,
  1999, https://doi.org/10.1006/csla.1999.0128, section 2.6.
  """
  if not orders or min(orders) < 0 or max(orders) > 6:
    raise ValueError(f"orders must lie in [0, 6], got {tuple(orders)}.")
  train_bytes, train_place = _join(train)
  test_bytes, test_place = _join(test)
  probability = np.full(len(test_bytes), 1.0 / alphabet)
  bits = {}
  for order in range(max(orders) + 1):
    seen = _codes(train_bytes, order)[train_place >= order]
    usable = test_place >= order
    wanted = _codes(test_bytes, order)[usable]
    probability[usable] = counting.interpolate(
      seen, wanted, probability[usable]
    )
    bits[order] = float(-np.mean(np.log2(probability)))
  return {order: bits[order] for order in orders}


def _join(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """All bytes, and the place of each in its document."""
  sizes = np.array([len(t) for t in texts], np.int64)
  starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
  joined = np.frombuffer(b"".join(texts), np.uint8)
  return joined, np.arange(len(joined)) - starts


def _codes(values: np.ndarray, order: int) -> np.ndarray:
  """Each byte with the `order` bytes before it, as one number."""
  code = np.zeros(len(values), np.uint64)
  for back in range(min(order, len(values) - 1), -1, -1):
    code[back:] = code[back:] << np.uint64(8) | values[: len(values) - back]
  return code


def compressors(test: Sequence[bytes]) -> dict[str, float]:
  """Bits per byte of gzip, bzip2 and xz on the documents, joined in order.

  Each compresses the held-out text as one stream and by itself, at its highest
  level (gzip 9, bzip2 9, xz preset 9 extreme): unlike the models it has seen no
  training text, but it learns from the text as it goes.

  Args:
    test: the held-out documents.

  Returns:
    Name -> bits per byte, headers included.

  Example:
    >>> compressors([b"a" * 1000])["gzip"] < 1
    True

  Source: Python's gzip, bz2 and lzma.
  """
  text = b"".join(test)
  packed = {
    "gzip": gzip.compress(text, compresslevel=9, mtime=0),
    "bzip2": bz2.compress(text, compresslevel=9),
    "xz": lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
  }
  return {name: 8 * len(data) / len(text) for name, data in packed.items()}
