"""Documents and their classes, split, and as rows of tokens."""

import collections
import dataclasses
import hashlib
import pathlib
import sysconfig
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from experiments.common import data as rows_lib
from experiments.common import encoders
from experiments.common import fetch
from experiments.common import files
from experiments.common import tokens as tokens_lib

# Of the standard library: packages with enough files to be told apart.
_PACKAGES = (
  "asyncio",
  "email",
  "encodings",
  "multiprocessing",
  "unittest",
  "xml",
)
_UNLABELLED = "unsup"  # The folder of IMDB without classes.
Named = list[tuple[str, bytes]]  # "class/name" or "part/class/name", text.


@dataclasses.dataclass(frozen=True)
class Part:
  """Documents of one part of a corpus.

  Attributes:
    texts: a document each.
    labels: `[n]` int32, the class of each.
  """

  texts: list[bytes]
  labels: np.ndarray

  def digest(self) -> str:
    """Identifies documents and classes: SHA-256, 16 digits."""
    found = hashlib.sha256(self.labels.tobytes())
    for text in self.texts:
      found.update(len(text).to_bytes(8, "big") + text)
    return found.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents with classes, and their split.

  Attributes:
    name: for the report.
    how: how it is split, in words.
    classes: their names, by label.
    train: to learn from.
    valid: to watch while training.
    test: for the result.
  """

  name: str
  how: str
  classes: tuple[str, ...]
  train: Part
  valid: Part
  test: Part


def load(corpus: str, *, path: str = "", train_documents: int = 0) -> Corpus:
  """Loads a corpus.

  Args:
    corpus: `reviews` or `newsgroups`, which are fetched; `stdlib`, files of
      the standard library by package; `folder`, such as aclImdb.
    path: of `folder`: folders of classes, or `train` and `test` (and `valid`)
      with these inside.
    train_documents: how many to learn from, at most; 0 for all.

  Returns:
    The corpus; equal texts are always in the same part, unless the corpus
    comes split.

  Raises:
    UserError: if the name is unknown, or the data are not here or not so.

  Example:
    >>> load("stdlib").classes[:2]
    ('asyncio', 'email')

  Source: Maas et al., 2011 (IMDB), https://aclanthology.org/P11-1015; Pang and
  Lee, 2004 (`reviews`), https://aclanthology.org/P04-1035.
  """
  if corpus not in _CORPORA:
    raise files.UserError(
      f"unknown corpus {corpus!r}; known: {', '.join(sorted(_CORPORA))}."
    )
  if bool(path) != (corpus == "folder"):
    raise files.UserError(
      "--config.path goes with --config.corpus=folder, and only with it; got "
      f"corpus {corpus!r} and path {path!r}."
    )
  name, how = corpus, "as it comes"
  parts = _parts(_CORPORA[corpus](path))
  if "test" not in parts:
    how, parts = "8:1:1 by a hash of the text", _split(parts["train"], 10, True)
  elif "valid" not in parts:
    how += ", validation one in ten of its training part by a hash of the text"
    parts = parts | _split(parts["train"], 10, False)
  classes = tuple(sorted({label for label, _ in parts["train"]}))
  made = {}
  for part in ("train", "valid", "test"):
    made[part] = _make(parts[part], classes, f"{part} part of {name!r}")
  if train_documents:
    made["train"] = _first(made["train"], train_documents)
  return Corpus(name, how, classes, **made)


def _parts(documents: Named) -> dict[str, Named]:
  """Part -> (class, text); all of it is `train` where names say nothing."""
  found: dict[str, Named] = collections.defaultdict(list)
  apart = all(
    name.split("/")[0] in ("train", "valid", "test") for name, _ in documents
  )
  for name, text in documents:
    part, _, rest = name.partition("/") if apart else ("train", "", name)
    label = rest.partition("/")[0]
    if label != _UNLABELLED and text.strip():
      found[part].append((label, text))
  return dict(found)


def _split(documents: Named, share: int, test: bool) -> dict[str, Named]:
  """One in `share` for `valid`, and one for `test` if it is wanted."""
  found: dict[str, Named] = {"train": [], "valid": []}
  if test:
    found["test"] = []
  for label, text in documents:
    place = _hash(text) % share
    part = {0: "valid", 1: "test"}.get(place, "train")
    found[part if part in found else "train"].append((label, text))
  return found


def _hash(text: bytes) -> int:
  return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _make(documents: Named, classes: Sequence[str], what: str) -> Part:
  unknown = sorted({label for label, _ in documents} - set(classes))
  if unknown:
    raise files.UserError(
      f"the {what} has classes that are not in its training part: "
      f"{', '.join(unknown)}."
    )
  if not documents or len(classes) < 2:
    raise files.UserError(
      f"the {what} has {len(documents)} documents of {len(classes)} classes; "
      "at least one document in each part and two classes are needed."
    )
  # In an order of chance: the names come sorted by class.
  documents = sorted(documents, key=lambda d: _hash(b"order" + d[1]))
  index = {label: i for i, label in enumerate(classes)}
  labels = np.array([index[label] for label, _ in documents], np.int32)
  return Part([text for _, text in documents], labels)


def _first(part: Part, count: int) -> Part:
  return Part(part.texts[:count], part.labels[:count])


def _read(root: pathlib.Path, pattern: str) -> Named:
  paths = sorted(p for p in root.glob(pattern) if p.is_file())
  return [(p.relative_to(root).as_posix(), files.read_bytes(p)) for p in paths]


def _stdlib(path: str) -> Named:
  del path
  root = pathlib.Path(sysconfig.get_paths()["stdlib"])
  return [d for name in _PACKAGES for d in _read(root, f"{name}/**/*.py")]


def _folder(path: str) -> Named:
  root = pathlib.Path(path)
  # IMDB's folders of classes stand inside those of its parts; beside them lie
  # lists of words, which are no documents.
  found = [
    d
    for part in ("train", "valid", "test")
    for d in _read(root, f"{part}/*/**/*")
  ]
  found = found or _read(root, "*/**/*")
  if not found:
    raise files.UserError(
      f"{path} holds no documents: --config.path must be a folder of folders, "
      "one for each class, or of train and test with these inside."
    )
  return found


_CORPORA: dict[str, Callable[[str], Named]] = {
  "reviews": lambda path: fetch.load("reviews"),
  "newsgroups": lambda path: fetch.load("newsgroups"),
  "stdlib": _stdlib,
  "folder": _folder,
}


class Rows:
  """Documents as rows of an encoder, by random access.

  A row is the separator, which stands for the whole, and the document's first
  `length - 1` tokens, then padding.

  Args:
    part: the documents.
    tokenizer: of `experiments.common.tokens`.
    length: tokens in a row.

  Example:
    >>> part = Part([b"ab"], np.array([1], np.int32))
    >>> row = Rows(part, tokens_lib.Bytes(), 4)[0]
    >>> row["tokens"].tolist(), int(row["label"])
    ([256, 97, 98, 256], 1)
    >>> row["valid"].tolist()
    [True, True, True, False]

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805.
  """

  def __init__(self, part: Part, tokenizer: tokens_lib.Tokenizer, length: int):
    self._length, self._pad = length, tokenizer.separator
    ids = tokenizer.encode(part.texts)
    self.cut = float(np.mean([len(x) > length - 1 for x in ids]))
    self._ids = [x[: length - 1] for x in ids]
    self._labels = part.labels

  def __len__(self) -> int:
    return len(self._ids)

  def __getitem__(self, index: int) -> rows_lib.Batch:
    ids = np.concatenate([[self._pad], self._ids[int(index)]])
    tokens, valid = encoders.padded(ids, self._length, self._pad)
    label = self._labels[int(index)]
    return {"tokens": tokens, "valid": valid, "label": label}

  def batches(self, batch_size: int) -> Iterator[rows_lib.Batch]:
    """All rows once; `counts` is 0 for those that fill up the last batch."""
    for low in range(0, len(self), batch_size):
      index = np.arange(low, low + batch_size)
      rows = [self[int(i)] for i in index % len(self)]
      batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
      yield batch | {"counts": (index < len(self)).astype(np.float32)}
