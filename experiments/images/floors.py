"""What any model of images must beat."""

import math

import numpy as np

from experiments.images import data
from experiments.lm import floors as text_floors


def all_floors(images: data.ImageSet) -> dict[str, float]:
  """Bits per dimension of models without learning, on the test images.

  Args:
    images: counts come from `train`.

  Returns:
    Name -> bits per dimension: every level alike; the histogram of each pixel;
    Markov models over the pixels before, in reading order.
  """
  train, test = (
    [image.tobytes() for image in part] for part in (images.train, images.test)
  )
  markov = text_floors.witten_bell(train, test, alphabet=images.levels)
  return {
    "all levels alike": math.log2(images.levels),
    "histogram of each pixel": histogram(
      images.train, images.test, images.levels
    ),
    **{f"Markov order {k}": bits for k, bits in markov.items()},
  }


def histogram(train: np.ndarray, test: np.ndarray, levels: int) -> float:
  """Bits per dimension of each pixel's own histogram.

  With n(p, v) the images in `train` whose pixel p is v, T(p) the number of
  different values that it has there, and L levels,

    P(v | p) = (n(p, v) + T(p) / L) / (n(p) + T(p)).

  Args:
    train: `[n, rows, columns]` integers to count in.
    test: the same, to predict.
    levels: L.

  Returns:
    Bits per dimension.

  Example:
    >>> train = np.array([[[0, 1]], [[0, 1]], [[0, 0]]], np.uint8)
    >>> round(histogram(train, train[:1], 2), 3)
    0.465

  Source: Witten and Bell's rule, as of `experiments.lm.floors`.
  """
  train, test = (x.reshape(len(x), -1).astype(int) for x in (train, test))
  pixels = train.shape[1]
  codes = np.arange(pixels) * levels + train
  counts = np.bincount(codes.ravel(), minlength=pixels * levels)
  counts = counts.reshape(pixels, levels)
  kinds = np.sum(counts > 0, axis=1, keepdims=True)
  probability = (counts + kinds / levels) / (len(train) + kinds)
  return float(-np.mean(np.log2(probability[np.arange(pixels), test])))
