"""Bytes and byte-pair encodings."""

import sys

import numpy as np
import pytest
import tokenizers

from experiments.common import files
from experiments.common import tokens

_TEXTS = [b"hello hello world\n" * 5, "größer\tals 3 €".encode()]


def test_bytes_come_back():
  tokenizer = tokens.Bytes()
  assert tokenizer.vocab_size == 257
  (ids,) = tokenizer.encode([_TEXTS[1]])
  assert tokenizer.decode(ids).encode() == _TEXTS[1]
  assert tokenizer.decode(np.array([256, 72, 105, 256])) == "Hi"


def test_bpe_is_lossless_and_shorter(tmp_path):
  path = tmp_path / "tokenizer.json"
  tokens.train_bpe(_TEXTS, vocab_size=280, path=path)
  tokenizer = tokens.Bpe(path)
  assert tokenizer.vocab_size <= 281
  assert tokenizer.separator == tokenizer.vocab_size - 1
  encoded = tokenizer.encode(_TEXTS)
  for ids, text in zip(encoded, _TEXTS, strict=True):
    assert tokenizer.decode(ids).encode() == text
    assert ids.max() < tokenizer.separator
  assert len(encoded[0]) < len(_TEXTS[0]) / 3
  assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_bpe_is_deterministic(tmp_path):
  for name in "ab":
    tokens.train_bpe(_TEXTS, vocab_size=280, path=tmp_path / name)
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_errors(tmp_path):
  path = tmp_path / "tokenizer.json"
  with pytest.raises(files.UserError, match="cannot read"):
    tokens.Bpe(path)
  path.write_text("{}")
  with pytest.raises(files.UserError, match=r"is not a tokenizer\.json"):
    tokens.Bpe(path)
  with pytest.raises(files.UserError, match=r"vocab_size must lie in \[256"):
    tokens.train_bpe(_TEXTS, vocab_size=100, path=path)
  with pytest.raises(files.UserError, match=r"not UTF-8.*tokenizer=bytes"):
    tokens.train_bpe([b"\xff"], vocab_size=256, path=path)
  assert path.read_text() == "{}"


def test_sentencepiece_is_loaded_as_it_is(tmp_path):
  path = tmp_path / "small.model"
  tokens.train_sentencepiece(_TEXTS * 9, vocab_size=275, path=path)
  tokenizer = tokens.load(path)
  assert tokenizer.vocab_size == 276
  ids = tokenizer.encode([b"hello world"])[0]
  assert tokenizer.decode(ids) == "hello world"
  same, spans = tokenizer.offsets("hello world")
  np.testing.assert_array_equal(same, ids)
  assert spans[0, 0] == 0 and spans[-1, 1] == len("hello world")


def _words(tokenizer, text):
  """Words by `edges`, as strings."""
  first, last = tokenizer.edges()
  (ids,) = tokenizer.encode([text.encode()])
  starts = [
    i for i, t in enumerate(ids) if not (i and last[ids[i - 1]] and first[t])
  ]
  groups = zip(starts, [*starts[1:], len(ids)], strict=True)
  return [tokenizer.decode(ids[a:b]) for a, b in groups]


def test_words_of_bytes_and_pieces(tmp_path):
  text = "größer als 3 €, hello"
  want = ["größer", " ", "als", " ", "3", " ", "€", ",", " ", "hello"]
  assert _words(tokens.Bytes(), text) == want
  path = tmp_path / "tokenizer.json"
  tokens.train_bpe(_TEXTS, vocab_size=280, path=path)
  for word in ("größer", "als", "hello"):
    found = _words(tokens.Bpe(path), text)
    assert sum(word in x for x in found) == 1, found


def test_wordpieces_go_on_after_a_mark(tmp_path):
  model = tokenizers.models.WordPiece(
    {"[UNK]": 0, "play": 1, "##ing": 2, "the": 3}, unk_token="[UNK]"
  )
  pieces = tokenizers.Tokenizer(model)
  pieces.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  path = tmp_path / "tokenizer.json"
  pieces.save(str(path))
  tokenizer = tokens.load(path)
  first, last = tokenizer.edges()
  ids, spans = tokenizer.offsets("the playing")
  assert ids.tolist() == [3, 1, 2]
  assert spans.tolist() == [[0, 3], [4, 8], [8, 11]]
  inside = last[ids[:-1]] & first[ids[1:]]
  assert inside.tolist() == [False, True]


def test_offsets_of_bytes_count_characters():
  ids, spans = tokens.Bytes().offsets("aé")
  assert ids.tolist() == [97, 195, 169]
  assert spans.tolist() == [[0, 1], [1, 2], [1, 2]]


def test_the_command_trains_and_refuses(tmp_path, monkeypatch, capsys):
  (tmp_path / "a.txt").write_bytes(_TEXTS[0])

  def run(output, *flags):
    line = ["tokens", str(tmp_path / "*.txt"), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*line, "--vocab_size=270", *flags])
    return tokens.main()

  assert run(tmp_path / "t.json") == 0
  assert tokens.load(tmp_path / "t.json").vocab_size == 267
  assert run(tmp_path / "t.json", "--kind=unigram") == 1
  assert "must end in .json" in capsys.readouterr().err
  assert run(tmp_path / "t.model", "--vocab_size=99999") == 1
  assert "cannot be trained" in capsys.readouterr().err
  with pytest.raises(files.UserError, match="must be 'bytes'"):
    tokens.load(tmp_path / "a.txt")
  (tmp_path / "b.model").write_bytes(b"no")
  with pytest.raises(files.UserError, match="not a model of SentencePiece"):
    tokens.load(tmp_path / "b.model")
