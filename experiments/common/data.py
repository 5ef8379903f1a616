"""Rows of tokens: packed documents for training, windows for evaluation."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence

import grain
import numpy as np

from experiments.common import files
from experiments.common import tokens as tokens_lib

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Documents end to end, each opened by the separator.

  Attributes:
    ids: `[n]` uint16, or uint32 where there are more.
    starts: `[d]` int64, where each document's separator stands, ascending.
    separator: its id.
    num_bytes: bytes of the texts, without separators.
  """

  ids: np.ndarray
  starts: np.ndarray
  separator: int
  num_bytes: int


def join(tokenizer: tokens_lib.Tokenizer, texts: Sequence[bytes]) -> Tokens:
  """Tokenizes documents and puts them end to end.

  Args:
    tokenizer: of `experiments.common.tokens`.
    texts: the documents; empty ones are left out.

  Returns:
    The tokens.

  Raises:
    UserError: if nothing is left.

  Example:
    >>> join(tokens_lib.Bytes(), [b"ab", b"", b"c"]).ids.tolist()
    [256, 97, 98, 256, 99]

  Source: the separator is described in `experiments.common.tokens`.
  """
  texts = [t for t in texts if t]
  if not texts:
    raise files.UserError("there is no text: every document is empty.")
  encoded = tokenizer.encode(texts)
  kind = np.result_type(np.min_scalar_type(tokenizer.separator), np.uint16)
  mark = np.array([tokenizer.separator], kind)
  parts = [x for doc in encoded for x in (mark, doc)]
  sizes = np.array([len(x) for x in parts], np.int64)
  starts = (np.cumsum(sizes) - sizes)[::2]
  total = sum(len(t) for t in texts)
  return Tokens(np.concatenate(parts), starts, tokenizer.separator, total)


