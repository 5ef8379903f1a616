"""Every configuration of language modelling makes its model."""

import functools
import importlib

import jax
import jax.numpy as jnp
import pytest

import jaxattn
from experiments.common import files
from experiments.lm import train
from tests.experiments import tiny


def _config(name, *arguments):
  module = importlib.import_module(f"experiments.lm.configs.{name}")
  return module.get_config(*arguments)


@functools.cache
def _logits(name, *arguments):
  """Shape of the logits of a row, without running anything."""
  config = _config(name, *arguments)
  train.check(config)
  model = train.make_model(config, 257)
  tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
  out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
  return out.shape


@pytest.mark.parametrize(
  ("name", "method"),
  [
    ("quickstart", "dense"),
    ("quickstart", "longformer"),
    ("quickstart", "reformer"),
    ("quickstart", "routing"),
    ("quickstart", "sinkhorn"),
    ("quickstart", "sparse_transformer"),
    ("smoke", "longformer"),
    ("smoke", "sliding_window"),
    ("smoke", "sparse_transformer"),
  ],
)
def test_small_ones_with_every_causal_method(name, method):
  assert _logits(name, method) == (1, 64, 257)


@pytest.mark.parametrize("name", ["enwik8_small", "sparse_transformer_enwik8"])
def test_large_ones(name):
  assert _logits(name) == (1, 64, 257)


def test_phases_of_longformer_double_windows_and_lengths():
  configs = [_config("longformer_char", str(p)) for p in range(1, 6)]
  windows = [c.method_options["window"] for c in configs]
  assert (windows[0][0], windows[4][0]) == (32, 512)
  assert windows[0][-1] == 2 * 2047  # The whole row.
  for first, second in zip(windows, windows[1:], strict=False):
    assert all(b == 2 * a for a, b in zip(first[:6], second, strict=False))
  assert [c.length for c in configs] == [2048, 4096, 8192, 16384, 23040]
  rates = [c.learning_rate for c in configs]
  assert rates == [2.5e-4, 1.25e-4, 6.25e-5, 3.125e-5, 1.5625e-5]
  model = train.make_model(configs[0], 257)
  dilations = [m.dilation for m in model.cfg.methods]
  assert dilations[5:8] == [1, (1,) * 6 + (2, 2), (1,) * 6 + (2, 2)]
  with pytest.raises(files.UserError, match="phases are 1 to 5"):
    _config("longformer_char", "6")


def test_the_form_of_sparse_transformer():
  model = train.make_model(_config("sparse_transformer_enwik8"), 257)
  assert model.cfg.position_axes == (96, 128)
  assert model.cfg.activation == "gelu_sigmoid"
  assert model.cfg.methods == (
    jaxattn.sparse_transformer(stride=128, summary=32, subblocks=4),
  )
  with pytest.raises(files.UserError, match="--config.model must be"):
    train.make_model(tiny.config("x", model="bert"), 257)


def test_an_encoders_method_is_refused():
  config = tiny.config("x", method="bigbird", method_options={"block": 4})
  with pytest.raises(files.UserError, match="does not serve causal masks"):
    train.make_model(config, 257)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("method", "options", "model"),
  [
    ("longformer", {"window": 8, "num_global": 1}, "gpt"),
    ("sparse_transformer", {"stride": 4}, "sparse_transformer"),
  ],
)
def test_runs_to_a_report(tmp_path, method, options, model):
  """Training, evaluation, samples from a cache, and the report."""
  folder = tiny.write_corpus(tmp_path / "texts")
  config = tiny.config(
    folder, method=method, method_options=options, model=model, steps=3
  )
  results = train.run(config, tmp_path / "work")
  assert 0 < results["bits_per_byte"]["test"] < 16
  assert (
    f"decoder, {method}"
    in (tmp_path / "work" / "report" / "report.md").read_text()
  )
