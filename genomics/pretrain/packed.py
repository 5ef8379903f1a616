"""Several contigs in a row of tokens, each a segment of its own."""

import bisect
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from experiments.common import data as rows_lib
from experiments.common import files
from genomics import genome as genome_lib
from genomics import intervals
from genomics import tokenizers
from genomics.pretrain import rows

_SPECIAL = 2  # [CLS] and [SEP] of a segment.


def pieces(
  genome: genome_lib.Genome,
  regions: Sequence[intervals.Interval],
  length: int,
  *,
  least: int = 32,
) -> list[intervals.Interval]:
  """Regions without their unknown bases, cut into pieces.

  Args:
    genome: to read.
    regions: by the genome's names.
    length: bases in a piece, at most.
    least: bases below which a piece is left out.

  Returns:
    The pieces, in order.

  Raises:
    UserError: if none is left.

  Example:
    >>> genome = genome_lib.InMemory({"a": "ACGTNNACG", "b": "AC"})
    >>> places = [intervals.Interval("a", 0, 9), intervals.Interval("b", 0, 2)]
    >>> found = pieces(genome, places, 3, least=2)
    >>> [(x.chrom, x.start, x.end) for x in found]
    [('a', 0, 3), ('a', 6, 9), ('b', 0, 2)]

  Source: none.
  """
  found: list[intervals.Interval] = []
  runs: dict[str, list[intervals.Interval]] = {}
  for region in regions:
    if region.chrom not in runs:
      runs[region.chrom] = genome_lib.known_runs(genome, region.chrom)
    for run in runs[region.chrom]:
      low, high = max(run.start, region.start), min(run.end, region.end)
      for start in range(low, high, length):
        end = min(start + length, high)
        if end - start >= least:
          found.append(intervals.Interval(region.chrom, start, end))
  if not found:
    raise files.UserError(
      f"no piece of {least} known bases is in the {len(regions)} regions. "
      "Lower --config.least_bases, or take longer sequences."
    )
  return found


def pack(sizes: Sequence[int], limit: int) -> list[list[int]]:
  """Which things go into one row: each into the fullest that has room for it.

  Args:
    sizes: of the things.
    limit: of a row.

  Returns:
    Numbers of things, by rows.

  Raises:
    ValueError: if one is larger than a row.

  Example:
    >>> pack([3, 5, 2], 5)
    [[1], [0, 2]]

  Source: best-fit decreasing, https://doi.org/10.1137/0203025.
  """
  found: list[list[int]] = []
  room: list[tuple[int, int]] = []  # What is left in a row, and its number.
  for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
    if sizes[i] > limit:
      raise ValueError(f"{sizes[i]} is more than a row of {limit} holds.")
    at = bisect.bisect_left(room, (sizes[i], -1))
    left, row = room.pop(at) if at < len(room) else (limit, len(found))
    if row == len(found):
      found.append([])
    found[row].append(i)
    bisect.insort(room, (left - sizes[i], row))
  return found


class Rows:
  """Pieces as rows: [CLS] tokens [SEP] of one, then of the next.

  Beside what `genomics.pretrain.rows.Rows` has, rows have `segments`, which
  count from 1 and are 0 at padding, and `positions`, which begin anew in each.

  Args:
    genome: to read.
    windows: pieces on the + strand, inside the genome.
    tokenizer: of the rows.
    length: tokens in a row.
    bases: in a row, at most.
    both_strands: whether there are rows of reverse complements, too.

  Raises:
    UserError: if a piece is longer than a row.

  Example:
    >>> genome = genome_lib.InMemory({"c": "ACG", "d": "T"})
    >>> some = [intervals.Interval("c", 0, 3), intervals.Interval("d", 0, 1)]
    >>> tokenizer = tokenizers.NucleotideTokenizer()
    >>> row = Rows(genome, some, tokenizer, 9, bases=7)[0]
    >>> row["ids"].tolist(), row["segments"].tolist()
    ([1, 5, 6, 7, 2, 1, 8, 2, 0], [1, 1, 1, 1, 1, 2, 2, 2, 0])

  Source: packing as of Raffel et al., 2020, https://arxiv.org/abs/1910.10683.
  """

  def __init__(
    self,
    genome: genome_lib.Genome,
    windows: Sequence[intervals.Interval],
    tokenizer: tokenizers.Tokenizer,
    length: int,
    *,
    bases: int,
    both_strands: bool = False,
  ):
    self._each = rows.Rows(
      genome, windows, tokenizer, length, both_strands=both_strands
    )
    self._pieces, self._length = len(windows), length
    # A token spells a base at least, so that rows hold their tokens.
    limit = min(length, bases + _SPECIAL)
    longest = max((x.length for x in windows), default=0) + _SPECIAL
    if longest > limit:
      raise files.UserError(
        f"a piece of {longest - _SPECIAL} bases does not fit into "
        f"--config.length {length} and --config.bases {bases}."
      )
    self._groups = pack([x.length + _SPECIAL for x in windows], limit)
    self._both = both_strands

  def __len__(self) -> int:
    return len(self._groups) * (2 if self._both else 1)

  def __getitem__(self, index: int) -> rows_lib.Batch:
    at = int(index) % len(self._groups)
    turned = int(index) >= len(self._groups)
    parts = [self._each[i + turned * self._pieces] for i in self._groups[at]]
    found: dict[str, list[np.ndarray]] = {}
    offset = 0
    for segment, part in enumerate(parts, 1):
      size = int(part["valid"].sum())
      part["starts"] = part["starts"] + offset
      part["ends"] = part["ends"] + offset
      part["segments"] = np.full(size, segment, np.int32)
      part["positions"] = np.arange(size, dtype=np.int32)
      for name, values in part.items():
        if name != "index":
          found.setdefault(name, []).append(values[:size])
      offset = int(part["ends"][:size].max())
    row = {}
    for name, values in found.items():
      flat = np.concatenate(values)
      row[name] = np.zeros(self._length, flat.dtype)
      row[name][: len(flat)] = flat
    row["index"] = np.array(at, np.int32)
    return row

  def batches(self, batch_size: int) -> Iterator[rows_lib.Batch]:
    """All rows, in order; the last batch is filled with unknown tokens."""
    return rows.whole_batches(self, len(self._groups), batch_size)
