"""Needles: sentences that a question asks for, at any place of a real text."""

import re
import sys
from collections.abc import Sequence

import numpy as np

from experiments.common import files
from experiments.lm import data as corpora
from experiments.qa import squad

_CODES = 10_000


def names(count: int) -> list[str]:
  """The public modules of Python with the shortest names.

  Args:
    count: how many.

  Returns:
    Their names.

  Raises:
    UserError: if there are fewer.

  Example:
    >>> names(3)
    ['gc', 'io', 'nt']

  Source: `sys.stdlib_module_names`.
  """
  public = [n for n in sys.stdlib_module_names if n.isalpha()]
  found = sorted(public, key=lambda n: (len(n), n))  # Short: of few tokens.
  if not 1 <= count <= len(found):
    raise files.UserError(
      f"--config.needle_names must be in [1, {len(found)}], got {count}."
    )
  return found[:count]


def hide(
  text: str, needles: Sequence[tuple[str, str]], rng: np.random.Generator
) -> tuple[str, list[int]]:
  r"""Puts a line for every needle somewhere between the lines of a text.

  Args:
    text: of lines.
    needles: names and codes.
    rng: draws the places, each before or after any line alike.

  Returns:
    The text, and the character where each code starts.

  Example:
    >>> hide("a\nb", [("os", "12")], np.random.default_rng(1))
    ('a\nThe code of os is 12.\nb', [20])

  Source: none; passkeys are found alike in Mohtashami and Jaggi, 2023,
  https://arxiv.org/abs/2305.16300.
  """
  lines = [(i + 0.5, -1, line) for i, line in enumerate(text.split("\n"))]
  places = rng.integers(0, len(lines) + 1, len(needles))
  for i, ((name, code), place) in enumerate(zip(needles, places, strict=True)):
    lines.append((float(place), i, f"The code of {name} is {code}."))
  starts, at = [0] * len(needles), 0
  lines.sort()
  for _, i, line in lines:
    if i >= 0:
      starts[i] = at + len(line) - 1 - len(needles[i][1])
    at += len(line) + 1
  return "\n".join(line for _, _, line in lines), starts


def make(
  part: str, *, documents: int, characters: int, needles: int, num_names: int
) -> list[squad.Document]:
  """Pieces of Python's library with needles, and a question for each of these.

  Every document holds as many lines of the form `The code of <name> is
  <number>.`, of different modules, at places drawn alike over all of it; the
  numbers are drawn anew. So a model has to match the name, and to see the whole
  text; a search for words finds all of them.

  Args:
    part: train, valid or test; no file is in two of them.
    documents: how many.
    characters: of the text, about, before needles are put in.
    needles: in a document.
    num_names: of modules to draw from.

  Returns:
    The documents, the same at every call.

  Raises:
    UserError: if the numbers do not fit.
  """
  known = names(num_names)
  if not 1 <= needles <= num_names or documents < 1 or characters < 1:
    raise files.UserError(
      "--config.needle_documents and needle_characters must be positive, and "
      f"--config.needles in [1, needle_names], got {documents}, {characters}, "
      f"{needles}."
    )
  texts = getattr(corpora.load("stdlib"), part).texts
  sources = [text.decode(errors="replace") for text in texts]
  weights = np.array([len(source) for source in sources], float)
  rng = np.random.default_rng(("train", "valid", "test").index(part))
  made = []
  for i in range(documents):
    source = sources[int(rng.choice(len(sources), p=weights / weights.sum()))]
    start = int(rng.integers(0, max(len(source) - characters, 0) + 1))
    piece = source[start : start + characters]
    # Blank lines and indents say little and cost tokens.
    piece = re.sub(r"\s*\n\s*", "\n", piece)
    chosen = rng.choice(num_names, needles, replace=False)
    pairs = [
      (known[n], str(rng.integers(_CODES // 10, _CODES))) for n in chosen
    ]
    text, starts = hide(piece, pairs, rng)
    questions = [
      squad.Question(
        f"{part}-{i}-{name}",
        f"What is the code of {name}?",
        (squad.Answer(place, code),),
      )
      for (name, code), place in zip(pairs, starts, strict=True)
    ]
    made.append(squad.Document(f"{part}-{i}", text, tuple(questions)))
  return made
