"""Bytes and byte-pair encodings."""

import numpy as np
import pytest

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
