"""Images pixel by pixel: configuration, and a run from end to end."""

import dataclasses
import math
import pathlib
from typing import Any

from experiments.common import checkpoint
from experiments.common import decoders
from experiments.common import files
from experiments.common import loop
from experiments.common import report
from experiments.common import sharding
from experiments.common import transformers
from experiments.images import data
from experiments.images import drawing
from experiments.images import floors
from experiments.images import summary
from jaxattn.models import decoder
from jaxattn.models import generation


@dataclasses.dataclass
class Config(decoders.ModelConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  dataset: str = "digits"  # digits, mnist.
  train_images: int = 0  # To learn from, at most; 0: all.
  positions: str = "axes"  # axes (row and column), learned, rotary, none.
  # Images at the end.
  samples: int = 64  # Drawn from nothing.
  completions: int = 8  # Test images whose lower half is drawn anew.
  temperature: float = 1.0


def check(config: Config) -> None:
  """Raises UserError for options that would fail only after training."""
  loop.check(config)
  for name in ("train_images", "samples", "completions", "seed"):
    if getattr(config, name) < 0:
      raise files.UserError(
        f"--config.{name} must not be negative, got {getattr(config, name)}."
      )
  try:
    generation.check_sampling(config.temperature, None, None)
  except ValueError as error:
    raise files.UserError(f"--config.{error}") from error


def make_model(config: Config, images: data.ImageSet) -> decoder.Decoder:
  """Makes the decoder, and checks that it takes the images."""
  rows, columns = images.shape
  axes = config.positions == "axes"
  model = decoders.make_model(
    config,
    vocab_size=images.levels,
    length=rows * columns,
    form={"position_axes": images.shape} if axes else {},
  )
  what = f"{rows} x {columns} pixels"
  transformers.check_rows(config, model, rows * columns, what)
  return model


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
  mesh = sharding.make_mesh(config.mesh)
  images = data.load(config.dataset, train_images=config.train_images)
  model = make_model(config, images)
  parts = ("train", "valid", "test")
  same = checkpoint.identity(
    config, {f"images.{part}": images.digest(part) for part in parts}
  )
  checkpoint.claim(workdir, same)
  done = report.finished(workdir, same)
  if done is not None:
    files.say(summary.verdict(done, workdir))
    return done
  files.say(summary.describe(images))
  nats = decoders.Evaluator(model, mesh)
  rows = {
    p: data.Pixels(getattr(images, p)) for p in ("train", "valid", "test")
  }
  at_once = config.batch_size // config.accumulate

  def bits(params: Any, carried: Any, part: str) -> float:
    return nats(params, carried, rows[part].batches(at_once)) / math.log(2)

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    return {"valid_bits_per_dim": bits(params, carried, "valid")}

  task = decoders.make_task(
    config,
    model,
    rows["train"],
    math.prod(images.shape),
    evaluate,
    loss_unit="bits/dim",
  )
  files.say("compiling the training step, then training")
  result = loop.train(config, task, workdir)
  params, carried = result.state["params"], result.state["carried"]
  files.say("evaluating on the test images, and drawing")
  scores = {
    "test": bits(params, carried, "test"),
    "valid": result.evaluation["valid_bits_per_dim"],
  }
  drawn = drawing.draw(config, model, {"params": params, **carried}, images)
  return summary.write(
    config,
    same,
    workdir,
    images,
    floors.all_floors(images),
    result,
    scores,
    drawn,
  )
