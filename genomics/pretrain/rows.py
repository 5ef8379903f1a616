"""Windows of a genome as rows of tokens that know their bases."""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common import data as rows_lib
from experiments.common import encoders
from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals
from genomics import tokenizers


class Rows:
  """Windows as rows [CLS] tokens [SEP] and padding, by random access.

  Args:
    genome: to read.
    windows: of one length, on the + strand, inside the genome.
    tokenizer: of the rows.
    length: tokens in a row; tokens beyond are left out.
    both_strands: whether the reverse complements are rows too.

  Raises:
    UserError: if a row has no place for a token.

  Example:
    >>> genome = genome_lib.InMemory({"c": "ACGT"})
    >>> place = [intervals.Interval("c", 0, 4)]
    >>> rows = Rows(genome, place, tokenizers.KmerTokenizer(2), 6)
    >>> rows[0]["ids"].tolist(), rows[0]["ends"].tolist()
    ([1, 6, 16, 2, 0, 0], [0, 2, 4, 0, 0, 0])

  Source: none.
  """

  def __init__(
    self,
    genome: genome_lib.Genome,
    windows: Sequence[intervals.Interval],
    tokenizer: tokenizers.Tokenizer,
    length: int,
    *,
    both_strands: bool = False,
  ):
    if length < 3:
      raise files.UserError(f"--config.length must be 3 or more, got {length}.")
    self._genome, self._windows = genome, windows
    self._tokenizer, self._length = tokenizer, length
    self._both = both_strands

  def __len__(self) -> int:
    return len(self._windows) * (2 if self._both else 1)

  def __getitem__(self, index: int) -> rows_lib.Batch:
    at = int(index) % len(self._windows)
    place = self._windows[at]
    codes = genome_lib.codes(self._genome, place.chrom, place.start, place.end)
    letters = self._genome.letters(place.chrom, place.start, place.end)
    soft = alphabet.soft_masked(letters)
    if int(index) >= len(self._windows):
      codes, soft = alphabet.reverse_complement(codes), soft[::-1]
    found = self._tokenizer.encode(codes)
    kept = slice(0, self._length - 2)
    ids = np.concatenate([[tokenizers.CLS], found.ids[kept], [tokenizers.SEP]])
    ids, valid = encoders.padded(ids, self._length, tokenizers.PAD)
    row = {"ids": ids, "valid": valid}
    for name in ("starts", "ends", "known"):
      values = getattr(found, name)[kept]
      row[name] = np.zeros(self._length, np.int32)
      row[name][1 : 1 + len(values)] = values
    row["known"] = row["known"].astype(bool)
    before = np.append(0, np.cumsum(soft))  # Lower case marks repeats.
    row["repeat"] = before[row["ends"]] > before[row["starts"]]
    row["index"] = np.array(at, np.int32)
    return row

  def batches(self, batch_size: int) -> Iterator[rows_lib.Batch]:
    """All windows, in order; the last batch is filled with unknown tokens."""
    return whole_batches(self, len(self._windows), batch_size)


def whole_batches(
  rows: Any, count: int, batch_size: int
) -> Iterator[rows_lib.Batch]:
  """The first rows, in order; the last batch is filled with unknown tokens.

  Args:
    rows: by random access, with `known` in each.
    count: of rows to give.
    batch_size: of every batch.

  Yields:
    Batches.
  """
  for low in range(0, count, batch_size):
    found = []
    for index in range(low, low + batch_size):
      row = rows[min(index, count - 1)]
      if index >= count:
        row["known"] = np.zeros_like(row["known"])
      found.append(row)
    yield {name: np.stack([x[name] for x in found]) for name in found[0]}
