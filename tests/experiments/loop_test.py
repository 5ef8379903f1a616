"""The training loop: resume, shardings, accumulation, what it refuses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.common import files
from experiments.common import loop
from experiments.common import methods
from experiments.common import metrics
from experiments.common import sharding
from experiments.common import tokens as tokens_lib
from experiments.lm import train
from tests import stateful_method
from tests.experiments import tiny


class _Bigram(nn.Module):
  """Takes the place of the decoder where the model does not matter."""

  cfg: train.Config

  @nn.compact
  def __call__(self, tokens, *, mask=None, positions=None, train=False):
    del mask, positions
    boxed = nn.with_logical_partitioning
    init = nn.initializers.normal(0.1)
    shape = (257, self.cfg.width)
    table: Any = self.param("table", boxed(init, ("vocab", "embed")), shape)
    out: Any = self.param("out", boxed(init, ("vocab", "embed")), shape)
    x = nn.Dropout(self.cfg.dropout)(table[tokens], deterministic=not train)
    return jnp.einsum("...d,vd->...v", x, out)


def _run(
  workdir,
  folder,
  stop=None,
  monkeypatch: Any = None,
  bigram=True,
  **changes,
) -> tuple[Any, list[dict[str, Any]]]:
  """Final state and metrics; `stop` raises after saving that step."""
  config = tiny.config(folder, **changes)
  corpus = train.corpora.load(config.corpus, config.path)
  tokenizer = tokens_lib.make(
    config.tokenizer,
    corpus.train.texts,
    vocab_size=config.vocab_size,
    workdir=workdir,
  )
  tokens = train.rows_lib.join(tokenizer, corpus.train.texts)
  model: Any = (
    _Bigram(config)
    if bigram
    else train.make_model(config, tokenizer.vocab_size)
  )
  task = train.make_task(config, model, tokens, lambda *_: {"valid": 1.0})
  if stop is None:
    result = loop.train(config, task, workdir)
    return result.state, metrics.read(workdir / metrics.NAME)
  save = loop.checkpoint.Checkpoints.save

  def stopping(self, step, state, extra):
    save(self, step, state, extra)
    if step == stop:
      raise InterruptedError

  with monkeypatch.context() as patch:
    patch.setattr(loop.checkpoint.Checkpoints, "save", stopping)
    with pytest.raises(InterruptedError):
      loop.train(config, task, workdir)
  return None, metrics.read(workdir / metrics.NAME)


def _losses(lines):
  return np.array(
    [x["train_bits_per_token"] for x in lines if "train_bits_per_token" in x]
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def one_device(folder, tmp_path_factory):
  """The run that others are compared with."""
  return _run(tmp_path_factory.mktemp("one"), folder)


@pytest.fixture(scope="module")
def decoder_run(folder, tmp_path_factory):
  """The same with the decoder."""
  return _run(tmp_path_factory.mktemp("decoder"), folder, bigram=False)


def test_learns(one_device, decoder_run):
  losses = _losses(one_device[1])
  assert losses[-1] < losses[0] - 0.1
  losses = _losses(decoder_run[1])
  assert losses[-1] < losses[0] - 1


def test_resume_is_exact(one_device, folder, tmp_path, monkeypatch):
  """Stopped between logs, and with a log after the last checkpoint."""
  options = dict(log_every=3, checkpoint_every=4)
  _, before = _run(tmp_path, folder, stop=8, monkeypatch=monkeypatch, **options)
  assert max(x["step"] for x in before) == 6
  with (tmp_path / metrics.NAME).open("a") as file:
    file.write('{"step": 9, "train_bits_per_token": -1.0}\n{"st')
  state, lines = _run(tmp_path, folder, **options)
  jax.tree.map(
    np.testing.assert_array_equal, state["params"], one_device[0]["params"]
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    state["opt_state"],
    one_device[0]["opt_state"],
  )
  # Each log is the mean since the one before, the resumed one as well.
  want = _losses(one_device[1])
  got = [x for x in lines if "train_bits_per_token" in x]
  assert [x["step"] for x in got] == [3, 6, 9, 10]
  np.testing.assert_allclose(_losses(got)[2], want[6:9].mean(), rtol=2e-3)
  assert _losses(got).min() > 0


@pytest.mark.parametrize(("mesh", "parts"), [("data=-1", 1), ("fsdp=-1", 8)])
def test_shardings_give_the_losses_of_one_device(
  decoder_run, folder, tmp_path, mesh, parts
):
  """Ten steps, to 1e-5: only the order of sums differs."""
  assert jax.device_count() == 8
  state, lines = _run(tmp_path, folder, bigram=False, mesh=mesh)
  want, got = _losses(decoder_run[1]), _losses(lines)
  assert len(got) == 10
  np.testing.assert_allclose(got, want, rtol=1e-5)
  kernel = state["params"]["blocks_0"]["mlp_in"]["kernel"]
  shard = kernel.addressable_shards[0].data
  assert shard.size * parts == kernel.size
  # The optimizer's moments lie as the parameters do.
  moments = [
    x for x in jax.tree.leaves(state["opt_state"]) if x.shape == kernel.shape
  ]
  assert len(moments) == 2
  assert all(m.sharding.is_equivalent_to(kernel.sharding, 2) for m in moments)


def test_accumulation_equals_one_batch(one_device, folder, tmp_path):
  """Rows of packed documents have unequal weights."""
  _, lines = _run(tmp_path, folder, accumulate=4)
  np.testing.assert_allclose(_losses(lines), _losses(one_device[1]), rtol=1e-5)


def test_accumulation_and_sharding_together(one_device, folder, tmp_path):
  _, lines = _run(tmp_path, folder, accumulate=2, mesh="data=4,fsdp=2")
  np.testing.assert_allclose(_losses(lines), _losses(one_device[1]), rtol=1e-5)


def test_bfloat16_keeps_float32_parameters(decoder_run, folder, tmp_path):
  state, lines = _run(tmp_path, folder, bigram=False, dtype="bfloat16")
  assert {str(x.dtype) for x in jax.tree.leaves(state["params"])} == {"float32"}
  got, want = _losses(lines), _losses(decoder_run[1])
  # Bfloat16 has 8 bits: each loss is near, and none is equal.
  np.testing.assert_allclose(got, want, rtol=0.03)
  assert (got != want).all()


def test_dropout_differs_by_step_and_resumes(folder, tmp_path, monkeypatch):
  whole, _ = _run(tmp_path / "a", folder, dropout=0.3, steps=6)
  _run(
    tmp_path / "b",
    folder,
    stop=4,
    monkeypatch=monkeypatch,
    dropout=0.3,
    steps=6,
  )
  again, _ = _run(tmp_path / "b", folder, dropout=0.3, steps=6)
  jax.tree.map(np.testing.assert_array_equal, whole["params"], again["params"])


def test_state_of_a_method_is_carried(folder, tmp_path, monkeypatch):
  """Counted by every part of a batch, saved, restored, sampled from."""
  monkeypatch.setitem(
    methods.METHODS, "stateful", lambda sizes: (stateful_method.Stateful(),)
  )
  options = dict(
    method="stateful",
    method_options={},
    bigram=False,
    steps=4,
    accumulate=2,
    mesh="data=2",
  )
  whole, _ = _run(tmp_path / "a", folder, **options)
  counts = {int(x) for x in jax.tree.leaves(whole["carried"])}
  assert counts == {4 * 2}
  _run(tmp_path / "b", folder, stop=2, monkeypatch=monkeypatch, **options)
  again, _ = _run(tmp_path / "b", folder, **options)
  for name in ("params", "carried"):
    jax.tree.map(np.testing.assert_array_equal, whole[name], again[name])


def test_starts_from_the_parameters_of_another_run(folder, tmp_path):
  """On another mesh, with longer rows; a resumed run does not start again."""
  first, _ = _run(tmp_path / "a", folder, steps=4, mesh="data=1")
  options = dict(
    initial=str(tmp_path / "a"),
    learning_rate=1e-30,
    weight_decay=0.0,
    length=24,
    mesh="data=2,fsdp=2",
  )
  second, _ = _run(tmp_path / "b", folder, **options)
  for got, want in zip(
    jax.tree.leaves(second["params"]),
    jax.tree.leaves(first["params"]),
    strict=True,
  ):
    np.testing.assert_allclose(got, want, rtol=1e-6)
  other, _ = _run(tmp_path / "c", folder, learning_rate=1e-30)
  assert np.abs(other["params"]["out"] - first["params"]["out"]).max() > 1e-3


def test_wrong_initial_parameters_are_named(folder, tmp_path):
  with pytest.raises(files.UserError, match="holds no checkpoint"):
    _run(tmp_path / "b", folder, initial=str(tmp_path / "none"))
  _run(tmp_path / "a", folder, steps=4)
  with pytest.raises(files.UserError, match=r"out is \(257, 16\).*\(257, 24\)"):
    _run(tmp_path / "b", folder, initial=str(tmp_path / "a"), width=24)


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path):
  with pytest.raises(files.UserError, match="loss is nan.*learning_rate"):
    _run(tmp_path, folder, learning_rate=1e38, clip_norm=0.0)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"steps": 0}, "steps must be positive"),
    ({"warmup_steps": 10}, "warmup_steps 10 must be less than .*steps 10"),
    ({"accumulate": 3}, "accumulate 3 must divide --config.batch_size 16"),
    ({"dtype": "float16"}, "dtype must be float32 or bfloat16"),
    ({"mesh": "data=8", "batch_size": 12}, "batch_size 12 must be a multiple"),
    ({"mesh": "data=16"}, "does not fit 8 devices"),
    ({"mesh": "tensor=2"}, "must look like"),
    ({"mesh": "fsdp=8", "width": 12}, "cannot be split over fsdp=8"),
    ({"log_every": 0}, "log_every must be positive"),
  ],
)
def test_refused_in_one_line(folder, tmp_path, changes, message):
  with pytest.raises(files.UserError, match=message) as error:
    _run(tmp_path, folder, **changes)
  assert "\n" not in str(error.value)


def test_meshes():
  assert dict(sharding.make_mesh("data=-1,fsdp=2").shape) == {
    "data": 4,
    "fsdp": 2,
  }
  assert sharding.make_mesh("data=2").size == 2  # Of eight.


def test_weight_decay_spares_vectors():
  config = loop.LoopConfig(learning_rate=1.0, weight_decay=0.5, warmup_steps=1)
  optimizer = loop.make_optimizer(dataclasses.replace(config, steps=2))
  params = {"w": np.ones((2, 2), np.float32), "scale": np.ones(2, np.float32)}
  zero = jax.tree.map(np.zeros_like, params)
  state = optimizer.init(params)
  _, state = optimizer.update(zero, state, params)  # At rate 0.
  updates: Any = optimizer.update(zero, state, params)[0]
  np.testing.assert_allclose(updates["w"], -0.5 * np.ones((2, 2)))
  np.testing.assert_array_equal(updates["scale"], np.zeros(2))


def test_one_run_at_a_time(tmp_path):
  with loop.only_run(tmp_path):
    with pytest.raises(files.UserError, match="another run is writing"):
      with loop.only_run(tmp_path):
        pass
  with loop.only_run(tmp_path):
    pass
