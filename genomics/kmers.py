"""Logistic regression upon counts of short words: the floor of classifiers."""

from typing import Any

import numpy as np

from genomics import alphabet
from genomics import genome as genome_lib
from genomics import tokenizers


def frequencies(rows: Any, k: int, *, both_strands: bool = False) -> np.ndarray:
  """How often each k-mer occurs in each sequence, over how many there are.

  Args:
    rows: sequences of codes, of any lengths.
    k: bases in a word.
    both_strands: whether to count in the reverse complement too.

  Returns:
    `[n, 4^k]` float32.

  Example:
    >>> frequencies([np.array([0, 0, 1, 1])], 1).tolist()
    [[0.5, 0.5, 0.0, 0.0]]

  Source: none.
  """
  found = np.zeros((len(rows), 4**k), np.float32)
  for i, codes in enumerate(rows):
    strands = [codes]
    if both_strands:
      strands.append(alphabet.reverse_complement(codes))
    for strand in strands:
      number, known = tokenizers.kmer_numbers(strand, k)
      found[i] += np.bincount(number[known], minlength=4**k)
  return found / np.maximum(found.sum(1, keepdims=True), 1)


class KmerLogistic:
  """Logistic regression upon standardized frequencies of k-mers.

  Args:
    k: bases in a word.
    inverse_penalty: C of scikit-learn: the larger, the less is it held back.
    both_strands: as of `frequencies`.

  Example:
    >>> rows = [alphabet.encode(x) for x in ("AAAA", "AAAC", "GGGG", "GGGT")]
    >>> labels = np.array([0, 0, 1, 1])
    >>> model = KmerLogistic(1, inverse_penalty=1).fit(rows, labels)
    >>> model.probabilities(rows).argmax(1).tolist()
    [0, 0, 1, 1]

  Source: scikit-learn, https://jmlr.org/papers/v12/pedregosa11a.html.
  """

  def __init__(
    self,
    k: int = 4,
    *,
    inverse_penalty: float = 0.001,
    both_strands: bool = False,
  ):
    linear = genome_lib.need("sklearn.linear_model", "scikit-learn")
    scale = genome_lib.need("sklearn.preprocessing", "scikit-learn")
    self.k, self.both_strands = k, both_strands
    self._scale = scale.StandardScaler()
    self._model = linear.LogisticRegression(C=inverse_penalty, max_iter=2000)

  @property
  def name(self) -> str:
    """For reports."""
    return f"{self.k}-mer logistic regression"

  def _features(self, rows: Any) -> np.ndarray:
    return frequencies(rows, self.k, both_strands=self.both_strands)

  def fit(self, rows: Any, labels: np.ndarray) -> "KmerLogistic":
    """Learns; returns itself."""
    self._model.fit(self._scale.fit_transform(self._features(rows)), labels)
    return self

  def probabilities(self, rows: Any) -> np.ndarray:
    """`[n, classes]`."""
    return self._model.predict_proba(
      self._scale.transform(self._features(rows))
    )


class KmerRidge:
  """Ridge regression of many outputs upon standardized counts of k-mers.

  Args:
    k: bases in a word.
    penalty: of the squared weights.

  Example:
    >>> rows = [alphabet.encode(x) for x in ("AAAA", "AAAC", "GGGG", "GGGT")]
    >>> labels = np.array([[0], [0], [1], [1]])
    >>> KmerRidge(1, penalty=0.1).fit(rows, labels).scores(rows)[:, 0].argmin()
    np.int64(0)

  Source: scikit-learn, https://jmlr.org/papers/v12/pedregosa11a.html.
  """

  def __init__(self, k: int = 4, *, penalty: float = 1000.0):
    linear = genome_lib.need("sklearn.linear_model", "scikit-learn")
    scale = genome_lib.need("sklearn.preprocessing", "scikit-learn")
    self.k = k
    self._scale = scale.StandardScaler()
    self._model = linear.Ridge(alpha=penalty)

  @property
  def name(self) -> str:
    """For reports."""
    return f"{self.k}-mer ridge regression"

  def fit(self, rows: Any, labels: np.ndarray) -> "KmerRidge":
    """Learns `[n, outputs]`; returns itself."""
    words = frequencies(rows, self.k, both_strands=True)
    self._model.fit(self._scale.fit_transform(words), labels)
    return self

  def scores(self, rows: Any) -> np.ndarray:
    """`[n, outputs]`, higher for yes."""
    words = frequencies(rows, self.k, both_strands=True)
    found = self._model.predict(self._scale.transform(words))
    return found.reshape(len(words), -1)
