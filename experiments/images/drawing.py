"""Images that a model draws, and how fast it draws them."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.images import data
from jaxattn.models import decoder
from jaxattn.models import generation

_TRIES = 4  # Ways to complete an image.


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What a model drew.

  Attributes:
    samples: `[n, rows, columns]`, from nothing.
    given: `[m, rows, columns]`, test images.
    completed: `[m, 4, rows, columns]`, the lower halves of `given` drawn anew.
    images_per_second: while `samples` were drawn, all at once; without the
      time to compile.
  """

  samples: np.ndarray
  given: np.ndarray
  completed: np.ndarray
  images_per_second: float


def draw(
  config: Any, model: decoder.Decoder, variables: Any, images: data.ImageSet
) -> Drawn:
  """Draws images from nothing, and the lower halves of test images.

  Args:
    config: of the run: `samples`, `completions`, `temperature`, `seed`.
    model: the decoder.
    variables: its variables, trained.
    images: of the run.

  Returns:
    The images; none if there are several processes.
  """
  rows, columns = images.shape
  alone = jax.process_count() == 1  # Parameters may lie on several hosts.
  count = config.samples if alone else 0
  given = images.test[: config.completions if alone else 0]
  rng = jax.random.key(config.seed)

  def complete(known: np.ndarray, salt: int) -> np.ndarray:
    """Whole images `[n, rows, columns]` from their first pixels `[n, k]`."""
    if not len(known):
      return np.zeros((0, rows, columns), np.uint8)
    start = np.full((len(known), 1), data.START)
    prompt = np.concatenate([start, known], axis=1).astype(np.int32)
    new = generation.generate(
      model,
      variables,
      jnp.asarray(prompt),
      max_new_tokens=rows * columns - known.shape[1],
      rng=jax.random.fold_in(rng, salt),
      temperature=config.temperature,
    )
    pixels = np.concatenate([known, np.asarray(jax.device_get(new))], axis=1)
    return pixels.reshape(-1, rows, columns).astype(np.uint8)

  nothing = np.zeros((count, 0), np.uint8)
  complete(nothing, 0)  # Compiles.
  began = time.monotonic()
  samples = complete(nothing, 0)
  seconds = time.monotonic() - began
  upper = given[:, : rows // 2].reshape(len(given), rows // 2 * columns)
  completed = complete(np.repeat(upper, _TRIES, axis=0), 1)
  return Drawn(
    samples,
    given,
    completed.reshape(len(given), _TRIES, rows, columns),
    count / seconds if count else 0.0,
  )
