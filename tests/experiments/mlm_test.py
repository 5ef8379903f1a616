"""Masked language modelling, from hidden words to the report."""

import json

import jax
import numpy as np
import optax
import pytest

from experiments.common import data as rows_lib
from experiments.common import files
from experiments.common import tokens as tokens_lib
from experiments.mlm import floors
from experiments.mlm import forms
from experiments.mlm import hiding
from experiments.mlm import train
from experiments.mlm.configs import accelerator
from experiments.mlm.configs import quickstart
from experiments.mlm.configs import smoke
from tests.experiments import tiny


def _config(folder, **changes):
  fields = dict(
    corpus="folder",
    path=str(folder),
    length=16,
    eval_rows=16,
    width=16,
    num_layers=1,
    num_heads=2,
    steps=4,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=2,
    log_every=1,
    eval_every=2,
    checkpoint_every=2,
    mesh="data=1",
  )
  return train.Config(**(fields | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  base = tmp_path_factory.mktemp("mlm")
  config = _config(tiny.write_corpus(base / "texts"))
  return config, base / "work", train.run(config, base / "work")


def test_report_is_complete(finished):
  _, workdir, results = finished
  folder = workdir / "report"
  assert sorted(p.name for p in folder.iterdir()) == [
    "loss.png",
    "report.md",
    "results.json",
  ]
  assert json.loads((folder / "results.json").read_text()) == results
  test = results["scores"]["test"]
  assert 0 < test["bits_per_character"] < 10
  # A token is a character here, so the two say the same.
  bits = np.log2(test["perplexity"])
  np.testing.assert_allclose(test["bits_per_character"], bits, rtol=1e-6)
  assert set(results["floors"]["bits"]) == {
    "counts of tokens",
    "counts of 3+3 neighbours",
  }
  text = (folder / "report.md").read_text()
  assert "floors that still win" in text and "Filled in" in text


def test_a_finished_run_is_not_repeated(finished, capsys):
  config, workdir, results = finished
  assert train.run(config, workdir) == results
  assert "compiling" not in capsys.readouterr().out


@pytest.mark.slow
def test_longer_rows_start_from_shorter_ones(finished, tmp_path, capsys):
  """Learned positions are repeated, as in Longformer."""
  config, workdir, _ = finished
  longer = _config(config.path, length=40, initial=str(workdir))
  train.run(longer, tmp_path)
  assert "starting from the parameters" in capsys.readouterr().out
  with pytest.raises(files.UserError, match="both need the same sizes"):
    train.run(
      _config(config.path, length=8, initial=str(workdir)), tmp_path / "b"
    )


def test_words_are_hidden_whole_and_separators_never():
  tokenizer = tokens_lib.Bytes()
  docs = rows_lib.join(tokenizer, [b"alpha beta gamma delta"] * 9)
  rows = rows_lib.PackedRows(docs, 40)
  held = hiding.HeldOut(rows, np.arange(len(rows)), seed=3)
  hide = hiding.Hider(tokenizer, rate=0.5)
  for batch in held.batches(2):
    hidden = hide(held.keys(batch), batch)
    for row, place, real in zip(
      batch["inputs"], hidden.places, hidden.weights, strict=True
    ):
      gone = np.zeros(40, bool)
      gone[np.asarray(place)[np.asarray(real)]] = True
      assert not gone[row == tokenizer.separator].any()
      letters = row != ord(" ")
      letters &= row != tokenizer.separator
      both = letters[1:] & letters[:-1]
      np.testing.assert_array_equal(gone[1:][both], gone[:-1][both])


def test_held_out_rows_hide_the_same_in_every_batch_size():
  tokenizer = tokens_lib.Bytes()
  docs = rows_lib.join(tokenizer, [b"some words of text " * 9])
  rows = rows_lib.PackedRows(docs, 24)
  held = hiding.HeldOut(rows, np.arange(len(rows)), seed=0)
  hide = hiding.Hider(tokenizer)

  def hidden(size):
    found = [
      np.asarray(hide(held.keys(b), b).tokens)[b["counts"] > 0]
      for b in held.batches(size)
    ]
    return np.concatenate(found)

  np.testing.assert_array_equal(hidden(2), hidden(5))


def test_floor_against_counting_by_hand():
  """`a?c` was seen twice with b and once with x; b and x once more alone."""
  text = np.frombuffer(b"abcabcaxc", np.uint8)
  row = np.array([[97, 255, 99, 255]])
  asked = np.array([[0, 1, 98], [0, 3, 97]])
  found = floors.both_sides(text, row, asked, mask_id=255, reach=1)
  tokens = {c: text.tolist().count(ord(c)) for c in "abcx"}
  zero = {c: (tokens[c] + 4 / 255) / (9 + 4) for c in "abcx"}
  between = (2 + 2 * zero["b"]) / (3 + 2)
  # Behind c nothing stands, and before it a: one neighbour at the left.
  behind = (2 + 1 * zero["a"]) / (2 + 1)
  np.testing.assert_allclose(found, [between, behind])


def test_logits_are_those_at_the_hidden_places(finished):
  config, _, _ = finished
  docs = rows_lib.join(tokens_lib.Bytes(), [b"alpha beta gamma " * 20])
  hide = hiding.Hider(tokens_lib.Bytes())
  form = forms.make(config, hide)
  rows = rows_lib.PackedRows(docs, config.length)
  batch = next(hiding.HeldOut(rows, np.arange(4), 0).batches(4))
  params = jax.jit(form.init)(jax.random.key(0))["params"]
  hidden = hide(jax.random.split(jax.random.key(1), 4), batch)
  got, _ = form.logits(params, {}, batch, hidden, None, train=False)
  everything = jax.jit(form.model.apply)({"params": params}, hidden.tokens)
  want = np.take_along_axis(
    np.asarray(everything), np.asarray(hidden.places)[..., None], axis=1
  )
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rate": 1.0}, "config.rate must lie in"),
    ({"eval_rows": -1}, "config.eval_rows must not be negative"),
    ({"model": "bert"}, "must be encoder or etc"),
    ({"model": "etc", "cpc_length": 8}, "set --config.join_documents"),
    ({"model": "etc", "join_documents": True}, "cpc_length 64 must not be"),
    (
      {"model": "etc", "join_documents": True, "cpc_length": 8},
      "config.positions must be 'none'",
    ),
    ({"norm": "both"}, "the model cannot be built"),
    ({"method": "sinkhorn", "method_options": {"block": 8}}, "join_documents"),
  ],
)
def test_options_are_checked_before_training(tmp_path, changes, message):
  folder = tiny.write_corpus(tmp_path / "texts")
  with pytest.raises(files.UserError, match=message):
    train.run(_config(folder, **changes), tmp_path / "work")


