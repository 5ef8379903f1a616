"""Pairs of sentences of documents: does the second follow the first?"""

from collections.abc import Iterable
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.common import data as rows_lib
from experiments.common import encoders
from experiments.common import files
from genomics import genome as genome_lib
from genomics import intervals
from genomics import tokenizers


class Pair(NamedTuple):
  """Two runs of sentences.

  Attributes:
    first: bases of one document.
    second: those that follow, or such of another document.
    follows: whether they do.
  """

  first: intervals.Interval
  second: intervals.Interval
  follows: bool


def pairs(
  documents: Iterable[list[intervals.Interval]],
  *,
  sentences: int = 1,
  share: float = 0.5,
  seed: int = 0,
) -> Iterator[Pair]:
  """Pairs of runs of sentences, a share of which belong together.

  With several passes, documents overlap: now and then a second of another one
  has bases of the first's own document.

  Args:
    documents: as of `corpus.bigbird_documents`, of one part of a split: a
      second of another document is drawn from all of them.
    sentences: in each of the two runs.
    share: of seconds that follow; of BigBird, half.
    seed: of all draws.

  Yields:
    The pairs, by documents.

  Raises:
    UserError: if fewer than two documents have a run, or an option is none.

  Example:
    >>> one = [intervals.Interval("c", i, i + 2) for i in (0, 2, 4, 6)]
    >>> other = [intervals.Interval("d", i, i + 2) for i in (0, 2)]
    >>> found = list(pairs([one, other], share=1.0))
    >>> [(x.first.start, x.second.start, x.follows) for x in found]
    [(0, 2, True), (4, 6, True), (0, 2, True)]

  Source: Zaheer et al., 2020 (BigBird), https://arxiv.org/abs/2007.14062,
  appendix F.1, by Devlin et al., 2019, https://arxiv.org/abs/1810.04805.
  """
  if sentences < 1 or not 0 <= share <= 1:
    raise files.UserError(
      "sentences must be positive and share lie in [0, 1], got "
      f"{sentences} and {share}."
    )
  runs = []
  for document in documents:
    cut = range(0, len(document) - sentences + 1, sentences)
    run = [_joined(document[i : i + sentences]) for i in cut]
    if run:
      runs.append(run)
  if len(runs) < 2:
    raise files.UserError(
      f"{len(runs)} documents have runs of {sentences} sentences; at least two "
      "must. Take more passes, longer sequences, or fewer sentences."
    )
  rng = np.random.default_rng(seed)
  for at, run in enumerate(runs):
    for first, second in zip(run[::2], run[1::2], strict=False):
      follows = bool(rng.random() < share)
      if not follows:
        other = int(rng.integers(len(runs) - 1))
        there = runs[other + (other >= at)]
        second = there[int(rng.integers(len(there)))]
      yield Pair(first, second, follows)


def _joined(some: list[intervals.Interval]) -> intervals.Interval:
  return intervals.Interval(some[0].chrom, some[0].start, some[-1].end)


def row(
  genome: genome_lib.Genome,
  pair: Pair,
  tokenizer: tokenizers.Tokenizer,
  length: int,
) -> rows_lib.Batch:
  """A pair as a row [CLS] first [SEP] second [SEP].

  The longer of the two is cut at its end until both fit.

  Args:
    genome: to read.
    pair: of its sequences.
    tokenizer: of the row.
    length: tokens in it.

  Returns:
    `ids`, `valid`, `type_ids` (1 from the second on), and `follows`.

  Raises:
    UserError: if there is no room for both.

  Example:
    >>> genome = genome_lib.InMemory({"c": "ACGT"})
    >>> both = [intervals.Interval("c", 0, 2), intervals.Interval("c", 2, 4)]
    >>> found = row(genome, Pair(*both, True), tokenizers.make("kmer:2"), 6)
    >>> found["ids"].tolist(), found["type_ids"].tolist()
    ([1, 6, 2, 16, 2, 0], [0, 0, 0, 1, 1, 0])

  Source: as of `pairs`.
  """
  if length < 5:
    raise files.UserError(
      f"--config.length must be 5 or more for pairs, got {length}."
    )
  one, other = (
    tokenizer.encode(genome_lib.codes(genome, x.chrom, x.start, x.end)).ids
    for x in (pair.first, pair.second)
  )
  room = length - 3
  kept = min(len(one), max(room - len(other), room // 2))
  one, other = one[:kept], other[: room - kept]
  ids = np.concatenate(
    [[tokenizers.CLS], one, [tokenizers.SEP], other, [tokenizers.SEP]]
  )
  ids, valid = encoders.padded(ids, length, tokenizers.PAD)
  types = np.zeros(length, np.int32)
  types[len(one) + 2 : len(one) + len(other) + 3] = 1
  return {
    "ids": ids,
    "valid": valid,
    "type_ids": types,
    "follows": np.array(pair.follows, np.int32),
  }
