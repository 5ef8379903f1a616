"""Pairs of sentences: half follow, the others are of another document."""

import numpy as np
import pytest

from experiments.common import files
from genomics import alphabet
from genomics import corpus
from genomics import genome as genome_lib
from genomics import intervals
from genomics import sentence_pairs
from genomics import tokenizers


def _documents():
  genome = genome_lib.InMemory({"a": "A" * 900_000, "b": "C" * 600_000})
  return list(corpus.bigbird_documents(genome, ["a", "b"], passes=3))


def test_half_follow_and_the_others_are_of_another_document():
  documents = _documents()
  found = list(sentence_pairs.pairs(documents, sentences=2))
  assert len(found) > 300
  starts = {(x.chrom, x.start): i for i, d in enumerate(documents) for x in d}
  share = np.mean([x.follows for x in found])
  # Four standard errors.
  assert abs(share - 0.5) < 2 / len(found) ** 0.5
  for x in found:
    assert 1000 <= x.first.length <= 2000
    next_door = (x.first.chrom, x.first.end) == (x.second.chrom, x.second.start)
    assert next_door or not x.follows
    if not x.follows:
      one = starts[x.first.chrom, x.first.start]
      assert one != starts[x.second.chrom, x.second.start]
  again = list(sentence_pairs.pairs(documents, sentences=2))
  assert again == found
  other = list(sentence_pairs.pairs(documents, sentences=2, seed=1))
  assert other != found


def test_rows_hold_both_and_cut_the_longer():
  text = alphabet.decode(np.arange(40).astype(np.uint8) % 4)
  genome = genome_lib.InMemory({"c": text})
  tokenizer = tokenizers.make("nucleotide")

  def sizes(first, second, length):
    one = intervals.Interval("c", 0, first)
    other = intervals.Interval("c", 20, 20 + second)
    pair = sentence_pairs.Pair(one, other, False)
    row = sentence_pairs.row(genome, pair, tokenizer, length)
    ends = np.flatnonzero(row["ids"] == tokenizers.SEP)
    assert row["ids"][0] == tokenizers.CLS and len(ends) == 2
    assert row["valid"].sum() == ends[1] + 1
    assert row["type_ids"].sum() == ends[1] - ends[0]
    return int(ends[0]) - 1, int(ends[1] - ends[0]) - 1

  assert sizes(5, 6, 20) == (5, 6)
  assert sizes(5, 18, 15) == (5, 7)
  assert sizes(18, 5, 15) == (7, 5)
  assert sizes(18, 18, 15) == (6, 6)


def test_pairs_that_cannot_be_are_refused():
  one = [intervals.Interval("c", 0, 4), intervals.Interval("c", 4, 8)]
  with pytest.raises(files.UserError, match="1 documents have runs"):
    list(sentence_pairs.pairs([one]))
  with pytest.raises(files.UserError, match="share lie in"):
    list(sentence_pairs.pairs([one, one], share=2))
