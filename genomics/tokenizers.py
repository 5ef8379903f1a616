"""Tokens of DNA, each of which knows the bases that it spells.

Tokenizers share their first ids: padding 0, [CLS] 1, [SEP] 2, [MASK] 3, and 4
for what is not known.
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals

PAD, CLS, SEP, MASK, UNK = range(5)
NUM_SPECIAL = 5
_MAX_K = 8


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Tokens of a sequence.

  Attributes:
    ids: `[m]` int32.
    starts: `[m]` int64, the first base that each spells.
    ends: `[m]` int64, one after its last.
    known: `[m]` bool, whether all its bases are A, C, G or T.
  """

  ids: np.ndarray
  starts: np.ndarray
  ends: np.ndarray
  known: np.ndarray

  @property
  def num_bases(self) -> int:
    """Known bases that its known tokens spell, each counted once."""
    return int(np.sum(covered(self, self.known)))


class Tokenizer(Protocol):
  """From codes of bases to tokens and back.

  Attributes:
    name: for reports; with what is needed to make it again.
    vocab_size: number of ids.
    overlapping: whether bases belong to several tokens.
  """

  name: str
  vocab_size: int
  overlapping: bool

  def encode(self, codes: np.ndarray) -> Tokens:
    """Tokens of codes."""
    ...

  def decode(self, ids: np.ndarray) -> np.ndarray:
    """Codes of tokens; specials spell nothing."""
    ...


def covered(tokens: Tokens, chosen: np.ndarray) -> np.ndarray:
  """Which bases the chosen tokens spell.

  Args:
    tokens: of a sequence.
    chosen: `[m]` bool.

  Returns:
    `[n]` bool, of the bases up to the last token's end.

  Example:
    >>> tokens = KmerTokenizer(2).encode(np.array([0, 1, 2, 3]))
    >>> covered(tokens, np.array([False, True])).tolist()
    [False, False, True, True]

  Source: none.
  """
  size = int(tokens.ends.max(initial=0))
  steps = np.zeros(size + 1, np.int64)
  np.add.at(steps, tokens.starts[chosen], 1)
  np.add.at(steps, tokens.ends[chosen], -1)
  return np.cumsum(steps[:-1]) > 0


class NucleotideTokenizer:
  """A token a base.

  Example:
    >>> NucleotideTokenizer().encode(np.array([0, 3, 4])).ids.tolist()
    [5, 8, 4]

  Source: Nguyen et al., 2023 (HyenaDNA), https://arxiv.org/abs/2306.15794.
  """

  name = "nucleotide"
  vocab_size = NUM_SPECIAL + 4
  overlapping = False

  def encode(self, codes: np.ndarray) -> Tokens:
    """Tokens of codes."""
    known = codes != alphabet.UNKNOWN
    ids = np.where(known, codes.astype(np.int32) + NUM_SPECIAL, UNK)
    at = np.arange(len(codes), dtype=np.int64)
    return Tokens(ids.astype(np.int32), at, at + 1, known)

  def decode(self, ids: np.ndarray) -> np.ndarray:
    """Codes of tokens; specials spell nothing."""
    ids = ids[(ids >= UNK)]
    found = np.where(ids == UNK, alphabet.UNKNOWN, ids - NUM_SPECIAL)
    return found.astype(np.uint8)


