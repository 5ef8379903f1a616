"""Text to token ids: bytes, files of `tokenizers`, models of SentencePiece.

  python -m experiments.common.tokens --output=tokenizer.json TEXT...

trains a byte-level byte-pair encoding on text files, or with `--kind=unigram`
or `--kind=bpe` and an output that ends in `.model` a model of SentencePiece.
"""

import argparse
import dataclasses
import glob
import io
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers

from experiments.common import files

_MAX_VOCAB = 2**20
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")  # Of SentencePiece.
_WORD_BYTES = np.array([i >= 128 or chr(i).isalnum() for i in range(256)], bool)


class Tokenizer(Protocol):
  """What experiments ask of a tokenizer.

  Attributes:
    separator: id of the token before every document, the last of all.
    vocab_size: number of ids, the separator included.

  Example:
    >>> Bytes().vocab_size
    257

  Source: `Bytes`, `Bpe` and `SentencePiece` are ones.
  """

  @property
  def separator(self) -> int:
    """Id of the token before every document."""
    ...

  @property
  def vocab_size(self) -> int:
    """Number of ids, the separator included."""
    ...

  def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
    """Token ids of every document, without the separator."""
    ...

  def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[n]` of a text and, `[n, 2]`, the characters each stands for."""
    ...

  def decode(self, ids: np.ndarray) -> str:
    """Text of token ids; separators are dropped."""
    ...

  def edges(self) -> tuple[np.ndarray, np.ndarray]:
    """Whether tokens begin, and end, inside words: two of `[vocab_size]`.

    A word goes on where a token ends inside one and the next begins inside one.
    """
    ...

  def characters(self) -> np.ndarray:
    """Characters that tokens stand for, `[vocab_size]`; the separator's is 0.

    Of a character in several tokens its first has it.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Bytes:
  """One token a byte; ids 0 to 255, and the separator 256.

  The separator opens every document, so that its first byte is predicted too.
  It also fills padding, which segment id 0 marks; the end of a document is not
  predicted.

  Attributes:
    separator: id of the token before every document.

  Example:
    >>> Bytes().encode([b"Hi"])[0].tolist()
    [72, 105]

  Source: byte-level models, as Al-Rfou et al., 2018,
  https://arxiv.org/abs/1808.04444.
  """

  separator: int = 256

  @property
  def vocab_size(self) -> int:
    """Number of ids, the separator included."""
    return self.separator + 1

  def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
    """Token ids of every document, without the separator."""
    return [np.frombuffer(t, np.uint8).astype(np.uint16) for t in texts]

  def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the bytes of a text, and the character each belongs to."""
    sizes = [len(c.encode()) for c in text]
    start = np.repeat(np.arange(len(text)), sizes)
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
    return ids, np.stack([start, start + 1], axis=-1)

  def decode(self, ids: np.ndarray) -> str:
    """Text of token ids; separators are dropped."""
    ids = np.asarray(ids)
    data = ids[ids < self.separator].astype(np.uint8).tobytes()
    return data.decode("utf-8", errors="replace")

  def edges(self) -> tuple[np.ndarray, np.ndarray]:
    """Letters, digits and what is not ASCII are inside words."""
    inside = np.append(_WORD_BYTES, False)
    return inside, inside

  def characters(self) -> np.ndarray:
    """As of `Tokenizer`."""
    return np.append(_begins_character(np.arange(256)), 0)


class Bpe:
  """What a `tokenizer.json` of the `tokenizers` library holds, as it is.

  A byte-level byte-pair encoding loses nothing: every UTF-8 text comes back
  from its ids. The separator has the id after the tokenizer's last.

  Args:
    path: a file of the `tokenizers` library.

  Raises:
    UserError: if the file cannot be read or its vocabulary is too large.

  Source: Radford et al., 2019 (GPT-2); https://pypi.org/project/tokenizers.
  """

  def __init__(self, path: pathlib.Path):
    text = files.read_bytes(path).decode("utf-8", errors="replace")
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises bare exceptions.
      raise files.UserError(
        f"{path} is not a tokenizer.json of the tokenizers library: {error}"
      ) from error
    self.separator = self._tokenizer.get_vocab_size()
    parts = json.loads(text)
    self._wordpiece = parts["model"].get("type") == "WordPiece"
    self._byte_level = "ByteLevel" in json.dumps(parts.get("decoder"))

  @property
  def vocab_size(self) -> int:
    """Number of ids, the separator included."""
    return self.separator + 1

  def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
    """Token ids of every document, without the separator."""
    decoded = [_decode(t) for t in texts]
    encoded = self._tokenizer.encode_batch(decoded, add_special_tokens=False)
    return [np.asarray(e.ids, _dtype(self)) for e in encoded]

  def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a text, and from and up to which character each stands for."""
    encoded = self._tokenizer.encode(text, add_special_tokens=False)
    spans = np.asarray(encoded.offsets, np.int64).reshape(-1, 2)
    return np.asarray(encoded.ids, _dtype(self)), spans

  def decode(self, ids: np.ndarray) -> str:
    """Text of token ids; separators are dropped."""
    return self._tokenizer.decode([int(i) for i in ids if i != self.separator])

  def edges(self) -> tuple[np.ndarray, np.ndarray]:
    """As of `Tokenizer`; a WordPiece goes on where it begins with `##`."""
    pieces = [
      self._tokenizer.id_to_token(i) or "" for i in range(self.separator)
    ]
    first, last = _edges(pieces)
    if self._wordpiece:
      first = np.array([p.startswith("##") for p in pieces] + [False])
    return first, last

  def characters(self) -> np.ndarray:
    """As of `Tokenizer`."""
    pieces = [
      self._tokenizer.id_to_token(i) or "" for i in range(self.separator)
    ]
    if self._byte_level:
      return np.array([*map(_byte_level_characters, pieces), 0])
    return np.array([*(len(p.removeprefix("##")) for p in pieces), 0])


