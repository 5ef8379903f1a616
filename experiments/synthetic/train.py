"""Synthetic tasks: configuration, loss, and a run from end to end."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.common import checkpoint
from experiments.common import files
from experiments.common import loop
from experiments.common import report
from experiments.common import sharding
from experiments.synthetic import associative_recall
from experiments.synthetic import copy_task
from experiments.synthetic import duplication
from experiments.synthetic import masked_summation
from experiments.synthetic import paragraph_retrieval
from experiments.synthetic import sorting
from experiments.synthetic import summary
from experiments.synthetic import task as task_lib

# Name -> the task, made from its options.
TASKS: dict[str, Callable[..., task_lib.SyntheticTask]] = {
  "associative_recall": associative_recall.AssociativeRecall,
  "copy_task": copy_task.CopyTask,
  "duplication": duplication.Duplication,
  "masked_summation": masked_summation.MaskedSummation,
  "paragraph_retrieval": paragraph_retrieval.ParagraphRetrieval,
  "sorting": sorting.Sorting,
}


@dataclasses.dataclass
class Config(loop.LoopConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  task: str = "masked_summation"  # See `TASKS`.
  task_options: dict[str, Any] = dataclasses.field(default_factory=dict)
  method: str = "star"  # Of those that the task knows.
  method_options: dict[str, Any] = dataclasses.field(default_factory=dict)
  eval_rows: int = 1024  # Held-out rows, the same for every run of a task.
  weight_decay: float = 0.0
  beta2: float = 0.99


def check(config: Config) -> None:
  """Raises UserError for options that would fail only after training."""
  loop.check(config)
  if config.eval_rows < 1:
    raise files.UserError(
      f"--config.eval_rows must be positive, got {config.eval_rows}."
    )
  if config.seed < 0:
    raise files.UserError(
      f"--config.seed must not be negative, got {config.seed}."
    )


def make_task(config: Config) -> task_lib.SyntheticTask:
  """Makes the task that a configuration names.

  Args:
    config: of the run.

  Returns:
    The task.

  Raises:
    UserError: for an unknown name or option.

  Example:
    >>> make_task(Config(task_options={"n": 50})).length
    50

  Source: a literal dictionary instead of a registry.
  """
  if config.task not in TASKS:
    raise files.UserError(
      f"unknown task {config.task!r}; known: {', '.join(sorted(TASKS))}."
    )
  factory = TASKS[config.task]
  known = list(inspect.signature(factory).parameters)
  for option in config.task_options:
    if option not in known:
      raise files.UserError(
        f"task {config.task!r} has no option {option!r}; it has: "
        f"{', '.join(known)}."
      )
  return factory(**config.task_options)


def make_model(config: Config, task: task_lib.SyntheticTask) -> nn.Module:
  """Makes the model, and checks that it takes the rows of the task."""
  model = task.make_model(
    config.method, dict(config.method_options), dtype=jnp.dtype(config.dtype)
  )
  try:
    jax.eval_shape(
      lambda: model.init(jax.random.key(0), task_lib.held_out(task, 1))
    )
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(
      f"method {config.method!r} does not take rows of {task.length} tokens: "
      f"{error}"
    ) from error
  return model


class Evaluator:
  """The loss and the metric of a model on the held-out rows.

  Args:
    task: of the run.
    model: of the run.
    mesh: over which rows are split.
    rows: how many to draw.
    batch_size: rows at once, over all processes.
  """

  def __init__(
    self,
    task: task_lib.SyntheticTask,
    model: nn.Module,
    mesh: jax.sharding.Mesh,
    *,
    rows: int,
    batch_size: int,
  ):
    self._task, self._rows, self._batch_size = task, rows, batch_size
    self._held_out = task_lib.held_out(task, rows)
    self._sharding = sharding.of_rows(mesh)

    def total(variables: Any, batch: Any) -> jax.Array:
      weights = batch.pop("weights")
      outputs = model.apply(variables, batch, train=False)
      found = jnp.stack(task.measure(outputs, batch))
      return jnp.sum(jnp.where(weights[None] > 0, found, 0.0), axis=1)

    self._total = jax.jit(total, out_shardings=sharding.replicated(mesh))

  def __call__(self, params: Any, carried: Any) -> dict[str, float]:
    """The means over all rows."""
    share = slice(jax.process_index(), None, jax.process_count())
    total = np.zeros(2)
    for low in range(0, self._rows, self._batch_size):
      rows = np.arange(low, low + self._batch_size)
      inside = rows < self._rows
      rows = np.where(inside, rows, 0)[share]
      batch = {name: x[rows] for name, x in self._held_out.items()}
      batch["weights"] = inside[share].astype(np.float32)
      placed = sharding.put_rows(batch, self._sharding)
      sums = self._total({"params": params, **carried}, placed)
      total += np.asarray(jax.device_get(sums))
    loss, metric = (total / self._rows).tolist()
    return {"held_out_loss": loss, self._task.metric: metric}


def for_loop(
  config: Config,
  task: task_lib.SyntheticTask,
  model: nn.Module,
  evaluate: Callable[[Any, Any], dict[str, float]],
) -> loop.Task:
  """What the loop needs to train `model` on `task`."""

  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    names = ("dropout", "attention")
    rngs = dict(zip(names, jax.random.split(rng, 2), strict=True))
    outputs, carried = model.apply(
      {"params": params, **carried},
      batch,
      train=True,
      rngs=rngs,
      mutable=list(carried),
    )
    losses = task.measure(outputs, batch)[0]
    rows = jnp.asarray(losses.shape[0], jnp.float32)
    return jnp.sum(losses), rows, dict(carried)

  example = task_lib.held_out(task, 1)
  return loop.Task(
    init=lambda rng: model.init(rng, example),
    loss=loss,
    batches=task_lib.batches(
      task,
      steps=config.steps,
      batch_size=config.batch_size,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    ),
    evaluate=evaluate,
    tokens_per_row=task.length,
    loss_unit="loss",
    loss_scale=1.0,
  )


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, evaluates and reports; goes on where an earlier run stopped.

  Args:
    config: of the run.
    workdir: for checkpoints, metrics and the report.

  Returns:
    What `report/results.json` holds.

  Raises:
    UserError: for anything that the user can mend.
  """
  check(config)
  task = make_task(config)
  model = make_model(config, task)
  mesh = sharding.make_mesh(config.mesh)
  identity = checkpoint.identity(config, {})
  checkpoint.claim(workdir, identity)
  done = report.finished(workdir, identity)
  if done is not None:
    files.say(summary.verdict(done, workdir))
    return done
  evaluate = Evaluator(
    task,
    model,
    mesh,
    rows=config.eval_rows,
    batch_size=config.batch_size // config.accumulate,
  )
  files.say("compiling the training step, then training")
  result = loop.train(config, for_loop(config, task, model, evaluate), workdir)
  return summary.write(config, identity, workdir, task, result)
