"""Short trainings on synthetic tasks, for benchmarks that compare methods."""

import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.synthetic import task as task_lib


class Trained(NamedTuple):
  """What a training leaves.

  Attributes:
    variables: of the model.
    seconds: that it took, compilation aside.
    losses: the mean loss of every tenth of the steps.
  """

  variables: Any
  seconds: float
  losses: list[float]


def train(
  task: Any,
  model: nn.Module,
  *,
  steps: int,
  batch_size: int,
  learning_rate: float,
  warmup: int,
  seed: int,
) -> Trained:
  """Trains by Adam with a linear warm-up, and a constant rate after it.

  Args:
    task: a `SyntheticTask`.
    model: of the task.
    steps: of the training, on new rows each.
    batch_size: rows a step.
    learning_rate: after the warm-up.
    warmup: steps of it.
    seed: of the rows, the parameters and what methods draw.

  Returns:
    The variables, and what the training took.
  """
  rng = jax.random.key(seed)
  example = task_lib.draw(task, seed, 0, 1)
  variables = nn.unbox(jax.jit(model.init)(rng, example))
  params = variables.pop("params")
  optimizer = optax.adam(optax.linear_schedule(0.0, learning_rate, warmup))

  def loss(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    outputs, carried = model.apply(
      {"params": params, **carried},
      batch,
      train=True,
      rngs={"attention": rng},
      mutable=list(carried),
    )
    return jnp.mean(task.measure(outputs, batch)[0]), dict(carried)

  @jax.jit
  def step(state: Any, batch: Any, number: jax.Array) -> Any:
    params, carried, moments = state
    slope = jax.value_and_grad(loss, has_aux=True)
    draws = jax.random.fold_in(rng, number)
    (value, carried), grads = slope(params, carried, batch, draws)
    updates, moments = optimizer.update(grads, moments)
    return (optax.apply_updates(params, updates), carried, moments), value

  state = (params, dict(variables), optimizer.init(params))
  began, found = 0.0, []
  for number in range(steps):
    batch = task_lib.draw(task, seed, number, batch_size)
    state, value = step(state, batch, jnp.int32(number))
    found.append(value)
    if number == 0:
      jax.block_until_ready(state)
      began = time.monotonic()
  jax.block_until_ready(state)
  seconds = time.monotonic() - began
  tenth = max(1, steps // 10)
  losses = [
    float(jnp.mean(jnp.stack(found[i : i + tenth])))
    for i in range(0, steps, tenth)
  ]
  return Trained({"params": state[0], **state[1]}, seconds, losses)


def evaluate(
  task: Any, model: nn.Module, variables: Any, *, rows: int, batch_size: int
) -> dict[str, float]:
  """The mean loss, metric and share of rows all right, on held-out rows.

  Args:
    task: a `SyntheticTask`.
    model: of the task.
    variables: trained.
    rows: how many to draw, the same for all that are compared.
    batch_size: rows at once, a divisor of `rows`.

  Returns:
    `loss`, the task's metric by its name, and `exact` where the task has it.
  """
  held_out = task_lib.held_out(task, rows)

  @jax.jit
  def one(variables: Any, batch: Any) -> dict[str, jax.Array]:
    outputs = model.apply(variables, batch, train=False)
    loss, metric = task.measure(outputs, batch)
    found = {"loss": loss, task.metric: metric}
    if hasattr(task, "exact"):
      found["exact"] = task.exact(outputs, batch).astype(jnp.float32)
    return {name: jnp.mean(x) for name, x in found.items()}

  parts = []
  for low in range(0, rows, batch_size):
    part = {k: x[low : low + batch_size] for k, x in held_out.items()}
    parts.append(one(variables, part))
  return {
    k: float(jnp.mean(jnp.stack([p[k] for p in parts]))) for k in parts[0]
  }
