"""What any classifier of documents must beat."""

import warnings
from typing import Any

import numpy as np

from experiments.classification import data
from experiments.common import files

_STRENGTHS = (1.0, 10.0, 100.0)  # C of logistic regression.


def all_floors(corpus: data.Corpus) -> dict[str, float]:
  """Accuracy on the test documents of what reads no order of words.

  Args:
    corpus: floors learn from `train`; `valid` picks the strength.

  Returns:
    Name -> accuracy of the commonest class, and of `tf_idf`.

  Raises:
    UserError: if scikit-learn is missing.

  Example:
    >>> part = data.Part([b"good", b"good", b"bad"], np.array([1, 1, 0]))
    >>> corpus = data.Corpus("a", "", ("no", "yes"), part, part, part)
    >>> round(all_floors(corpus)["commonest class"], 2)
    0.67

  Source: scikit-learn, https://jmlr.org/papers/v12/pedregosa11a.html.
  """
  commonest = np.argmax(np.bincount(corpus.train.labels))
  return {
    "commonest class": float(np.mean(corpus.test.labels == commonest)),
    "TF-IDF and logistic regression": tf_idf(corpus),
  }


def tf_idf(corpus: data.Corpus) -> float:
  """Test accuracy of logistic regression on TF-IDF of words and their pairs.

  It reads whole documents, whatever the length of the model's rows.

  Args:
    corpus: `train` to fit, `valid` to choose how strongly to regularise.

  Returns:
    The accuracy.

  Raises:
    UserError: if scikit-learn is missing.

  Example:
    >>> part = data.Part([b"good", b"bad"], np.array([1, 0]))
    >>> tf_idf(data.Corpus("a", "", ("no", "yes"), part, part, part))
    1.0

  Source: Joachims, 1998, https://doi.org/10.1007/BFb0026683; Wang and Manning,
  2012 (pairs of words), https://aclanthology.org/P12-2018.
  """
  try:
    from sklearn import exceptions
    from sklearn import linear_model
    from sklearn import multiclass
    from sklearn.feature_extraction import text
  except ImportError as error:
    raise files.UserError(
      "the floors need scikit-learn, which is not here: pip install "
      "scikit-learn"
    ) from error
  vectors = text.TfidfVectorizer(
    ngram_range=(1, 2), sublinear_tf=True, decode_error="replace"
  )
  train = vectors.fit_transform(corpus.train.texts)
  valid, test = (
    vectors.transform(p.texts) for p in (corpus.valid, corpus.test)
  )
  best = (-1.0, 0.0)
  for strength in _STRENGTHS:
    model: Any = linear_model.LogisticRegression(C=strength, max_iter=200)
    if len(corpus.classes) > 2:  # One for each: seconds, not many minutes.
      model = multiclass.OneVsRestClassifier(
        linear_model.LogisticRegression(
          C=strength, solver="liblinear", dual=True
        )
      )
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
      model.fit(train, corpus.train.labels)
    scores = (
      float(model.score(valid, corpus.valid.labels)),
      float(model.score(test, corpus.test.labels)),
    )
    best = max(best, scores, key=lambda pair: pair[0])
  return best[1]


def wilson(right: float, count: float) -> tuple[float, float]:
  """The 95% interval of a share.

  Args:
    right: how many of `count`.
    count: at least 1.

  Returns:
    Its ends.

  Example:
    >>> [round(x, 4) for x in wilson(80, 100)]
    [0.7112, 0.8666]

  Source: Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953.
  """
  z2 = 1.959963984540054**2
  centre = (right + z2 / 2) / (count + z2)
  share = right / count
  half = (z2 * (share * (1 - share) / count + z2 / (4 * count**2))) ** 0.5
  half /= 1 + z2 / count
  return centre - half, centre + half