def kmer_numbers(codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """The number of the k-mer at each base, and whether it has one.

  Args:
    codes: `[n]` ints in [0, 4].
    k: bases in a k-mer.

  Returns:
    `[n - k + 1]` int64 in [0, 4^k), base 4 with the first base in front, and
    bool: False where a base is not known.

  Example:
    >>> kmer_numbers(np.array([0, 1, 2, 4]), 2)[0][:2].tolist()
    [1, 6]

  Source: none.
  """
  count = max(len(codes) - k + 1, 0)
  number, known = np.zeros(count, np.int64), np.ones(count, bool)
  for i in range(k):
    piece = codes[i : i + count]
    number = number * 4 + np.where(piece < 4, piece, 0)
    known &= piece < 4
  return number, known


def _check_k(k: int) -> None:
  if not 1 <= k <= _MAX_K:
    raise files.UserError(f"k must lie in [1, {_MAX_K}], got {k}.")


class OverlappingKmerTokenizer:
  """A token at each base, which spells it and the k - 1 bases after it.

  A hidden token shows through its neighbours, so that a run of m hidden ones
  hides m - k + 1 bases.

  Args:
    k: bases in a token.

  Example:
    >>> tokenizer = OverlappingKmerTokenizer(3)
    >>> tokenizer.vocab_size, len(tokenizer.encode(np.array([0, 1, 2, 3])).ids)
    (69, 2)

  Source: Ji et al., 2021 (DNABERT),
  https://doi.org/10.1093/bioinformatics/btab083.
  """

  overlapping = True

  def __init__(self, k: int):
    _check_k(k)
    self.k, self.name = k, f"overlapping_kmer:{k}"
    self.vocab_size = NUM_SPECIAL + 4**k

  def encode(self, codes: np.ndarray) -> Tokens:
    """Tokens of codes; none of a sequence shorter than k."""
    number, known = kmer_numbers(codes, self.k)
    ids = np.where(known, number + NUM_SPECIAL, UNK).astype(np.int32)
    at = np.arange(len(ids), dtype=np.int64)
    return Tokens(ids, at, at + self.k, known)

  def decode(self, ids: np.ndarray) -> np.ndarray:
    """Codes: the first base of each token, and all of the last one."""
    ids = ids[ids >= UNK]
    if not len(ids):
      return np.zeros(0, np.uint8)
    powers = 4 ** np.arange(self.k - 1, -1, -1)
    bases = (np.maximum(ids - NUM_SPECIAL, 0)[:, None] // powers) % 4
    bases = np.where(ids[:, None] == UNK, alphabet.UNKNOWN, bases)
    return np.concatenate([bases[:, 0], bases[-1, 1:]]).astype(np.uint8)


class KmerTokenizer:
  """Tokens of k bases, end to end; single letters where k do not fit.

  What is left before an unknown base, or the end, is single letters. One base
  more or less moves the frame of all that follows.

  Args:
    k: bases in a token.

  Example:
    >>> tokens = KmerTokenizer(2).encode(alphabet.encode("ACGNTT"))
    >>> tokens.starts.tolist()
    [0, 2, 3, 4]

  Source: Dalla-Torre et al., 2024 (Nucleotide Transformer),
  https://doi.org/10.1038/s41592-024-02523-z.
  """

  overlapping = False

  def __init__(self, k: int):
    _check_k(k)
    self.k, self.name = k, f"kmer:{k}"
    self.vocab_size = NUM_SPECIAL + 4**k + 4

  def encode(self, codes: np.ndarray) -> Tokens:
    """Tokens of codes."""
    size = len(codes)
    breaks = np.flatnonzero(codes == alphabet.UNKNOWN)
    at = np.arange(size)
    low = np.searchsorted(breaks, at)  # Unknown bases before each.
    begin = np.where(low > 0, np.append(breaks, 0)[low - 1] + 1, 0)
    end = np.append(breaks, size)[low]
    place = at - begin
    whole = place < (end - begin) // self.k * self.k
    starts = np.flatnonzero(~whole | (place % self.k == 0))
    full = whole[starts]
    letter = codes[starts].astype(np.int64)
    ids = np.where(letter < 4, letter + NUM_SPECIAL + 4**self.k, UNK)
    if full.any():
      number, _ = kmer_numbers(codes, self.k)
      ids[full] = number[starts[full]] + NUM_SPECIAL
    ends = starts + np.where(full, self.k, 1)
    return Tokens(ids.astype(np.int32), starts, ends, ids != UNK)

  def decode(self, ids: np.ndarray) -> np.ndarray:
    """Codes of tokens; specials spell nothing."""
    powers, found = 4 ** np.arange(self.k - 1, -1, -1), []
    for token in ids:
      number = int(token) - NUM_SPECIAL
      if token == UNK:
        found.append(np.array([alphabet.UNKNOWN]))
      elif number >= 4**self.k:
        found.append(np.array([number - 4**self.k]))
      elif number >= 0:
        found.append(number // powers % 4)
    return np.concatenate([np.zeros(0, int), *found]).astype(np.uint8)


class PieceTokenizer:
  """Pieces that byte-pair encoding found, by SentencePiece.

  One changed base can change the pieces around it, so that the odds of one
  token against another do not measure a variant.

  Args:
    path: of a model that `train_pieces` wrote.

  Raises:
    UserError: if it is not there, damaged, or has other special ids.

  Source: Kudo and Richardson, 2018, https://arxiv.org/abs/1808.06226.
  """

  overlapping = False

  def __init__(self, path: str | pathlib.Path):
    library = genome_lib.need("sentencepiece")
    path = pathlib.Path(path)
    raw = files.read_bytes(
      path, "Train it with python -m genomics.tokens.main."
    )
    try:
      self._model = library.SentencePieceProcessor(model_proto=raw)
    except (RuntimeError, ValueError) as error:
      raise files.UserError(f"{path} is no SentencePiece model.") from error
    found = self._model
    if (found.pad_id(), found.bos_id(), found.eos_id(), found.unk_id()) != (
      PAD,
      CLS,
      SEP,
      UNK,
    ) or found.id_to_piece(MASK) != "[MASK]":
      raise files.UserError(
        f"{path} has other special tokens than this package's. Train it with "
        "python -m genomics.tokens.main."
      )
    self.vocab_size = found.get_piece_size()
    self.name = f"pieces:{self.vocab_size}:{files.sha256(path)[:8]}"
    pieces = [found.id_to_piece(i) for i in range(self.vocab_size)]
    self._sizes = np.array([len(x) for x in pieces])
    self._sizes[:NUM_SPECIAL] = 0, 0, 0, 0, 1
    self._pieces = pieces

  def encode(self, codes: np.ndarray) -> Tokens:
    """Tokens of codes."""
    known = codes != alphabet.UNKNOWN
    edges = np.flatnonzero(np.diff(known)) + 1
    found = []
    for run in np.split(codes, edges):
      if len(run) and run[0] == alphabet.UNKNOWN:
        found.append(np.full(len(run), UNK, np.int32))
      else:
        ids = self._model.encode(alphabet.decode(run), out_type=int)
        found.append(np.array(ids, np.int32))
    ids = np.concatenate(found)
    ends = np.cumsum(self._sizes[ids])
    return Tokens(ids, ends - self._sizes[ids], ends, ids != UNK)

  def decode(self, ids: np.ndarray) -> np.ndarray:
    """Codes of tokens; specials spell nothing."""
    text = "".join(
      "N" if i == UNK else self._pieces[i] for i in ids if i >= UNK
    )
    return alphabet.encode(text)


def train_pieces(
  sentences: Iterable[str],
  path: str | pathlib.Path,
  *,
  vocab_size: int,
  max_piece: int = 32,
) -> PieceTokenizer:
  """Trains pieces by byte-pair encoding.

  Args:
    sentences: upper-case letters, of 500 to 1,000 bases.
    path: of the model, written whole.
    vocab_size: pieces, with special tokens and letters.
    max_piece: bases in the longest one.

  Returns:
    The tokenizer.

  Raises:
    UserError: if the sentences do not give so many pieces.

  Source: the settings under which SentencePiece treats DNA as text without
  words: no normalisation, no prefix, no splitting, every letter kept.
  """
  library, out = genome_lib.need("sentencepiece"), io.BytesIO()
  try:
    library.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences),
      model_writer=out,
      model_type="bpe",
      vocab_size=vocab_size,
      character_coverage=1.0,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      split_by_whitespace=False,
      split_by_unicode_script=False,
      split_by_number=False,
      max_sentencepiece_length=max_piece,
      required_chars=alphabet.BASES,
      pad_id=PAD,
      bos_id=CLS,
      eos_id=SEP,
      unk_id=UNK,
      pad_piece="[PAD]",
      bos_piece="[CLS]",
      eos_piece="[SEP]",
      unk_piece="[UNK]",
      control_symbols=["[MASK]"],
      num_threads=2,
      minloglevel=2,
    )
  except (RuntimeError, OSError) as error:
    raise files.UserError(
      f"cannot train {vocab_size} pieces: {error}. Take a smaller "
      "--vocab_size, or more bases."
    ) from error
  with files.whole(pathlib.Path(path)) as part:
    part.write_bytes(out.getvalue())
  return PieceTokenizer(path)


def sentences(
  genome: genome_lib.Genome,
  chroms: Iterable[str],
  *,
  bases: int = 0,
  seed: int = 0,
) -> Iterator[str]:
  """Sentences of 500 to 1,000 bases of both strands, in turn.

  Args:
    genome: to read.
    chroms: names of its sequences.
    bases: at most so many; 0 for all.
    seed: of the lengths.

  Yields:
    Upper-case letters without unknown bases.

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062, appendix F.1.
  """
  rng, done, turn = np.random.default_rng(seed), 0, 0
  for chrom in chroms:
    for run in genome_lib.known_runs(genome, chrom):
      start = run.start
      while start < run.end:
        end = min(start + int(rng.integers(500, 1001)), run.end)
        strand = intervals.STRANDS[turn % 2]
        place = intervals.Interval(chrom, start, end, strand)
        yield alphabet.decode(genome_lib.read(genome, place).codes)
        start, done, turn = end, done + end - start, turn + 1
        if bases and done >= bases:
          return


def make(name: str) -> Tokenizer:
  """The tokenizer that a name stands for.

  Args:
    name: `nucleotide`, `kmer:6`, `overlapping_kmer:6`, or the path of a model
      of pieces, which ends in `.model`.

  Returns:
    The tokenizer.

  Raises:
    UserError: for any other name.

  Example:
    >>> make("kmer:6").vocab_size
    4105

  Source: none.
  """
  kind, _, rest = name.partition(":")
  kinds = {"kmer": KmerTokenizer, "overlapping_kmer": OverlappingKmerTokenizer}
  if name == "nucleotide":
    return NucleotideTokenizer()
  if kind in kinds and rest.isdigit():
    return kinds[kind](int(rest))
  if name.endswith(".model"):
    return PieceTokenizer(name)
  raise files.UserError(
    f"unknown tokenizer {name!r}; known: nucleotide, kmer:K, "
    "overlapping_kmer:K, and paths of models that end in .model."
  )


def bases_per_token(tokenizer: Tokenizer, codes: np.ndarray) -> float:
  """How many bases a token of a sequence stands for.

  Of the sequence, not of the vocabulary: common pieces are short.

  Args:
    tokenizer: any.
    codes: of the sequence.

  Returns:
    Bases over tokens.

  Example:
    >>> bases_per_token(KmerTokenizer(2), np.zeros(8, np.uint8))
    2.0

  Source: none.
  """
  return len(codes) / max(len(tokenizer.encode(codes).ids), 1)
