"""What a synthetic task gives to the trainer."""

from typing import Any
from typing import Protocol
from typing import runtime_checkable

import grain
import jax
import numpy as np
from flax import linen as nn

Batch = dict[str, np.ndarray]
_TRAIN, _HELD_OUT = 0, 1  # Streams of rows.


@runtime_checkable
class SyntheticTask(Protocol):
  """A task whose rows are drawn, each once.

  A task is a frozen dataclass in a module of its own; its fields are the
  options that `--config.task_options` sets.

  Attributes:
    metric: name of the number that the task is judged by.
    lower_is_better: whether a small one is good.
    length: tokens in a row.
  """

  metric: str
  lower_is_better: bool

  @property
  def length(self) -> int:
    """Tokens in a row."""
    ...

  def draw(self, rng: np.random.Generator, rows: int) -> Batch:
    """Draws rows: arrays of which the first axis counts them."""
    ...

  def make_model(
    self, method: str, options: dict[str, Any], *, dtype: Any
  ) -> nn.Module:
    """A module `(batch, *, train) -> outputs`, with activations in `dtype`.

    Raises:
      UserError: for an unknown method or option.
    """
    ...

  def measure(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The loss and the metric of every row, `[rows]` each."""
    ...

  def floors(self) -> dict[str, float]:
    """The metric of trivial answers: name -> value."""
    ...


def draw(task: SyntheticTask, seed: int, step: int, rows: int) -> Batch:
  """The rows of a training step, which `(seed, step)` alone decide."""
  return task.draw(np.random.default_rng([_TRAIN, seed, step]), rows)


def held_out(task: SyntheticTask, rows: int) -> Batch:
  """The rows that every run of a task is measured on."""
  return task.draw(np.random.default_rng([_HELD_OUT, 0]), rows)


def batches(
  task: SyntheticTask,
  *,
  steps: int,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """New rows for every step.

  Args:
    task: that draws them.
    steps: after which the rows come again.
    batch_size: rows a step, over all processes.
    seed: of the rows.
    process_index: of this process, which gets its share of every batch.
    process_count: divides `batch_size`.

  Returns:
    A grain dataset; the state of its iterator is the number of steps taken.
  """
  share = slice(process_index, None, process_count)

  def one(step: int) -> Batch:
    rows = draw(task, seed, int(step), batch_size)
    return {name: x[share] for name, x in rows.items()}

  data = grain.MapDataset.range(steps).map(one).repeat()
  return data.to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  )
