"""An encoder that one run trained starts the run of another task."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments.common import checkpoint
from experiments.common import files
from experiments.common import tokens
from experiments.mlm import train as mlm
from experiments.mlm.configs import smoke as mlm_smoke
from experiments.qa import train as qa
from experiments.qa.configs import smoke as qa_smoke
from tests.experiments import tiny

_SHARED = {
  "length": 64,
  "width": 16,
  "num_layers": 1,
  "num_heads": 2,
  "mlp_width": 32,
  "method": "dense",
  "method_options": {},
  "positions": "rotary",
  "norm": "pre",
  "tokenizer": "bytes",
  "mesh": "data=1",
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  base = tmp_path_factory.mktemp("mlm")
  config = dataclasses.replace(
    mlm_smoke.get_config(),
    **_SHARED,
    corpus="folder",
    path=str(tiny.write_corpus(base / "texts")),
    model="encoder",
    steps=2,
    warmup_steps=1,
  )
  mlm.run(config, base / "work")
  return base / "work"


def _config(pretrained, **changes):
  fields = {"initial": str(pretrained), "initial_part": "encoder"}
  config = dataclasses.replace(qa_smoke.get_config(), **_SHARED)
  small = {"stride": 0, "steps": 2, "warmup_steps": 1, "learning_rate": 1e-30}
  return dataclasses.replace(config, **(small | fields | changes))


def test_a_reader_starts_from_a_masked_language_model(
  pretrained, tmp_path, capsys
):
  config = _config(pretrained)
  qa.run(config, tmp_path)
  said = capsys.readouterr().out
  assert f"starting from the encoder of {pretrained}" in said
  corpus = qa.corpora.load(config)
  model = qa.make_model(config, 257, corpus)
  rows = qa.rows_lib.Rows(
    corpus.test, tokens.Bytes(), qa.make_form(config, corpus)
  )
  batch = jax.tree.map(lambda x: x[None], rows[0])
  variables = jax.jit(model.init)(jax.random.key(0), batch)
  like = nn.unbox(variables)["params"]
  reader = checkpoint.parameters(tmp_path, like)
  first = checkpoint.parameters(pretrained, like, part="encoder")
  for name, new in reader["encoder"].items():
    if name != "type_embed":  # The language model has none.
      jax.tree.map(np.testing.assert_array_equal, new, first["encoder"][name])
  jax.tree.map(np.testing.assert_array_equal, first["heads"], like["heads"])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"initial": ""}, "initial_part names a part"),
    ({"initial_part": "decoder"}, "no part 'decoder'; it has: encoder, heads"),
    ({"initial_part": ""}, "bias is .* None in this model"),
    ({"width": 32}, "both need the same sizes"),
  ],
)
def test_what_does_not_fit_is_named(pretrained, tmp_path, changes, message):
  with pytest.raises(files.UserError, match=message):
    qa.run(_config(pretrained, **changes), tmp_path)
