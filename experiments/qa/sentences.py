"""Sentences of documents whose data do not mark them."""

import re

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


def split(text: str) -> list[tuple[int, int]]:
  r"""Characters from and up to which each sentence stands.

  Args:
    text: of a document.

  Returns:
    The sentences, which end at `.`, `!`, `?` or the end of a line; white space
    alone is none.

  Example:
    >>> split("Al sat. \n\nBo ran!")
    [(0, 7), (10, 17)]

  Source: none.
  """
  found = _SENTENCE.finditer(text)
  return [m.span() for m in found if m.group().strip()]
