"""Grey images as rows of pixels: data sets, their split, and batches."""

import dataclasses
import hashlib
from collections.abc import Callable
from collections.abc import Iterator

import numpy as np

from experiments.common import data as rows_lib
from experiments.common import fetch
from experiments.common import files

START = 0  # The first input of every row; later ones are pixels.
_HELD_OUT = 10  # One image in so many is for test, and one for valid.


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """A data set and its split.

  Attributes:
    name: for the report.
    what: the images, in words.
    levels: grey levels; pixels lie in [0, levels).
    train: `[n, rows, columns]` uint8, to learn from.
    valid: the same, to watch while training.
    test: the same, for the result.
  """

  name: str
  what: str
  levels: int
  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray

  @property
  def shape(self) -> tuple[int, int]:
    """Rows and columns of an image."""
    return self.train.shape[1:]

  def digest(self, part: str) -> str:
    """Identifies the images of a part: SHA-256, 16 digits."""
    return hashlib.sha256(getattr(self, part).tobytes()).hexdigest()[:16]


def _digits() -> tuple[np.ndarray, int, str]:
  try:
    from sklearn import datasets
  except ImportError as error:
    raise files.UserError(
      "data set 'digits' comes with scikit-learn, which is not here: pip "
      "install scikit-learn"
    ) from error
  pixels, _ = datasets.load_digits(return_X_y=True)
  images = pixels.reshape(-1, 8, 8).astype(np.uint8)
  return images, 17, "handwritten digits of the UCI repository"


def _mnist() -> tuple[np.ndarray, int, str]:
  pixels = b"".join(pixels for _, pixels in fetch.load("mnist_5k"))
  images = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)
  return images, 256, "5,000 of the images of MNIST"


# Name -> images [n, rows, columns] uint8, their grey levels, and what they are.
DATASETS: dict[str, Callable[[], tuple[np.ndarray, int, str]]] = {
  "digits": _digits,
  "mnist": _mnist,
}


def load(name: str, *, train_images: int = 0) -> ImageSet:
  """Loads a data set, split by a fixed order: 80, 10 and 10 percent.

  Args:
    name: a key of `DATASETS`.
    train_images: how many to learn from, at most; 0 for all.

  Returns:
    The data set; its parts share no image.

  Raises:
    UserError: if the name is unknown or the data are not here.
  """
  if name not in DATASETS:
    raise files.UserError(
      f"unknown data set {name!r}; known: {', '.join(sorted(DATASETS))}."
    )
  images, levels, what = DATASETS[name]()
  images = images[np.random.default_rng(0).permutation(len(images))]
  held_out = max(len(images) // _HELD_OUT, 1)
  test, valid, train = np.split(images, [held_out, 2 * held_out])
  if train_images:
    train = train[:train_images]
  return ImageSet(name, what, levels, train, valid, test)


class Pixels:
  """Images as rows of a decoder, by random access.

  A row reads `START` and all pixels but the last, row by row, and predicts the
  pixels: every pixel once, from those above and to the left.

  Args:
    images: `[n, rows, columns]` uint8.

  Example:
    >>> row = Pixels(np.array([[[5, 6], [7, 8]]], np.uint8))[0]
    >>> row["inputs"].tolist(), row["targets"].tolist()
    ([0, 5, 6, 7], [5, 6, 7, 8])

  Source: van den Oord et al., 2016, https://arxiv.org/abs/1601.06759.
  """

  def __init__(self, images: np.ndarray):
    self._pixels = images.reshape(len(images), -1).astype(np.int32)

  def __len__(self) -> int:
    return len(self._pixels)

  def __getitem__(self, index: int) -> rows_lib.Batch:
    return _row(self._pixels[int(index)])

  def batches(self, batch_size: int) -> Iterator[rows_lib.Batch]:
    """All rows, in order; the last batch is filled with rows of weight 0."""
    for low in range(0, len(self), batch_size):
      rows = np.arange(low, low + batch_size)
      inside = rows < len(self)
      batch = _row(self._pixels[np.where(inside, rows, 0)])
      batch["weights"] *= inside[:, None]
      yield batch


def _row(targets: np.ndarray) -> rows_lib.Batch:
  inputs = np.roll(targets, 1, axis=-1)
  inputs[..., 0] = START
  return {
    "inputs": inputs,
    "targets": targets,
    "weights": np.ones(targets.shape, np.float32),
  }
