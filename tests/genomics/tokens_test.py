"""Tokenizers, corpora, and bits that compare."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from genomics import alphabet
from genomics import corpus
from genomics import genome as genome_lib
from genomics import intervals
from genomics import tokenizers


def _random(length: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 4, length).astype(np.uint8)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
  pytest.importorskip("sentencepiece")
  genome = genome_lib.InMemory({"c": alphabet.decode(_random(20_000)) + "NN"})
  rows = tokenizers.sentences(genome, ["c"])
  path = tmp_path_factory.mktemp("pieces") / "a.model"
  return tokenizers.train_pieces(rows, path, vocab_size=64)


def _all(pieces):
  names = ("nucleotide", "kmer:3", "overlapping_kmer:3")
  return [*map(tokenizers.make, names), pieces]


def test_tokens_spell_the_bases_and_come_back(pieces):
  codes = alphabet.encode("ACGTACGGTNACGTNNACGTTGCAAC")
  for tokenizer in _all(pieces):
    found = tokenizer.encode(codes)
    assert found.ids.max() < tokenizer.vocab_size
    assert found.ids.min() >= tokenizers.UNK
    if not tokenizer.overlapping:
      assert found.starts[0] == 0 and found.ends[-1] == len(codes)
      assert np.array_equal(found.starts[1:], found.ends[:-1])
      assert np.array_equal(tokenizer.decode(found.ids), codes)
      assert found.num_bases == np.sum(codes < 4) or tokenizer is pieces
    clean = _random(50)
    again = tokenizer.decode(tokenizer.encode(clean).ids)
    assert np.array_equal(again, clean)


def test_frames_of_whole_kmers():
  """As by hand: what is left before N and at the end is single letters."""
  tokenizer = tokenizers.KmerTokenizer(3)
  found = tokenizer.encode(alphabet.encode("ACGTNGGGCCCA"))
  texts = [alphabet.decode(tokenizer.decode(x[None])) for x in found.ids]
  assert texts == ["ACG", "T", "N", "GGG", "CCC", "A"]


def test_bases_a_token_and_bits_by_hand(pieces):
  """Three tokens whose bits are 1, 2 and 3, over the bases that they spell."""
  bits = np.array([1.0, 2.0, 3.0])
  for tokenizer, bases in (
    (tokenizers.NucleotideTokenizer(), 3),
    (tokenizers.KmerTokenizer(2), 6),
    (tokenizers.OverlappingKmerTokenizer(2), 4),
  ):
    codes = _random(bases)
    found = tokenizer.encode(codes)
    assert len(found.ids) == 3
    got = corpus.bits_per_base(bits, found, np.ones(3, bool))
    assert got == pytest.approx(6 / bases)
    assert tokenizers.bases_per_token(tokenizer, codes) == bases / 3
  codes = _random(40)
  found = pieces.encode(codes)
  some = np.zeros(len(found.ids), bool)
  some[:3] = True
  bits = np.ones(len(found.ids))
  spelled = int(found.ends[2])
  assert corpus.bits_per_base(bits, found, some) == pytest.approx(3 / spelled)


def test_unknown_bases_count_nowhere():
  tokens = tokenizers.NucleotideTokenizer().encode(alphabet.encode("ANC"))
  bits = np.array([2.0, 99.0, 2.0])
  assert corpus.bits_per_base(bits, tokens, np.ones(3, bool)) == 2.0
  with pytest.raises(ValueError, match="no known base"):
    corpus.bits_per_base(bits, tokens, np.array([False, True, False]))


def test_a_uniform_model_has_two_bits_a_base():
  """Whatever the tokenizer, if tokens have 4^-length of the chances."""
  codes = _random(60)
  for name, size in (("nucleotide", 1), ("kmer:3", 3)):
    found = tokenizers.make(name).encode(codes)
    bits = np.full(len(found.ids), size * math.log2(4))
    assert corpus.bits_per_base(bits, found, np.ones_like(bits, bool)) == 2.0


def _hide(tokenizer, codes, masking, seed=3):
  tokens = tokenizer.encode(codes)
  parts = (tokens.ids, tokens.starts, tokens.ends, tokens.known)
  hide = functools.partial(
    corpus.mask_tokens,
    vocab_size=tokenizer.vocab_size,
    length=len(codes),
    masking=masking,
  )
  rows = (jnp.asarray(x, bool if x.dtype == bool else jnp.int32) for x in parts)
  return tokens, jax.jit(hide)(jax.random.key(seed), *rows)


def test_masks_are_of_bases_first(pieces):
  """Every hidden base's tokens are guessed, and no unknown one is."""
  masking = corpus.Masking(rate=0.1, span=4, keep=0, swap=0)
  codes = np.concatenate([_random(300), np.full(20, 4, np.uint8)])
  first = jax.random.split(jax.random.key(3), 3)[0]
  bases = np.asarray(corpus.hidden_bases(first, len(codes), masking))
  for tokenizer in _all(pieces):
    tokens, found = _hide(tokenizer, codes, masking)
    shown, guess = np.asarray(found.shown), np.asarray(found.guess)
    for i in range(len(guess)):
      touched = bases[tokens.starts[i] : tokens.ends[i]].any()
      assert guess[i] == (touched and tokens.known[i])
    assert np.array_equal(guess, found.replaced)
    assert np.all((shown == tokenizers.MASK) == guess)
    assert np.array_equal(shown[~guess], tokens.ids[~guess])
    assert found.bases == tokenizers.covered(tokens, guess).sum()