@pytest.mark.parametrize(
  "config",
  [
    smoke.get_config(),
    quickstart.get_config(),
    quickstart.get_config("bigbird"),
    quickstart.get_config("etc"),
    quickstart.get_config("sliding_window"),
    accelerator.get_config(),
    accelerator.get_config("longformer"),
  ],
)
def test_configurations_make_their_models(config):
  train.check(config)
  forms.make(config, hiding.Hider(tokens_lib.Bytes())).check(1)


@pytest.mark.slow
def test_cpc_finds_the_hidden_lines():
  """Lines that their neighbours tell: `a1`, `a2`, ... and `b1`, `b2`, ..."""
  lines = [
    "".join(f"{letter * 3}{i}\n" for i in range(4)) for letter in "abcdefgh"
  ]
  tokenizer = tokens_lib.Bytes()
  docs = rows_lib.join(tokenizer, [x.encode() for x in lines])
  rows = rows_lib.PackedRows(docs, 21, joined=True)
  batch = next(hiding.HeldOut(rows, np.arange(8), 0).batches(8))
  config = _config(
    "",
    model="etc",
    positions="none",
    join_documents=True,
    length=21,
    etc_lines=6,
    etc_radius=4,
    cpc_rate=0.3,
    cpc_length=8,
  )
  hide = hiding.Hider(tokenizer)
  form = forms.make(config, hide)
  params = jax.jit(form.init)(jax.random.key(0))["params"]
  optimizer = optax.adam(0.01)

  @jax.jit
  def step(params, state, key):
    hide_key, line_key = jax.random.split(key)
    hidden = hide(jax.random.split(hide_key, 8), batch)

    def loss(params):
      mlm, _, cpc = form.parts(params, batch, hidden, line_key, None)
      return mlm + cpc, (mlm, cpc)

    grads, parts = jax.grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, parts

  state, seen = optimizer.init(params), []
  for key in jax.random.split(jax.random.key(2), 300):
    params, state, parts = step(params, state, key)
    seen.append(jax.device_get(parts))
  first, last = np.mean(seen[:10], axis=0), np.mean(seen[-10:], axis=0)
  assert (last < 0.5 * first).all(), (first, last)


@pytest.mark.slow
def test_etc_runs_to_its_report(tmp_path):
  folder = tiny.write_corpus(tmp_path / "texts")
  form = {"model": "etc", "positions": "none", "join_documents": True}
  config = _config(folder, etc_lines=4, etc_radius=4, cpc_length=8, **form)
  found = train.run(config, tmp_path / "work")
  assert np.isfinite(found["scores"]["test"]["bits_per_character"])
