"""Text to token ids: bytes, or a byte-pair encoding of `tokenizers`."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers

from experiments.common import files

_MAX_VOCAB = 2**16  # Ids are kept as uint16.


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

  def decode(self, ids: np.ndarray) -> str:
    """Text of token ids; separators are dropped."""
    ids = np.asarray(ids)
    data = ids[ids < self.separator].astype(np.uint8).tobytes()
    return data.decode("utf-8", errors="replace")


class Bpe:
  """Byte-level byte-pair encoding from a `tokenizer.json`.

  Loses nothing: every UTF-8 text comes back from its ids. The separator has the
  id after the tokenizer's last.

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
    if self.separator >= _MAX_VOCAB:
      raise files.UserError(
        f"{path} has {self.separator} tokens; at most {_MAX_VOCAB - 1} fit."
      )

  @property
  def vocab_size(self) -> int:
    """Number of ids, the separator included."""
    return self.separator + 1

  def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
    """Token ids of every document, without the separator."""
    decoded = [_decode(t) for t in texts]
    encoded = self._tokenizer.encode_batch(decoded, add_special_tokens=False)
    return [np.asarray(e.ids, np.uint16) for e in encoded]

  def decode(self, ids: np.ndarray) -> str:
    """Text of token ids; separators are dropped."""
    return self._tokenizer.decode([int(i) for i in ids if i != self.separator])


Tokenizer = Bytes | Bpe


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
  if not 256 <= vocab_size < _MAX_VOCAB:
    raise files.UserError(
      f"--config.vocab_size must lie in [256, {_MAX_VOCAB - 1}], got "
      f"{vocab_size}."
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


def _decode(text: bytes) -> str:
  try:
    return text.decode("utf-8")
  except UnicodeDecodeError as error:
    start = text[:60]
    raise files.UserError(
      f"a document is not UTF-8 ({error.reason} at byte {error.start}; it "
      f"starts {start!r}). Take --config.tokenizer=bytes."
    ) from error
