"""What any masked language model must beat: counts of both neighbourhoods."""

import numpy as np

from experiments.common import counting


def both_sides(
  train: np.ndarray,
  rows: np.ndarray,
  places: np.ndarray,
  *,
  mask_id: int,
  reach: int | None = None,
) -> np.ndarray:
  """Probabilities of hidden tokens from the tokens left and right of them.

  An interpolated Witten-Bell model of the token between i tokens at its left
  and j at its right. With k the reach, i and j are as many as stand there
  unhidden, up to k; what was not seen backs off to i - 1 and j - 1 and so on.

  Args:
    train: `[n]` ids that counts are made of, documents joined by separators.
    rows: `[r, T]` ids, some of them `mask_id`.
    places: `[m, 3]` of each token asked for: row, place in it, and its id.
    mask_id: the largest id.
    reach: k; None takes the most that 63 bits hold, at most 3.

  Returns:
    `[m]` probabilities.

  Example:
    >>> text = np.frombuffer(b"abcabcabc", np.uint8)
    >>> row = np.array([[97, 255, 99]])
    >>> asked = np.array([[0, 1, 98]])
    >>> bool(both_sides(text, row, asked, mask_id=255)[0] > 0.8)
    True

  Source: Bell, Cleary and Witten, 1990, Text Compression, with contexts of two
  sides.
  """
  bits = int(mask_id).bit_length()
  if reach is None:
    reach = min((63 // bits - 1) // 2, 3)
  row, place, target = places.T
  sides = [_free(rows, row, place, mask_id, step, reach) for step in (-1, 1)]
  found = {(-1, -1): np.full(len(places), 1.0 / mask_id)}
  result = found[-1, -1].copy()
  for i in range(reach + 1):
    for j in range(reach + 1):
      below = found[(max(i - 1, 0), max(j - 1, 0)) if i or j else (-1, -1)]
      near = (sides[0] >= i) & (sides[1] >= j)
      wanted = target[near].astype(np.uint64)
      wanted |= _contexts(rows, row[near], place[near], i, j, bits)
      now = below.copy()
      now[near] = counting.interpolate(
        _seen(train, i, j, bits), wanted, below[near], bits=bits
      )
      found[i, j] = now
      exact = (sides[0] == i) & (sides[1] == j)
      result[exact] = now[exact]
  return result


def _free(
  rows: np.ndarray,
  row: np.ndarray,
  place: np.ndarray,
  mask_id: int,
  step: int,
  reach: int,
) -> np.ndarray:
  """How many tokens beside each place stand unhidden, up to `reach`."""
  free = np.zeros(len(place), np.int64)
  for distance in range(1, reach + 1):
    at = place + step * distance
    inside = (at >= 0) & (at < rows.shape[1])
    shown = rows[row, np.clip(at, 0, rows.shape[1] - 1)] != mask_id
    free += (free == distance - 1) & inside & shown
  return free


def _contexts(
  rows: np.ndarray,
  row: np.ndarray,
  place: np.ndarray,
  i: int,
  j: int,
  bits: int,
) -> np.ndarray:
  """The neighbours of each place as one number, above the token's bits."""
  code = np.zeros(len(place), np.uint64)
  for offset in (*range(-i, 0), *range(1, j + 1)):
    code = code << np.uint64(bits) | rows[row, place + offset].astype(np.uint64)
  return code << np.uint64(bits)


def _seen(train: np.ndarray, i: int, j: int, bits: int) -> np.ndarray:
  """Every token of the text with its neighbours, as `_contexts` has them."""
  place = np.arange(i, len(train) - j)
  code = _contexts(train[None], np.zeros_like(place), place, i, j, bits)
  return code | train[place].astype(np.uint64)