class PackedRows:
  """Rows of `length` predictions, packed without a gap, by random access.

  Row `i` reads tokens `[i * length, (i + 1) * length]`: the last one is only
  predicted, and is the first input of row `i + 1`. So every token but the
  separators is predicted exactly once. A document cut by the end of a row goes
  on in the next one without its past.

  With several documents each row has `segment_ids` (from 1; 0 is padding) and
  `positions` that restart with every document of the row. Nothing is predicted
  across documents or at padding: `weights` is 0 there.

  Args:
    tokens: the documents.
    length: predictions in a row.
    joined: whether a row is read as one text, without `segment_ids` and
      `positions`, as methods need that cannot tell documents apart.

  Example:
    >>> docs = join(tokens_lib.Bytes(), [b"ab", b"c"])
    >>> row = PackedRows(docs, 3)[1]
    >>> row["inputs"].tolist(), row["weights"].tolist()
    ([256, 99, 256], [1.0, 0.0, 0.0])
    >>> row["segment_ids"].tolist()
    [1, 0, 0]

  Source: packing as in T5, https://arxiv.org/abs/1910.10683; an index instead
  of a buffer, so that the iterator's state is one number.
  """

  def __init__(self, tokens: Tokens, length: int, *, joined: bool = False):
    if length < 1:
      raise files.UserError(f"--config.length must be positive, got {length}.")
    self._tokens = tokens
    self._length = length
    self._apart = len(tokens.starts) > 1 and not joined

  def __len__(self) -> int:
    return -(-(len(self._tokens.ids) - 1) // self._length)

  def __getitem__(self, index: int) -> Batch:
    docs, length = self._tokens, self._length
    low = int(index) * length
    ids = docs.ids[low : low + length + 1].astype(np.int32)
    real = len(ids)
    ids = np.pad(ids, (0, length + 1 - real), constant_values=docs.separator)
    place = low + np.arange(length + 1)
    doc = np.searchsorted(docs.starts, place, side="right")
    valid = np.arange(1, length + 1) < real
    same = doc[1:] == doc[:-1]
    row = {
      "inputs": ids[:-1],
      "targets": ids[1:],
      "weights": (valid & same).astype(np.float32),
    }
    if self._apart:
      begin = np.maximum(docs.starts[doc[:-1] - 1], low)
      read = np.arange(length) < real - 1
      row["segment_ids"] = np.where(read, doc[:-1] - doc[0] + 1, 0)
      row["positions"] = np.where(read, place[:-1] - begin, 0)
      for name in ("segment_ids", "positions"):
        row[name] = row[name].astype(np.int32)
    return row


def batches(
  rows: PackedRows,
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Shuffled batches without end, in an order given by the seed.

  Every epoch has an order of its own. The state of the iterator is the number
  of batches taken, so a restored iterator goes on exactly where it was.

  Args:
    rows: where the rows come from.
    batch_size: rows a batch, over all processes.
    seed: of the order.
    process_index: of this process, which gets its share of every batch.
    process_count: divides `batch_size`.

  Returns:
    A grain dataset of dictionaries of `[batch_size / process_count, length]`.
  """
  data = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
  data = data.batch(batch_size, drop_remainder=True)
  if process_count > 1:
    data = data.map(
      lambda b: {k: v[process_index::process_count] for k, v in b.items()}
    )
  # One thread prepares rows ahead; no worker processes.
  return data.to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  )


@dataclasses.dataclass(frozen=True)
class Windows:
  """Evaluation rows: windows that slide over every document by `stride`.

  The first window of a document scores all it predicts, later ones their last
  `stride` predictions; so every token is scored once, with at least
  `length - stride` tokens of context where the document has them.

  Attributes:
    tokens: the documents.
    length: of a window.
    stride: from 1 to `length`.
    begins: `[r]` index of the first input of each row.
    ends: `[r]` index after the last input.
    scored: `[r]` index of the first input whose prediction counts.
  """

  tokens: Tokens
  length: int
  stride: int
  begins: np.ndarray
  ends: np.ndarray
  scored: np.ndarray

  def thin(self, count: int) -> "Windows":
    """At most `count` windows, spread evenly; all of them for 0."""
    rows = len(self.begins)
    if not count or rows <= count:
      return self
    kept = np.arange(count) * rows // count
    columns = (x[kept] for x in (self.begins, self.ends, self.scored))
    return Windows(self.tokens, self.length, self.stride, *columns)

  def batches(self, batch_size: int) -> Iterator[Batch]:
    """All rows, in order; the last batch is filled with rows of weight 0."""
    for low in range(0, len(self.begins), batch_size):
      yield self._batch(np.arange(low, low + batch_size))

  def _batch(self, rows: np.ndarray) -> Batch:
    inside = rows < len(self.begins)
    rows = np.where(inside, rows, 0)
    place = self.begins[rows, None] + np.arange(self.length + 1)
    last = self.ends[rows, None]
    ids = self.tokens.ids[np.minimum(place, last)].astype(np.int32)
    ids = np.where(place <= last, ids, self.tokens.separator)
    place = place[:, :-1]
    counts = (place < last) & (place >= self.scored[rows, None])
    return {
      "inputs": ids[:, :-1],
      "targets": ids[:, 1:],
      "weights": (counts & inside[:, None]).astype(np.float32),
    }


def windows(tokens: Tokens, *, length: int, stride: int) -> Windows:
  """Lays evaluation windows over documents.

  Args:
    tokens: the documents.
    length: of a window.
    stride: new predictions a window, from 1 to `length`.

  Returns:
    The windows.

  Raises:
    UserError: if `stride` is out of range.

  Example:
    >>> rows = windows(join(tokens_lib.Bytes(), [b"abcd"]), length=2, stride=1)
    >>> next(rows.batches(3))["weights"].tolist()
    [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]

  Source: overlapping evaluation as in Baevski and Auli, 2019,
  https://arxiv.org/abs/1809.10853.
  """
  if not 1 <= stride <= length:
    raise files.UserError(
      f"--config.eval_stride must lie in [1, {length}], got {stride}."
    )
  stops = np.append(tokens.starts[1:], len(tokens.ids))
  begins, ends, scored = [], [], []
  for start, stop in zip(tokens.starts, stops, strict=True):
    begin, done = int(start), int(start)
    while done < stop - 1:
      end = min(begin + length, int(stop) - 1)
      begins.append(begin)
      ends.append(end)
      scored.append(done)
      begin, done = begin + stride, end
  columns = (np.array(x, np.int64) for x in (begins, ends, scored))
  return Windows(tokens, length, stride, *columns)