@pytest.mark.parametrize("span", [1.0, 6.0])
def test_rate_and_shares_of_masks(span):
  masking = corpus.Masking(rate=0.15, span=span)
  tokenizer = tokenizers.NucleotideTokenizer()
  tokens, found = _hide(tokenizer, _random(200_000), masking)
  shown, guess = np.asarray(found.shown), np.asarray(found.guess)
  # Four standard errors of 200,000 / span draws.
  assert abs(guess.mean() - 0.15) < 4 * math.sqrt(0.13 * span / 2e5)
  assert abs(found.replaced.sum() / guess.sum() - 0.8) < 0.02
  kept = np.mean(shown[guess] == tokens.ids[guess])
  assert abs(kept - 0.125) < 0.02  # 10 %, and a quarter of 10 % by chance.
  if span == 6:
    runs = np.flatnonzero(np.diff(np.pad(guess.astype(int), 1)))
    assert np.mean(runs[1::2] - runs[::2]) > 5


def test_documents_of_bigbird():
  genome = genome_lib.InMemory({"c": "A" * 300_000})
  found = list(corpus.bigbird_documents(genome, ["c"], passes=3))
  firsts = [x[0].start for x in found]
  assert sum(x <= 5000 for x in firsts) == 3
  for document in found:
    ends = [x.end for x in document]
    assert [x.start for x in document[1:]] == ends[:-1]
    if ends[-1] < 300_000:
      assert 50 <= len(document) <= 100
      assert all(500 <= x.length <= 1000 for x in document)
  again = list(corpus.bigbird_documents(genome, ["1c"[1:]], passes=3))
  assert again == found


def test_windows_drop_what_is_not_known():
  genome = genome_lib.InMemory({"c": "ACGTNNNNACGTNACG"})
  region = [intervals.Interval("c", 0, 16)]
  found = corpus.windows(genome, region, 4)
  assert [x.start for x in found] == [0, 8, 12]
  with pytest.raises(files.UserError, match="no window of 40"):
    corpus.windows(genome, region, 40)


def test_pieces_refuse_other_models(pieces, tmp_path):
  path = tmp_path / "b.model"
  path.write_bytes(b"nonsense")
  with pytest.raises(files.UserError, match="no SentencePiece model"):
    tokenizers.make(str(path))
  with pytest.raises(files.UserError, match="unknown tokenizer"):
    tokenizers.make("wordpiece")
  with pytest.raises(files.UserError, match="cannot train 9999"):
    tokenizers.train_pieces(["ACGT"], tmp_path / "c.model", vocab_size=9999)
  assert not (tmp_path / "c.model").exists()
  assert 1 < tokenizers.bases_per_token(pieces, _random(5000, 1)) < 5
