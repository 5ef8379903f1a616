"""Rows of several contigs: whole, and none sees another."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from genomics import alphabet
from genomics import classify
from genomics import genome as genome_lib
from genomics import intervals
from genomics import tokenizers
from genomics.pretrain import packed
from genomics.pretrain import rows as single
from tests.genomics import tiny

_RNG = np.random.default_rng(0)
_SIZES = (9, 30, 12, 41, 17, 5, 8)
_GENOME = genome_lib.InMemory(
  {
    f"c{i}": alphabet.decode(_RNG.integers(0, 4, n).astype(np.uint8))
    for i, n in enumerate(_SIZES)
  }
)
_WINDOWS = [intervals.Interval(f"c{i}", 0, n) for i, n in enumerate(_SIZES)]


def _rows(name="nucleotide", **form):
  tokenizer = tokenizers.make(name)
  return packed.Rows(_GENOME, _WINDOWS, tokenizer, 48, bases=46, **form)


def test_rows_are_as_full_as_they_can_be():
  found = packed.pack([9, 4, 4, 1, 10], 10)
  assert sorted(sum(found, [])) == [0, 1, 2, 3, 4]
  assert [sum((9, 4, 4, 1, 10)[i] for i in x) for x in found] == [10, 10, 8]
  with pytest.raises(ValueError, match="more than a row"):
    packed.pack([11], 10)


def test_pieces_end_at_unknown_bases_and_at_regions():
  genome = genome_lib.InMemory({"a": "ACGTNACGTACGTNN", "b": "A"})
  regions = [intervals.Interval("a", 1, 12), intervals.Interval("b", 0, 1)]
  found = packed.pieces(genome, regions, 5, least=2)
  assert [(x.start, x.end) for x in found] == [(1, 4), (5, 10), (10, 12)]
  with pytest.raises(files.UserError, match="least_bases"):
    packed.pieces(genome, regions[1:], 5, least=2)


@pytest.mark.parametrize("name", ["nucleotide", "kmer:3"])
def test_every_piece_is_in_one_row_on_both_strands(name):
  rows, seen = _rows(name, both_strands=True), []
  tokenizer = tokenizers.make(name)
  half = len(rows) // 2
  for index in range(len(rows)):
    row = rows[index]
    assert np.array_equal(row["valid"], row["segments"] > 0)
    covered = np.zeros(46, int)
    for segment in range(1, row["segments"].max() + 1):
      at = np.flatnonzero(row["segments"] == segment)
      assert row["positions"][at].tolist() == list(range(len(at)))
      ids = row["ids"][at]
      assert (ids[0], ids[-1]) == (tokenizers.CLS, tokenizers.SEP)
      codes = tokenizer.decode(ids[1:-1])
      if index >= half:
        codes = alphabet.reverse_complement(codes)
      seen.append((index >= half, alphabet.decode(codes)))
      for low, high in zip(row["starts"][at], row["ends"][at], strict=True):
        covered[low:high] += 1
    assert covered.max() == 1  # Bases of a row are counted on.
  texts = [_GENOME.letters(x.chrom, x.start, x.end).decode() for x in _WINDOWS]
  assert sorted(seen) == sorted((b, x) for b in (False, True) for x in texts)


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_contigs_do_not_see_each_other(objective):
  """Logits of each are those of a row that holds it alone."""
  train = tiny.module("pretrain")
  loaded = importlib.import_module("genomics.pretrain.configs.packed_smoke")
  config = loaded.get_config()
  config.objective, config.length, config.bases = objective, 48, 46
  model = train.make_model(config, 9)
  init = jax.jit(lambda key, x: model.init(key, x))
  variables = classify.nn.unbox(init(jax.random.key(0), jnp.zeros((1, 8), int)))

  @jax.jit
  def logits(batch):
    return model.apply(variables, batch["ids"], **train._seen(config, batch))

  def of(row):
    batch = {k: jnp.asarray(x)[None] for k, x in row.items() if k != "index"}
    return np.asarray(logits(batch))[0]

  rows = _rows()
  alone = single.Rows(_GENOME, _WINDOWS, tokenizers.make("nucleotide"), 48)
  several = [i for i in range(len(rows)) if rows[i]["segments"].max() > 1]
  assert several
  row = rows[several[0]]
  found = of(row)
  for segment, piece in enumerate(rows._groups[several[0]], 1):
    at = np.flatnonzero(row["segments"] == segment)
    wanted = of(alone[piece])[: len(at)]
    assert np.allclose(found[at], wanted, atol=1e-5)
  # The last one would see those before, if it were of their segment.
  other = dict(row, segments=np.minimum(row["segments"], 1))
  assert not np.allclose(of(other)[at], wanted, atol=1e-4)


def test_pieces_longer_than_rows_are_named():
  with pytest.raises(files.UserError, match="a piece of 41 bases"):
    tokenizer = tokenizers.make("nucleotide")
    packed.Rows(_GENOME, _WINDOWS, tokenizer, 40, bases=46)


@pytest.mark.slow
def test_a_packed_run_in_small(tmp_path):
  loaded = importlib.import_module("genomics.pretrain.configs.packed_smoke")
  config = loaded.get_config()
  config.mesh, config.steps = "data=1,fsdp=1", 3
  found = tiny.module("pretrain").run(config, tmp_path)
  assert np.isfinite(found["scores"]["bits_per_base"])
  assert "at most 62 bases" in (tmp_path / "report/report.md").read_text()