class SentencePiece:
  """A model of SentencePiece, as it is.

  The separator has the id after the model's last. Text may come back changed:
  models normalise it, and have a token for what they do not know.

  Args:
    path: of the `.model`.

  Raises:
    UserError: if the file cannot be read.

  Source: Kudo and Richardson, 2018, https://arxiv.org/abs/1808.06226;
  https://pypi.org/project/sentencepiece.
  """

  def __init__(self, path: pathlib.Path):
    data = files.read_bytes(path)
    self._model = sentencepiece.SentencePieceProcessor()
    try:
      self._model.LoadFromSerializedProto(data)
    except (RuntimeError, OSError) as error:
      raise files.UserError(
        f"{path} is not a model of SentencePiece: {error}"
      ) from error
    self.separator = self._model.get_piece_size()

  @property
  def vocab_size(self) -> int:
    """Number of ids, the separator included."""
    return self.separator + 1

  def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
    """Token ids of every document, without the separator."""
    encoded = self._model.encode([_decode(t) for t in texts])
    return [np.asarray(ids, _dtype(self)) for ids in encoded]

  def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a text, and from and up to which character each stands for."""
    found = self._model.encode(text, return_type="offset_mapping")
    spans = np.asarray(found["offsets"], np.int64).reshape(-1, 2)
    return np.asarray(found["ids"], _dtype(self)), spans

  def decode(self, ids: np.ndarray) -> str:
    """Text of token ids; separators are dropped."""
    return self._model.decode([int(i) for i in ids if i != self.separator])

  def edges(self) -> tuple[np.ndarray, np.ndarray]:
    """As of `Tokenizer`."""
    return _edges(self._pieces())

  def characters(self) -> np.ndarray:
    """As of `Tokenizer`."""
    found = []
    for piece in self._pieces():
      byte = _BYTE_PIECE.fullmatch(piece)
      if byte:
        found.append(int(_begins_character(np.array(int(byte[1], 16)))))
      else:
        found.append(len(piece))
    return np.array([*found, 0])

  def _pieces(self) -> list[str]:
    return [self._model.id_to_piece(i) for i in range(self.separator)]


def load(path: pathlib.Path) -> Tokenizer:
  """Reads a tokenizer of whatever kind the file's name says.

  Args:
    path: a `.json` of `tokenizers`, or a `.model` of SentencePiece.

  Returns:
    The tokenizer.

  Raises:
    UserError: if the file cannot be read or its name ends in neither.
  """
  if path.suffix == ".json":
    return Bpe(path)
  if path.suffix == ".model":
    return SentencePiece(path)
  raise files.UserError(
    f"tokenizer {str(path)!r} must be 'bytes', 'bpe', a .json of the "
    "tokenizers library, or a .model of SentencePiece."
  )


def make(
  name: str,
  texts: Sequence[bytes],
  *,
  vocab_size: int,
  workdir: pathlib.Path,
) -> Tokenizer:
  """The tokenizer of a run; a BPE is trained once and kept in the workdir.

  Args:
    name: `bytes`, `bpe`, or the path of one.
    texts: that a BPE is trained on.
    vocab_size: of a BPE.
    workdir: of the run.

  Returns:
    The tokenizer.

  Raises:
    UserError: if it cannot be read or trained.
  """
  if name == "bytes":
    return Bytes()
  if name != "bpe":
    return load(pathlib.Path(name))
  path = workdir / "tokenizer.json"
  if files.first_process() and not path.exists():
    files.say(f"training a BPE of {vocab_size:,} tokens")
    train_bpe(texts, vocab_size=vocab_size, path=path)
  files.barrier("tokenizer")
  return Bpe(path)


def digest(name: str) -> dict[str, str]:
  """What a run depends on beside `name`: the content of a tokenizer's file."""
  if name in ("bytes", "bpe"):
    return {}
  path = pathlib.Path(name)
  files.read_bytes(path, "Check --config.tokenizer.")
  return {"text.tokenizer": files.sha256(path)[:16]}


