"""Bases as numbers: A 0, C 1, G 2, T 3, and N 4 for all that is not known."""

import numpy as np

from experiments.common import files

BASES = "ACGT"
LETTERS = "ACGTN"
UNKNOWN = 4

_IUPAC = b"RYSWKMBDHVNX"
_ODD = 255


def _table() -> np.ndarray:
  table = np.full(256, _ODD, np.uint8)
  for letter in _IUPAC:
    table[letter] = UNKNOWN
  for code, letter in enumerate(LETTERS.encode()):
    table[letter] = code
  table[ord("U")] = table[ord("T")]
  low = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
  table[low] = table[low - 32]
  return table


_CODES = _table()
_COMPLEMENT = np.array([3, 2, 1, 0, UNKNOWN], np.uint8)
_BYTES = np.frombuffer(LETTERS.encode(), np.uint8)


def encode(letters: str | bytes, where: str = "the sequence") -> np.ndarray:
  """Codes of letters, of either case; ambiguous letters are `UNKNOWN`.

  Args:
    letters: A, C, G, T or U, and IUPAC's letters for more than one base.
    where: they are from, for the error.

  Returns:
    `[n]` uint8.

  Raises:
    UserError: for a letter that stands for no nucleotide.

  Example:
    >>> encode("ACgtRN").tolist()
    [0, 1, 2, 3, 4, 4]

  Source: IUPAC-IUB, 1984, https://doi.org/10.1093/nar/13.9.3021.
  """
  raw = letters.encode() if isinstance(letters, str) else letters
  codes = _CODES[np.frombuffer(raw, np.uint8)]
  odd = np.flatnonzero(codes == _ODD)
  if len(odd):
    at = int(odd[0])
    raise files.UserError(
      f"{where} holds {chr(raw[at])!r} at base {at} (from 0), which stands for "
      "no nucleotide. Is it DNA, in the format that its name says?"
    )
  return codes


def decode(codes: np.ndarray) -> str:
  """Upper-case letters of codes; the inverse of `encode`.

  Args:
    codes: `[n]` ints in [0, 4].

  Returns:
    The letters.

  Example:
    >>> decode(np.array([0, 1, 2, 3, 4]))
    'ACGTN'

  Source: none.
  """
  return _BYTES[np.asarray(codes)].tobytes().decode()


def soft_masked(letters: str | bytes) -> np.ndarray:
  """Where letters are lower case, which marks repeats.

  Args:
    letters: as a file holds them.

  Returns:
    `[n]` bool.

  Example:
    >>> soft_masked("acGT").tolist()
    [True, True, False, False]

  Source: the soft masking of RepeatMasker, https://www.repeatmasker.org.
  """
  raw = letters.encode() if isinstance(letters, str) else letters
  values = np.frombuffer(raw, np.uint8)
  return (values >= ord("a")) & (values <= ord("z"))


def reverse_complement(codes: np.ndarray) -> np.ndarray:
  """The other strand, read in its direction, along the last axis.

  Args:
    codes: `[..., n]` ints in [0, 4].

  Returns:
    The same shape, uint8.

  Example:
    >>> decode(reverse_complement(encode("AACGN")))
    'NCGTT'

  Source: Watson and Crick, 1953, https://doi.org/10.1038/171737a0.
  """
  return _COMPLEMENT[np.asarray(codes)[..., ::-1]]


def one_hot(
  codes: np.ndarray, *, order: str = BASES, unknown: float = 0.0
) -> np.ndarray:
  """Channels of bases.

  With `order` A, C, G, T or A, G, C, T, turning both axes round is the reverse
  complement.

  Args:
    codes: `[..., n]` ints in [0, 4].
    order: of the channels; DeepSEA's is "AGCT".
    unknown: what each channel holds where the base is not known; 0, or 1/4.

  Returns:
    `[..., n, 4]` float32.

  Raises:
    ValueError: if `order` is no order of the four bases.

  Example:
    >>> one_hot(encode("GN"), order="AGCT").tolist()
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]

  Source: Zhou and Troyanskaya, 2015, https://doi.org/10.1038/nmeth.3547.
  """
  rows = np.full((5, 4), unknown, np.float32)
  rows[:4] = np.eye(4, dtype=np.float32)[:, channels(order)]
  return rows[np.asarray(codes)]


def from_one_hot(values: np.ndarray, *, order: str = BASES) -> np.ndarray:
  """Codes of channels; a place without exactly one 1 is not known.

  Args:
    values: `[..., n, 4]` of any type.
    order: of the channels.

  Returns:
    `[..., n]` uint8.

  Raises:
    ValueError: if `order` is no order of the four bases.

  Example:
    >>> decode(from_one_hot(one_hot(encode("ACN"), order="AGCT"), order="AGCT"))
    'ACN'

  Source: the inverse of `one_hot`.
  """
  codes = np.array(channels(order), np.uint8)[np.argmax(values, axis=-1)]
  known = (np.sum(values, axis=-1) == 1) & (np.max(values, axis=-1) == 1)
  return np.where(known, codes, UNKNOWN).astype(np.uint8)


def channels(order: str) -> list[int]:
  """The code of each channel's base.

  Args:
    order: of the channels.

  Returns:
    Four codes.

  Raises:
    ValueError: if `order` is no order of the four bases.

  Example:
    >>> channels("AGCT")
    [0, 2, 1, 3]

  Source: none.
  """
  if sorted(order) != sorted(BASES):
    raise ValueError(f"order must hold A, C, G and T once, got {order!r}.")
  return [BASES.index(letter) for letter in order]
