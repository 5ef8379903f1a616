"""Corpora and their splits."""

import zipfile

import pytest

from experiments.common import fetch
from experiments.common import files
from experiments.lm import data
from tests.experiments import tiny


def _parts(corpus):
  return {p: getattr(corpus, p) for p in ("train", "valid", "test")}


def test_stdlib_is_split_into_disjoint_files():
  corpus = data.load("stdlib")
  names = [n for s in _parts(corpus).values() for n in s.names]
  assert len(names) == len(set(names))
  assert all(s.num_bytes for s in _parts(corpus).values())
  assert corpus.train.num_bytes > 4_000_000
  for name in names:
    assert not {"test", "tests", "site-packages"} & set(name.split("/"))
  again = data.load("stdlib")
  assert again.test.digest() == corpus.test.digest()


def test_a_document_stays_in_its_part():
  few = data.split_by_hash("a", [(f"{i}", b"x") for i in range(50)])
  many = data.split_by_hash("a", [(f"{i}", b"y") for i in range(500)])
  for part, split in _parts(few).items():
    assert set(split.names) <= set(getattr(many, part).names)


def test_limits_take_whole_documents(tmp_path):
  folder = tiny.write_corpus(tmp_path / "texts")
  full = data.load("folder", str(folder))
  some = data.load("folder", str(folder), held_out_bytes=700, train_bytes=3000)
  for part, limit in (("train", 3000), ("valid", 700), ("test", 700)):
    whole, cut = getattr(full, part), getattr(some, part)
    known = dict(zip(whole.names, whole.texts, strict=True))
    assert 0 < cut.num_bytes <= limit
    assert all(known[n] == t for n, t in zip(cut.names, cut.texts, strict=True))
  assert full.train.digest() != some.train.digest()


def test_folder_skips_hidden_files(tmp_path):
  folder = tiny.write_corpus(tmp_path / "texts")
  (folder / ".secret").write_text("x")
  corpus = data.load("folder", str(folder))
  assert sum(len(s.names) for s in _parts(corpus).values()) == 60


def test_one_file_is_split_in_order(tmp_path):
  path = tmp_path / "a.txt"
  text = bytes(i % 251 for i in range(1000))
  path.write_bytes(text)
  corpus = data.load("file", str(path))
  assert b"".join(s.texts[0] for s in _parts(corpus).values()) == text
  sizes = [s.num_bytes for s in _parts(corpus).values()]
  assert sizes == [900, 50, 50]


@pytest.mark.parametrize("name", ["enwik8", "text8"])
@pytest.mark.parametrize("form", ["file", "folder", "zip"])
def test_enwik8_has_the_split_of_the_papers(tmp_path, monkeypatch, name, form):
  """In small; the size is that of the real file otherwise."""
  monkeypatch.setattr(data, "_ENWIK_BYTES", 1000)
  text = bytes(i % 251 for i in range(1000))
  path = tmp_path / name
  path.write_bytes(text)
  if form == "zip":
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr(name, text)
  corpus = data.load(name, str(tmp_path if form == "folder" else path))
  assert corpus.train.texts[0] == text[:900]
  assert corpus.valid.texts[0] == text[900:950]
  assert corpus.test.texts[0] == text[950:]


def test_errors_say_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXATTN_DATA", str(tmp_path / "cache"))
  short = tmp_path / "enwik8"
  short.write_bytes(b"x" * 99)
  few = tmp_path / "few"
  few.mkdir()
  (few / "a.txt").write_text("x")
  cases = [
    (("nope", ""), "unknown corpus 'nope'; known: .*stdlib"),
    (("enwik8", ""), "needs --config.path"),
    (("enwik8", str(tmp_path / "no")), "cannot read .*mattmahoney"),
    (("enwik8", str(short)), "has 99 bytes; enwik8 has 100,000,000"),
    (("folder", str(tmp_path / "no")), "no folder that exists"),
    (("folder", str(few)), "part of corpus 'folder' is empty"),
    (("file", str(tmp_path)), "cannot read .*[Dd]irectory"),
    (("stdlib", "x"), "takes no --config.path"),
    (("enwiki", ""), "python -m experiments.common.fetch enwiki"),
  ]
  for (name, path), message in cases:
    with pytest.raises(files.UserError, match=message) as error:
      data.load(name, path)
    assert "\n" not in str(error.value)


def test_fetched_texts(tmp_path, monkeypatch):
  """One text is split in order, few by name, many by hash."""
  monkeypatch.setenv("JAXATTN_DATA", str(tmp_path))
  for count in (1, 6, 200):
    with zipfile.ZipFile(tmp_path / "austen.zip", "w") as archive:
      for i in range(count):
        archive.writestr(f"novel {i:03d}", b"text " * 100)
    assert len(fetch.load("austen")) == count
    corpus = data.load("austen")
    if count == 6:
      assert corpus.test.names == ("novel 005",)
      assert corpus.valid.names == ("novel 004",)
      assert len(corpus.train.names) == 4
