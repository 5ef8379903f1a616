"""ROUGE of summaries, and what any summarizer must beat."""

import collections
from collections.abc import Sequence

from rouge_score import rouge_scorer

from experiments.summarization import data

_KINDS = ("rouge1", "rouge2", "rougeLsum")
_SEARCHED = 400  # Sentences of an article that the oracle chooses from.


def scores(
  summaries: Sequence[str], articles: Sequence[data.Article]
) -> dict[str, float]:
  """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L of summaries, in percent.

  Words are stemmed; ROUGE-L is that of whole summaries, sentence by sentence.

  Args:
    summaries: of the articles, in their order.
    articles: with the summaries that persons wrote.

  Returns:
    `rouge1`, `rouge2` and `rougeLsum`.

  Example:
    >>> article = data.Article("a", "", "the cat sat. a dog ran")
    >>> found = scores(["the cat ran"], [article])
    >>> round(found["rouge1"], 1), round(found["rouge2"], 1)
    (66.7, 28.6)

  Source: Lin, 2004, https://aclanthology.org/W04-1013; the package rouge-score.
  """
  scorer = rouge_scorer.RougeScorer(list(_KINDS), use_stemmer=True)
  total = dict.fromkeys(_KINDS, 0.0)
  for summary, article in zip(summaries, articles, strict=True):
    found = scorer.score(_lines(article.summary), _lines(summary))
    for kind in _KINDS:
      total[kind] += 100 * found[kind].fmeasure / len(articles)
  return total


def _lines(text: str) -> str:
  return "\n".join(data.sentences(text))


def lead(article: data.Article, count: int) -> str:
  r"""The first sentences of an article.

  Args:
    article: to summarize.
    count: of sentences.

  Returns:
    The summary.

  Example:
    >>> lead(data.Article("a", "One. Two. Three.", ""), 2)
    'One.\nTwo.'

  Source: Nallapati et al., 2017, https://arxiv.org/abs/1611.04230.
  """
  return "\n".join(data.sentences(article.text)[:count])


def oracle(article: data.Article, most: int) -> str:
  """Sentences of an article, chosen by the summary that is asked for.

  One after the other, that which raises the sum of the F1 of ROUGE-1 and
  ROUGE-2 most (words in lower case, not stemmed), until none does: what
  choosing sentences can reach, about.

  Args:
    article: to summarize; of a long one the first 400 sentences.
    most: sentences.

  Returns:
    The summary, in the order of the article.

  Example:
    >>> article = data.Article("a", "One fish. Two cats. A dog.", "two cats")
    >>> oracle(article, 2)
    'Two cats.'

  Source: Nallapati et al., 2017, https://arxiv.org/abs/1611.04230.
  """
  given = data.sentences(article.text)[:_SEARCHED]
  wanted = _grams(article.summary)
  grams = [_grams(x) for x in given]
  chosen: list[int] = []
  so_far: tuple[collections.Counter, ...] = (
    collections.Counter(),
    collections.Counter(),
  )
  best = 0.0
  while len(chosen) < most:
    rest = [i for i in range(len(given)) if i not in chosen]
    gains = [(_value(_sum(so_far, grams[i]), wanted), -i) for i in rest]
    if not gains or max(gains)[0] <= best:
      break
    best, place = max(gains)
    chosen.append(-place)
    so_far = _sum(so_far, grams[-place])
  return "\n".join(given[i] for i in sorted(chosen))


def _grams(text: str) -> tuple[collections.Counter, ...]:
  words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
  return (
    collections.Counter(words),
    collections.Counter(zip(words, words[1:], strict=False)),
  )


def _sum(
  first: tuple[collections.Counter, ...],
  second: tuple[collections.Counter, ...],
) -> tuple[collections.Counter, ...]:
  return tuple(a + b for a, b in zip(first, second, strict=True))


def _value(
  found: tuple[collections.Counter, ...],
  wanted: tuple[collections.Counter, ...],
) -> float:
  value = 0.0
  for a, b in zip(found, wanted, strict=True):
    both, size = (a & b).total(), a.total() + b.total()
    value += 2 * both / size if size else 0.0
  return value
