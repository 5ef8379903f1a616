"""The training loop of all experiments."""

import contextlib
import dataclasses
import fcntl
import math
import os
import pathlib
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax
import tqdm
from flax import linen as nn

from experiments.common import checkpoint
from experiments.common import files
from experiments.common import metrics
from experiments.common import sharding

State = dict[str, Any]


@dataclasses.dataclass
class LoopConfig:
  """What every experiment's configuration has; see `train`."""

  steps: int = 1000  # Runs end by step, never by time.
  batch_size: int = 32  # Rows a step, over all devices and parts.
  accumulate: int = 1  # Parts that a batch is computed in, one by one.
  learning_rate: float = 1e-3  # At the peak.
  warmup_steps: int = 100  # From 0, linearly.
  final_learning_rate: float = 0.1  # Share of the peak where the cosine ends.
  weight_decay: float = 0.1  # Of matrices only.
  beta1: float = 0.9  # Of AdamW.
  beta2: float = 0.95
  clip_norm: float = 1.0  # Global norm of the gradient; 0 for no limit.
  dtype: str = "float32"  # Of activations: float32, bfloat16. Params: float32.
  seed: int = 0  # Of parameters, order of rows, dropout.
  initial: str = ""  # Workdir of a run whose last parameters to start from.
  initial_part: str = ""  # Only these of them, such as encoder; "" for all.
  log_every: int = 10  # Steps.
  eval_every: int = 100  # Steps; 0 for the end only.
  checkpoint_every: int = 100  # Steps; the last step is saved always.
  keep: int = 2  # Checkpoints.
  mesh: str = "data=-1,fsdp=1"  # -1: all devices.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What an experiment gives to the loop.

  Attributes:
    init: `rng -> variables`, as `model.init`; parameters may carry logical axis
      names. Collections other than `params` are carried, not trained.
    loss: `(params, carried, batch, rng) -> (sum, weight, carried)`: the sum of
      the losses in nats, and of their weights, over the rows of `batch`.
    batches: endless batches of this process.
    evaluate: `(params, carried) -> metrics`, called by every process.
    tokens_per_row: for tokens a second.
    loss_unit: what the reported mean loss is called.
    loss_scale: factor from the unit of `loss` to that; nats to bits.
  """

  init: Callable[[jax.Array], Any]
  loss: Callable[[Any, Any, Any, jax.Array], tuple[Any, Any, Any]]
  batches: grain.IterDataset
  evaluate: Callable[[Any, Any], dict[str, float]]
  tokens_per_row: int
  loss_unit: str = "bits/token"
  loss_scale: float = 1 / math.log(2)


@dataclasses.dataclass(frozen=True)
class Result:
  """What `train` returns.

  Attributes:
    state: the final state; `params` and `carried` are what a model needs.
    evaluation: metrics of the last evaluation.
    seconds: spent training and evaluating, all runs of this workdir together.
    tokens_per_second: over the steps of this process; 0 if it took none.
  """

  state: State
  evaluation: dict[str, float]
  seconds: float
  tokens_per_second: float


def check(config: LoopConfig) -> None:
  """Raises UserError for numbers that cannot work."""
  for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
    if getattr(config, name) < 1:
      raise files.UserError(
        f"--config.{name} must be positive, got {getattr(config, name)}."
      )
  for name in ("warmup_steps", "eval_every", "checkpoint_every", "clip_norm"):
    if getattr(config, name) < 0:
      raise files.UserError(
        f"--config.{name} must not be negative, got {getattr(config, name)}."
      )
  if config.warmup_steps >= config.steps:
    raise files.UserError(
      f"--config.warmup_steps {config.warmup_steps} must be less than "
      f"--config.steps {config.steps}."
    )
  if config.batch_size % config.accumulate:
    raise files.UserError(
      f"--config.accumulate {config.accumulate} must divide "
      f"--config.batch_size {config.batch_size}."
    )
  if config.initial_part and not config.initial:
    raise files.UserError(
      "--config.initial_part names a part of what --config.initial names: set "
      "that, too."
    )
  if config.dtype not in ("float32", "bfloat16"):
    raise files.UserError(
      f"--config.dtype must be float32 or bfloat16, got {config.dtype!r}."
    )


def make_schedule(config: LoopConfig) -> optax.Schedule:
  """Step to learning rate: a linear warm-up, then a cosine."""
  return optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    config.warmup_steps,
    config.steps,
    config.learning_rate * config.final_learning_rate,
  )


def make_optimizer(config: LoopConfig) -> optax.GradientTransformation:
  """AdamW with clipping, warm-up and a cosine."""
  schedule = make_schedule(config)
  parts = []
  if config.clip_norm:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  parts.append(
    optax.adamw(
      schedule,
      b1=config.beta1,
      b2=config.beta2,
      weight_decay=config.weight_decay,
      mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    )
  )
  return optax.chain(*parts)


def make_step(
  config: LoopConfig, task: Task, optimizer: optax.GradientTransformation
) -> Callable[[State, Any], State]:
  """One update, to be jitted.

  A batch has `[accumulate, rows, ...]` arrays. The parts are scanned, and sums
  of losses, gradients and weights are added before the one division, so that
  the result is that of the whole batch whatever the weights.
  """

  def part(params: Any, carried: Any, batch: Any, rng: jax.Array) -> Any:
    def total(params: Any) -> Any:
      loss, weight, new = task.loss(params, carried, batch, rng)
      return loss, (weight, new)

    (loss, (weight, carried_new)), grads = jax.value_and_grad(
      total, has_aux=True
    )(params)
    return (grads, loss, weight), carried_new

  def step(state: State, batch: Any) -> State:
    params, carried = state["params"], state["carried"]
    rng = jax.random.fold_in(jax.random.key(config.seed), state["step"])
    if config.accumulate == 1:
      batch = jax.tree.map(lambda x: x[0], batch)
      sums, carried = part(params, carried, batch, rng)
    else:

      def body(carry: Any, item: Any) -> Any:
        sums, carried = carry
        index, batch = item
        new, carried = part(
          params, carried, batch, jax.random.fold_in(rng, index)
        )
        return (jax.tree.map(jnp.add, sums, new), carried), None

      zeros = (
        jax.tree.map(jnp.zeros_like, params),
        jnp.zeros(()),
        jnp.zeros(()),
      )
      items = (jnp.arange(config.accumulate), batch)
      (sums, carried), _ = jax.lax.scan(body, (zeros, carried), items)
    grads, loss, weight = sums
    grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1.0), grads)
    updates, opt_state = optimizer.update(grads, state["opt_state"], params)
    return {
      "step": state["step"] + 1,
      "params": optax.apply_updates(params, updates),
      "carried": carried,
      "opt_state": opt_state,
      "loss": state["loss"] + loss,
      "weight": state["weight"] + weight,
    }

  return step


def _init_state(
  config: LoopConfig, task: Task, optimizer: optax.GradientTransformation
) -> State:
  """The first state, with logical axis names; `loss`, `weight`: since a log."""
  carried = dict(task.init(jax.random.key(config.seed)))
  params = carried.pop("params")
  return {
    "step": jnp.zeros((), jnp.int32),
    "params": params,
    "carried": carried,
    "opt_state": optimizer.init(params),
    "loss": jnp.zeros(()),
    "weight": jnp.zeros(()),
  }


def _start(
  config: LoopConfig,
  task: Task,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  saved: checkpoint.Checkpoints,
) -> tuple[State, Any, dict[str, Any]]:
  """The state to start from, its shardings, and what was saved beside it."""

  def init() -> State:
    return _init_state(config, task, optimizer)

  boxed = jax.eval_shape(init)
  shardings = sharding.of_state(boxed, mesh)
  step = saved.latest()
  if step is None:
    state = jax.jit(lambda: nn.unbox(init()), out_shardings=shardings)()
    if config.initial:
      state["params"] = checkpoint.parameters(
        pathlib.Path(config.initial),
        state["params"],
        part=config.initial_part,
      )
      what = config.initial_part or "parameters"
      files.say(f"starting from the {what} of {config.initial}")
    return state, shardings, {"iterator": None, "seconds": 0.0}
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(boxed),
    shardings,
  )
  state, extra = saved.restore(step, abstract)
  files.say(f"resuming from step {step:,} of {config.steps:,}")
  return state, shardings, extra


def train(config: LoopConfig, task: Task, workdir: pathlib.Path) -> Result:
  """Trains, or goes on where an earlier run of `workdir` stopped.

  Every `checkpoint_every` steps the state and the position of the input are
  saved together. A run that is killed and started again repeats the steps since
  then with the same rows and the same numbers: on the same machine and versions
  the result is bitwise that of a run that was never killed.

  Args:
    config: of the loop.
    task: what to train.
    workdir: where checkpoints and metrics go.

  Returns:
    The final state, its evaluation, and the time it took.

  Raises:
    UserError: if the configuration cannot work, or the loss is not finite.
  """
  check(config)
  mesh = sharding.make_mesh(config.mesh)
  if config.batch_size % (config.accumulate * mesh.size):
    raise files.UserError(
      f"--config.batch_size {config.batch_size} must be a multiple of "
      f"accumulate * devices, {config.accumulate} * {mesh.size}; change it, or "
      "--config.mesh."
    )
  optimizer = make_optimizer(config)
  saved = checkpoint.Checkpoints(workdir, keep=config.keep)
  with contextlib.closing(saved):
    state, shardings, extra = _start(config, task, optimizer, mesh, saved)
    step = jax.jit(
      make_step(config, task, optimizer),
      donate_argnums=0,
      in_shardings=(shardings, sharding.of_rows(mesh, leading=1)),
      out_shardings=shardings,
    )
    run = _Run(config, task, mesh, step, saved, workdir, extra)
    with contextlib.closing(run):
      return run.all(state)


class _Run:
  """The loop itself: steps, and what happens between them."""

  def __init__(
    self,
    config: LoopConfig,
    task: Task,
    mesh: jax.sharding.Mesh,
    step: Callable[[State, Any], State],
    saved: checkpoint.Checkpoints,
    workdir: pathlib.Path,
    extra: dict[str, Any],
  ):
    self._config, self._task, self._mesh = config, task, mesh
    self._step, self._saved = step, saved
    self._first = saved.latest() or 0
    self._zero = jax.jit(
      lambda: jnp.zeros(()), out_shardings=sharding.replicated(mesh)
    )
    self._iterator = iter(task.batches)
    if extra["iterator"] is not None:
      self._iterator.set_state(extra["iterator"])
    active = files.first_process()
    self._writer = metrics.Writer(workdir, step=self._first, active=active)
    # Without a terminal, lines of the log take the place of the bar.
    self._bar = tqdm.tqdm(
      initial=self._first,
      total=config.steps,
      unit="step",
      dynamic_ncols=True,
      disable=None if active else True,
    )
    self._seconds_before = extra["seconds"]
    self._began = time.monotonic()
    self._training = 0.0  # Seconds in steps, the first one (compiling) not.
    self._timed = 0
    self._evaluation: dict[str, float] = {}
    self._schedule = make_schedule(config)

  def close(self) -> None:
    """Closes what is open."""
    self._bar.close()
    self._writer.close()

  def _batch(self) -> Any:
    parts = self._config.accumulate
    batch = {
      name: x.reshape(parts, x.shape[0] // parts, *x.shape[1:])
      for name, x in next(self._iterator).items()
    }
    return sharding.put_rows(batch, sharding.of_rows(self._mesh, leading=1))

  def all(self, state: State) -> Result:
    """Takes the steps that are left."""
    config, since = self._config, time.monotonic()
    if self._first >= config.steps:
      self._evaluate(state)
    for step in range(self._first + 1, config.steps + 1):
      state = self._step(state, self._batch())
      last = step == config.steps
      if step == self._first + 1:
        jax.block_until_ready(state)
        since = time.monotonic()
      self._bar.update()
      if step % config.log_every == 0 or last:
        state, since = self._log(step, state, since)
      evaluating, saving = (
        last or (every > 0 and step % every == 0)
        for every in (config.eval_every, config.checkpoint_every)
      )
      if evaluating or saving:
        jax.block_until_ready(state)  # What follows is not a step's time.
      paused = time.monotonic()
      if evaluating:
        self._evaluate(state)
        self._writer.write(step, self._evaluation)
      if saving:
        self._save(step, state)
      since += time.monotonic() - paused
    return Result(state, self._evaluation, self._seconds(), self._speed())

  def _seconds(self) -> float:
    return self._seconds_before + time.monotonic() - self._began

  def _speed(self) -> float:
    rows = self._timed * self._config.batch_size
    tokens = rows * self._task.tokens_per_row
    return tokens / self._training if self._training > 0 else 0.0

  def _save(self, step: int, state: State) -> None:
    extra = {
      "iterator": self._iterator.get_state(),
      "seconds": self._seconds(),
    }
    self._saved.save(step, state, extra)

  @property
  def _loss_name(self) -> str:
    return "train_" + self._task.loss_unit.replace("/", "_per_")

  def _evaluate(self, state: State) -> None:
    self._evaluation = self._task.evaluate(state["params"], state["carried"])

  def _log(self, step: int, state: State, since: float) -> tuple[State, float]:
    """Writes the mean loss since the last log, and starts a new mean."""
    loss, weight = float(state["loss"]), float(state["weight"])
    now = time.monotonic()
    done = min(step - self._first - 1, (step - 1) % self._config.log_every + 1)
    self._training += now - since
    self._timed += done
    mean = loss / max(weight, 1.0)
    values = {
      self._loss_name: mean * self._task.loss_scale,
      "learning_rate": float(jnp.asarray(self._schedule(step - 1))),
      "tokens_per_second": self._speed(),
    }
    if not math.isfinite(mean):
      raise files.UserError(
        f"the training loss is {mean} at step {step}. Lower "
        "--config.learning_rate or raise --config.warmup_steps."
      )
    self._writer.write(step, values)
    self._report(step, values, now)
    return {**state, "loss": self._zero(), "weight": self._zero()}, now

  def _report(self, step: int, values: dict[str, float], now: float) -> None:
    speed, unit = values["tokens_per_second"], self._task.loss_unit
    loss = f"{values[self._loss_name]:.3f} {unit}"
    self._bar.set_postfix_str(f"{loss}, {speed:,.0f} tokens/s")
    if self._bar.disable:
      done = step - self._first
      left = (now - self._began) / done * (self._config.steps - step)
      left = tqdm.tqdm.format_interval(left)
      files.say(
        f"step {step:,}/{self._config.steps:,}: {loss}, "
        f"{speed:,.0f} tokens/s, about {left} left"
      )


@contextlib.contextmanager
def only_run(workdir: pathlib.Path) -> Iterator[None]:
  """Holds a workdir, so that two runs cannot write to it at once."""
  if not files.first_process():
    yield  # The first process holds it for all.
    return
  workdir.mkdir(parents=True, exist_ok=True)
  handle = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise files.UserError(
        f"another run is writing to {workdir}. Wait for it, or take another "
        "--workdir."
      ) from error
    yield  # The lock goes with the process, however it ends.
  finally:
    os.close(handle)
