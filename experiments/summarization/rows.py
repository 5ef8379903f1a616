"""Articles and their summaries as rows of tokens."""

from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from experiments.common import data as rows_lib
from experiments.common import encoders
from experiments.common import tokens as tokens_lib
from experiments.summarization import data

_BYTES = 16  # No token is longer, on average.


class Rows:
  """Articles and summaries as rows of fixed lengths, by random access.

  The separator begins and ends a summary, and fills rows up.

  Args:
    articles: of a part.
    tokenizer: of their texts.
    length: tokens of an article.
    target_length: tokens of a summary, its end included.

  Example:
    >>> rows = Rows([data.Article("", "text", "t")], tokens_lib.Bytes(), 5, 3)
    >>> rows[0]["inputs"].tolist(), rows[0]["targets"].tolist()
    ([256, 116, 256], [116, 256, 256])

  Source: none.
  """

  def __init__(
    self,
    articles: Sequence[data.Article],
    tokenizer: tokens_lib.Tokenizer,
    length: int,
    target_length: int,
  ):
    self._lengths = length, target_length
    self._end = tokenizer.separator
    # What will be cut off need not be encoded.
    begins = [a.text[: _BYTES * length].encode() for a in articles]
    self._texts = [x[:length] for x in tokenizer.encode(begins)]
    self._summaries = tokenizer.encode([a.summary.encode() for a in articles])

  def __len__(self) -> int:
    return len(self._texts)

  def __getitem__(self, index: int) -> rows_lib.Batch:
    length, target_length = self._lengths
    source, valid = encoders.padded(self._texts[int(index)], length, self._end)
    cut = self._summaries[int(index)][: target_length - 1]
    targets, weights = encoders.padded(
      np.append(cut, self._end), target_length, self._end
    )
    return {
      "source": source,
      "valid": valid,
      "inputs": np.append(np.int32(self._end), targets[:-1]),
      "targets": targets,
      "weights": weights.astype(np.float32),
    }

  def batches(self, size: int, most: int = 0) -> Iterator[rows_lib.Batch]:
    """All rows, or the first `most`; filled up with rows without weight."""
    count = min(most or len(self), len(self))
    for low in range(0, count, size):
      index = np.arange(low, low + size)
      rows = [self[int(min(i, count - 1))] for i in index]
      batch = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
      batch["weights"] = batch["weights"] * (index < count)[:, None]
      yield batch
