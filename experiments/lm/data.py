"""Corpora: documents, split once and for all into train, valid and test."""

import dataclasses
import hashlib
import pathlib
import sysconfig
import zipfile
from collections.abc import Callable
from collections.abc import Sequence

from experiments.common import fetch
from experiments.common import files
from experiments.common import sources

Documents = list[tuple[str, bytes]]  # (name, text), in a fixed order.

_ENWIK_BYTES = 100_000_000
# Not learned from or measured on. Slim installations lack the tests, so without
# them the split is the same everywhere; the others are generated tables.
_STDLIB_SKIP = frozenset(
  {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
  }
)


@dataclasses.dataclass(frozen=True)
class Split:
  """Documents of one part of a corpus.

  Attributes:
    names: of the documents; relative paths where they come from files.
    texts: their bytes.
  """

  names: tuple[str, ...]
  texts: tuple[bytes, ...]

  @property
  def num_bytes(self) -> int:
    """Bytes of all documents."""
    return sum(len(t) for t in self.texts)

  def digest(self) -> str:
    """Identifies the content: SHA-256 over names and texts, 16 digits."""
    state = hashlib.sha256()
    for name, text in zip(self.names, self.texts, strict=True):
      state.update(f"{len(name)} {len(text)} {name}".encode())
      state.update(text)
    return state.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A corpus and its split.

  Attributes:
    name: for the report.
    rule: how it is split, in words.
    train: to learn from.
    valid: to watch while training.
    test: for the result.
  """

  name: str
  rule: str
  train: Split
  valid: Split
  test: Split

  def digests(self) -> dict[str, str]:
    """Of the three parts, by which a run knows its text again."""
    parts = ("train", "valid", "test")
    return {f"text.{part}": getattr(self, part).digest() for part in parts}


def load(
  name: str, path: str = "", *, held_out_bytes: int = 0, train_bytes: int = 0
) -> Corpus:
  """Loads a corpus.

  Args:
    name: a key of `CORPORA`.
    path: of the user's file or folder, where the corpus is one.
    held_out_bytes: about how much of valid and of test to use; 0 for all.
      Whole documents are taken, in the order of their hashes; of a corpus that
      is one text, its beginning.
    train_bytes: the same for train.

  Returns:
    The corpus; the three parts share no document.

  Raises:
    UserError: if the name is unknown, something is missing or cannot be read,
      or a part is empty.
  """
  if name not in CORPORA:
    raise files.UserError(
      f"unknown corpus {name!r}; known: {', '.join(sorted(CORPORA))}."
    )
  needs_path = name in _LOCAL
  if needs_path and not path:
    raise files.UserError(
      f"corpus {name!r} needs --config.path, the path of {_LOCAL[name]}."
    )
  if path and not needs_path:
    raise files.UserError(
      f"corpus {name!r} takes no --config.path, got {path!r}; corpora that do: "
      f"{', '.join(_LOCAL)}."
    )
  corpus = CORPORA[name](path)
  parts = {
    "train": limit(corpus.train, train_bytes),
    "valid": limit(corpus.valid, held_out_bytes),
    "test": limit(corpus.test, held_out_bytes),
  }
  for part, split in parts.items():
    if not split.num_bytes:
      raise files.UserError(
        f"the {part} part of corpus {name!r} is empty: too few documents to be "
        "split by hash. Take --config.corpus=file on one long text."
      )
  return dataclasses.replace(corpus, **parts)


def split_by_hash(name: str, documents: Documents) -> Corpus:
  """Splits documents by a hash of their names: 5 % valid, 5 % test.

  A document's part depends on its name alone, so that it stays where it is when
  others come or go.

  Args:
    name: of the corpus.
    documents: names and texts.

  Returns:
    The corpus.

  Example:
    >>> docs = [(f"{i}.txt", b"text") for i in range(200)]
    >>> corpus = split_by_hash("a", docs)
    >>> [len(s.names) for s in (corpus.train, corpus.valid, corpus.test)]
    [178, 12, 10]
  """
  parts: dict[str, list] = {"train": [], "valid": [], "test": []}
  for document, text in documents:
    if text:
      place = _hash(document) / 2**64
      part = "test" if place < 0.05 else "valid" if place < 0.1 else "train"
      parts[part].append((document, text))
  rule = "whole documents, by SHA-256 of their names: 90 % / 5 % / 5 %"
  return Corpus(name, rule, *map(_split, parts.values()))


def split_text(name: str, text: bytes, *, unit: int = 0) -> Corpus:
  """Splits one text in order: first 90 %, next 5 %, last 5 %.

  Args:
    name: of the corpus.
    text: all of it.
    unit: bytes of 5 %; 0 for a twentieth of the text.

  Returns:
    The corpus; each part is one document.

  Example:
    >>> split_text("a", bytes(100)).train.num_bytes
    90

  Source: the split of enwik8 and text8 since Mikolov et al., 2012.
  """
  unit = unit or len(text) // 20
  cuts = {
    "train": text[: len(text) - 2 * unit],
    "valid": text[len(text) - 2 * unit : len(text) - unit],
    "test": text[len(text) - unit :],
  }
  rule = "in order: first 90 %, next 5 %, last 5 % of the bytes"
  return Corpus(name, rule, *(_split([(k, v)]) for k, v in cuts.items()))


def _split(documents: Documents) -> Split:
  return Split(tuple(n for n, _ in documents), tuple(t for _, t in documents))


def _hash(name: str) -> int:
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def limit(split: Split, num_bytes: int) -> Split:
  """Documents in the order of a second hash, until `num_bytes` are reached."""
  if not num_bytes or split.num_bytes <= num_bytes:
    return split
  if len(split.texts) == 1:
    return Split(split.names, (split.texts[0][:num_bytes],))
  kept, total = set(), 0
  for i in sorted(
    range(len(split.names)), key=lambda i: _hash("order " + split.names[i])
  ):
    if not kept or total + len(split.texts[i]) <= num_bytes:
      kept.add(i)
      total += len(split.texts[i])
  rows = [(split.names[i], split.texts[i]) for i in sorted(kept)]
  return _split(rows)


def _folder(root: pathlib.Path, paths: Sequence[pathlib.Path]) -> Documents:
  return [(p.relative_to(root).as_posix(), files.read_bytes(p)) for p in paths]


def _stdlib(path: str) -> Corpus:
  del path
  root = pathlib.Path(sysconfig.get_paths()["stdlib"])
  paths = sorted(
    p
    for p in root.rglob("*.py")
    if not _STDLIB_SKIP & set(p.relative_to(root).parts)
    and not p.name.startswith("_sysconfigdata")
  )
  if not paths:
    raise files.UserError(
      f"no .py files in {root}: this Python has its standard library in an "
      "archive. Take --config.corpus=folder with --config.path."
    )
  return split_by_hash("Python standard library", _folder(root, paths))


def _user_folder(path: str) -> Corpus:
  root = pathlib.Path(path)
  if not root.is_dir():
    raise files.UserError(
      f"--config.path={path} is no folder that exists. For one file take "
      "--config.corpus=file."
    )
  paths = sorted(
    p
    for p in root.rglob("*")
    if p.is_file()
    and not any(s.startswith(".") for s in p.relative_to(root).parts)
  )
  return split_by_hash(f"folder {root.resolve().name}", _folder(root, paths))


def _user_file(path: str) -> Corpus:
  text = files.read_bytes(path, "Check --config.path.")
  if len(text) < 40:
    raise files.UserError(f"{path} has {len(text)} bytes, too few to split.")
  return split_text(f"file {pathlib.Path(path).name}", text)


def _enwik(name: str) -> Callable[[str], Corpus]:
  def read(path: str) -> Corpus:
    cure = (
      f"Get {name}.zip from http://mattmahoney.net/dc/textdata.html and give "
      "its path, or that of the file in it, as --config.path."
    )
    place = pathlib.Path(path)
    place = place / name if place.is_dir() else place
    if place.suffix == ".zip":
      try:
        with zipfile.ZipFile(place) as archive:
          text = archive.read(name)
      except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise files.UserError(
          f"cannot read {place}: {error}. {cure}"
        ) from error
    else:
      text = files.read_bytes(place, cure)
    if len(text) != _ENWIK_BYTES:
      raise files.UserError(
        f"{place} has {len(text):,} bytes; {name} has {_ENWIK_BYTES:,}. {cure}"
      )
    return split_text(name, text, unit=_ENWIK_BYTES // 20)

  return read


def _fetched(name: str) -> Callable[[str], Corpus]:
  def read(path: str) -> Corpus:
    del path
    documents = fetch.load(name)
    if len(documents) == 1:
      return split_text(name, documents[0][1])
    if len(documents) >= 100:
      return split_by_hash(name, documents)
    # Too few for a hash: the last but one is valid, the last is test.
    *train, valid, test = documents
    rule = f"test is {test[0]!r}, valid {valid[0]!r}, train the others"
    return Corpus(name, rule, _split(train), _split([valid]), _split([test]))

  return read


# Those that need a path, and what of.
_LOCAL = {
  "enwik8": "the file enwik8 or enwik8.zip",
  "text8": "the file text8 or text8.zip",
  "folder": "a folder of text files",
  "file": "a text file",
}

CORPORA: dict[str, Callable[[str], Corpus]] = {
  "stdlib": _stdlib,
  "enwik8": _enwik("enwik8"),
  "text8": _enwik("text8"),
  "folder": _user_folder,
  "file": _user_file,
  **{n: _fetched(n) for n, s in sources.SOURCES.items() if s.kind == "text"},
}