def train_bpe(
  texts: Sequence[bytes], *, vocab_size: int, path: pathlib.Path
) -> None:
  """Trains a byte-level BPE on `texts` and writes it, whole, to `path`.

  Args:
    texts: UTF-8 documents of the training split.
    vocab_size: number of tokens, at least 256, without the separator.
    path: of the `tokenizer.json`.

  Raises:
    UserError: if a text is not UTF-8 or the size is out of range.
  """
  if not 256 <= vocab_size <= _MAX_VOCAB:
    raise files.UserError(
      f"--config.vocab_size must lie in [256, {_MAX_VOCAB}], got {vocab_size}."
    )
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator((_decode(t) for t in texts), trainer)
  files.write_text(path, tokenizer.to_str(pretty=True))


def train_sentencepiece(
  texts: Sequence[bytes],
  *,
  vocab_size: int,
  path: pathlib.Path,
  kind: str = "unigram",
) -> None:
  """Trains a model of SentencePiece on `texts` and writes it, whole, to `path`.

  Bytes stand for what the pieces lack, so that nothing is unknown.

  Args:
    texts: UTF-8 documents of the training split.
    vocab_size: number of tokens, without the separator.
    path: of the `.model`.
    kind: `unigram` or `bpe`.

  Raises:
    UserError: if a text is not UTF-8 or the size does not suit the texts.
  """
  model = io.BytesIO()
  lines = (x for t in texts for x in _decode(t).splitlines() if x.strip())
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines,
      model_writer=model,
      vocab_size=vocab_size,
      model_type=kind,
      byte_fallback=True,
      max_sentence_length=2**20,
      minloglevel=2,
    )
  except (RuntimeError, ValueError) as error:
    raise files.UserError(
      f"SentencePiece cannot be trained with vocab_size={vocab_size}: {error}"
    ) from error
  with files.whole(path) as part:
    part.write_bytes(model.getvalue())


def _decode(text: bytes) -> str:
  try:
    return text.decode("utf-8")
  except UnicodeDecodeError as error:
    start = text[:60]
    raise files.UserError(
      f"a document is not UTF-8 ({error.reason} at byte {error.start}; it "
      f"starts {start!r}). Take --config.tokenizer=bytes."
    ) from error


def _dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
  return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32


def _edges(pieces: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  ends = []
  for piece in pieces:
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:  # Of SentencePiece, for what it has no piece.
      ends.append((_WORD_BYTES[int(byte[1], 16)],) * 2)
    else:
      ends.append((_inside(piece[:1]), _inside(piece[-1:])))
  first, last = np.array([*ends, (False, False)], bool).T
  return first, last


def _begins_character(byte: np.ndarray) -> np.ndarray:
  """Whether bytes of UTF-8 begin a character, as 0 or 1."""
  return ((byte & 0xC0) != 0x80).astype(int)


def _byte_level_characters(piece: str) -> int:
  """Characters of a piece in the byte-level alphabet, as `_inside` has it."""
  # The bytes 128 to 191, which go on, are written as these two ranges.
  on = sum(0x122 <= ord(c) <= 0x143 or 0xA1 <= ord(c) <= 0xBF for c in piece)
  return len(piece) - on


def _inside(character: str) -> bool:
  """Whether it is part of a word, byte-level alphabets considered.

  They write the bytes 0 to 32, 127 and on, that do not print, from U+0100 on.
  """
  if not character:
    return False
  code = ord(character)
  if 256 <= code < 256 + 68:
    return code >= 256 + 34
  return character.isalnum() or 161 <= code < 256


def main() -> int:
  """The command; 1 if something the user can mend went wrong."""
  summary = (__doc__ or "").partition("\n")[0]
  parser = argparse.ArgumentParser(description=summary)
  parser.add_argument("texts", nargs="+", help="UTF-8 files, or patterns")
  parser.add_argument("--output", required=True, type=pathlib.Path)
  parser.add_argument("--vocab_size", type=int, default=8192)
  parser.add_argument("--kind", choices=("bpe", "unigram"), default="bpe")
  given = parser.parse_args()
  try:
    paths = [p for t in given.texts for p in sorted(glob.glob(t)) or [t]]
    texts = [files.read_bytes(pathlib.Path(p)) for p in paths]
    options = {"vocab_size": given.vocab_size, "path": given.output}
    if given.output.suffix == ".model":
      train_sentencepiece(texts, kind=given.kind, **options)
    elif given.output.suffix == ".json" and given.kind == "bpe":
      train_bpe(texts, **options)
    else:
      raise files.UserError(
        "--output must end in .json (of the tokenizers library; --kind=bpe "
        f"alone) or .model (of SentencePiece), got {given.output}."
      )
    size = load(given.output).vocab_size - 1
  except (files.UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(f"{given.output}: {size:,} tokens from {len(paths)} files")
  return 0


if __name__ == "__main__":
  sys.exit(main())
