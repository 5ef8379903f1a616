"""Rows of a masked language model: what is hidden of them, and when."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import data as rows_lib
from experiments.common import tokens as tokens_lib
from jaxattn.models import masking


@dataclasses.dataclass(frozen=True)
class Hider:
  """Hides tokens of packed rows.

  The mask token has the id after the tokenizer's separator.

  Attributes:
    tokenizer: of the rows.
    rate: share of the tokens that is hidden.
    whole_words: whether all tokens of a word are hidden, or none.

  Example:
    >>> Hider(tokens_lib.Bytes()).mask_id
    257

  Source: `jaxattn.models.masking.hide_words`.
  """

  tokenizer: tokens_lib.Tokenizer
  rate: float = 0.15
  whole_words: bool = True

  @property
  def mask_id(self) -> int:
    """Of the token that stands for hidden ones."""
    return self.tokenizer.vocab_size

  @property
  def vocab_size(self) -> int:
    """Number of ids, the mask's included."""
    return self.mask_id + 1

  def __call__(self, keys: jax.Array, batch: Any) -> masking.HiddenTokens:
    """Hides tokens of every row, by a key of its own.

    Args:
      keys: `[B]` keys.
      batch: of `experiments.common.data.PackedRows`.

    Returns:
      The rows, hidden.
    """
    tokens = batch["inputs"]
    candidates = tokens != self.tokenizer.separator
    if "segment_ids" in batch:
      candidates &= batch["segment_ids"] > 0
    begins = jnp.ones(tokens.shape, bool)
    if self.whole_words:
      first, last = map(jnp.asarray, self.tokenizer.edges())
      goes_on = last[tokens[:, :-1]] & first[tokens[:, 1:]]
      begins = begins.at[:, 1:].set(~goes_on)

    def hide(key: jax.Array, *row: jax.Array) -> masking.HiddenTokens:
      return masking.hide_words(
        key,
        *row,
        mask_id=self.mask_id,
        vocab_size=self.tokenizer.separator,
        rate=self.rate,
      )

    return jax.vmap(hide)(keys, tokens, begins, candidates)


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Rows whose hidden tokens are always the same ones.

  Attributes:
    rows: all of them.
    chosen: indices of those that count.
    seed: of what is hidden, which does not depend on the batch size.

  Example:
    >>> docs = rows_lib.join(tokens_lib.Bytes(), [b"abcdef"])
    >>> held = HeldOut(rows_lib.PackedRows(docs, 3), np.arange(2), seed=0)
    >>> next(held.batches(4))["counts"].tolist()
    [1.0, 1.0, 0.0, 0.0]

  Source: static masks, as in Devlin et al., 2019, for evaluation alone.
  """

  rows: rows_lib.PackedRows
  chosen: np.ndarray
  seed: int

  def thin(self, count: int) -> "HeldOut":
    """At most `count` rows, spread evenly; all of them for 0."""
    if not count or len(self.chosen) <= count:
      return self
    kept = self.chosen[np.arange(count) * len(self.chosen) // count]
    return HeldOut(self.rows, kept, self.seed)

  def batches(self, batch_size: int) -> Iterator[rows_lib.Batch]:
    """All rows, in order; the last batch is filled with rows of count 0."""
    for low in range(0, len(self.chosen), batch_size):
      index = self.chosen[low : low + batch_size]
      real = len(index)
      index = np.pad(index, (0, batch_size - real), mode="edge")
      rows = [self.rows[i] for i in index]
      batch = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
      batch["row"] = index.astype(np.int32)
      batch["counts"] = (np.arange(batch_size) < real).astype(np.float32)
      yield batch

  def keys(self, batch: Any) -> jax.Array:
    """The keys of the rows of a batch, `[B]`."""
    seeds = jax.random.key(self.seed)
    return jax.vmap(lambda i: jax.random.fold_in(seeds, i))(batch["row"])
