"""BERT's weights in ETC: equal to BERT on both inputs joined."""

import dataclasses
import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import linen as nn
from safetensors import numpy as safetensors_numpy

from jaxattn.checkpoints import bert
from jaxattn.checkpoints import safetensors_io
from jaxattn.models import etc

_WIDTH, _HEADS, _LAYERS, _MLP, _VOCAB = 8, 2, 2, 12, 11
_LONG, _GLOBAL = 9, 3
_CONFIG = dict(
  model_type="bert",
  vocab_size=_VOCAB,
  hidden_size=_WIDTH,
  num_hidden_layers=_LAYERS,
  num_attention_heads=_HEADS,
  intermediate_size=_MLP,
  hidden_act="gelu",
  layer_norm_eps=1e-12,
  type_vocab_size=2,
)


def _weights(seed=0, *, head=True):
  """Random tensors under the names of BertForMaskedLM, `[out, in]`."""
  rng = np.random.default_rng(seed)
  found = {}

  def linear(name, inputs, outputs):
    found[f"{name}.weight"] = rng.normal(size=(outputs, inputs)) * inputs**-0.5
    found[f"{name}.bias"] = 0.1 * rng.normal(size=outputs)

  def norm(name):
    found[f"{name}.weight"] = rng.uniform(0.5, 1.5, _WIDTH)
    found[f"{name}.bias"] = 0.1 * rng.normal(size=_WIDTH)

  emb = "bert.embeddings"
  for name, rows in (
    ("word", _VOCAB),
    ("position", 16),
    ("token_type", 2),
  ):
    table = rng.normal(size=(rows, _WIDTH))
    found[f"{emb}.{name}_embeddings.weight"] = table
  norm(f"{emb}.LayerNorm")
  for i in range(_LAYERS):
    layer = f"bert.encoder.layer.{i}"
    for kind in ("query", "key", "value"):
      linear(f"{layer}.attention.self.{kind}", _WIDTH, _WIDTH)
    linear(f"{layer}.attention.output.dense", _WIDTH, _WIDTH)
    norm(f"{layer}.attention.output.LayerNorm")
    linear(f"{layer}.intermediate.dense", _WIDTH, _MLP)
    linear(f"{layer}.output.dense", _MLP, _WIDTH)
    norm(f"{layer}.output.LayerNorm")
  linear("bert.pooler.dense", _WIDTH, _WIDTH)
  if head:
    linear("cls.predictions.transform.dense", _WIDTH, _WIDTH)
    norm("cls.predictions.transform.LayerNorm")
    found["cls.predictions.bias"] = rng.normal(size=_VOCAB)
    linear("cls.seq_relationship", _WIDTH, 2)
  return {k: np.ascontiguousarray(v, np.float32) for k, v in found.items()}


def _bert(weights, ids, *, positions=False):
  """BERT in float64: hidden states `[L, D]` and logits of the head."""
  w = {k: v.astype(np.float64) for k, v in weights.items()}
  erf = np.vectorize(math.erf)

  def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))

  def linear(x, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]

  emb = "bert.embeddings"
  x = w[f"{emb}.word_embeddings.weight"][ids]
  x = x + w[f"{emb}.token_type_embeddings.weight"][0]
  if positions:
    x = x + w[f"{emb}.position_embeddings.weight"][: len(ids)]
  x = norm(x, f"{emb}.LayerNorm")
  for i in range(_LAYERS):
    layer = f"bert.encoder.layer.{i}"
    q, k, v = (
      linear(x, f"{layer}.attention.self.{kind}").reshape(-1, _HEADS, 4)
      for kind in ("query", "key", "value")
    )
    scores = np.einsum("tnh,snh->nts", q, k) / 2
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    mixed = np.einsum("nts,snh->tnh", p, v).reshape(-1, _WIDTH)
    x = norm(
      x + linear(mixed, f"{layer}.attention.output.dense"),
      f"{layer}.attention.output.LayerNorm",
    )
    hidden = gelu(linear(x, f"{layer}.intermediate.dense"))
    x = norm(
      x + linear(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm"
    )
  head = "cls.predictions"
  logits = norm(
    gelu(linear(x, f"{head}.transform.dense")), f"{head}.transform.LayerNorm"
  )
  logits = logits @ w[f"{emb}.word_embeddings.weight"].T + w[f"{head}.bias"]
  return x, logits


def _save(folder, weights, config=None):
  folder = pathlib.Path(folder)
  folder.joinpath("config.json").write_text(json.dumps(config or _CONFIG))
  safetensors_numpy.save_file(weights, folder / "model.safetensors")
  return folder


def _inputs():
  rng = np.random.default_rng(3)
  long = jnp.asarray(rng.integers(0, _VOCAB, (1, _LONG)))
  return long, jnp.asarray(rng.integers(0, _VOCAB, (1, _GLOBAL)))


@functools.cache
def _init(cfg, model=etc.EtcMaskedLM):
  return jax.jit(model(cfg).init)(jax.random.key(0), *_inputs())["params"]


def _without_tables(params):
  """The relative vectors set to zero, as if there were none."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.zeros_like(x) if "vectors" in str(path) else x,
    nn.unbox(params),
  )


_SHARING = {
  "all": dict(share_attention_output=True),
  "default": {},
  "none": dict(share_qkv=False, share_feed_forward=False),
  "kv": dict(share_qkv=False, share_kv=True),
}


class LiftTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _folder(self, tmp_path):
    self.folder = tmp_path

  @parameterized.named_parameters(*((k, k) for k in _SHARING))
  def test_equals_bert_on_the_concatenation(self, sharing):
    """Whatever is shared, as every branch gets the same weights."""
    weights = _weights()
    _save(self.folder, weights)
    cfg = bert.etc_config(
      self.folder, radius=_LONG, max_distance=3, **_SHARING[sharing]
    )
    lifted = bert.lift(self.folder, cfg, _init(cfg))
    long, global_ = _inputs()
    logits, global_out = jax.jit(etc.EtcMaskedLM(cfg).apply)(
      {"params": _without_tables(lifted.params)}, long, global_
    )
    joined = np.concatenate([np.asarray(long)[0], np.asarray(global_)[0]])
    hidden, want = _bert(weights, joined)
    # Float32 against float64 through two layers of values of order one.
    np.testing.assert_allclose(logits[0], want[:_LONG], atol=5e-5)
    np.testing.assert_allclose(global_out[0], hidden[_LONG:], atol=2e-5)

  def test_tells_what_is_fresh_and_what_is_dropped(self):
    _save(self.folder, _weights())
    cfg = bert.etc_config(self.folder, radius=4, share_qkv=False)
    params = _init(cfg)
    lifted = bert.lift(self.folder, cfg, params)
    tables = [
      f"model/layers_{i}/attention/{stream}_{kind}"
      for i in range(_LAYERS)
      for stream in ("global", "long")
      for kind in ("bias", "vectors")
    ]
    self.assertCountEqual(lifted.fresh, tables)
    self.assertEqual(
      lifted.dropped,
      (
        "cls.seq_relationship.bias",
        "cls.seq_relationship.weight",
        "embeddings.position_embeddings.weight",
        "pooler.dense.bias",
        "pooler.dense.weight",
      ),
    )
    old, new = nn.unbox(params)["model"], nn.unbox(lifted.params)["model"]
    np.testing.assert_array_equal(
      new["type_embed"]["embedding"][2:], old["type_embed"]["embedding"][2:]
    )
    assert np.abs(
      old["word_embed"]["embedding"] - new["word_embed"]["embedding"]
    ).max()
    # The given parameters and their boxes of logical axes are as they were.
    self.assertEqual(
      jax.tree.structure(lifted.params), jax.tree.structure(params)
    )

  def test_reads_roberta(self):
    """With its names, one token type and a norm of its own."""
    weights = _weights()
    renamed = {}
    for name, value in weights.items():
      if "pooler" in name or "seq_relationship" in name:
        continue
      name = name.replace("bert.", "roberta.", 1)
      name = name.replace("cls.predictions.transform.dense", "lm_head.dense")
      name = name.replace(
        "cls.predictions.transform.LayerNorm", "lm_head.layer_norm"
      )
      name = name.replace("cls.predictions", "lm_head")
      renamed[name] = value
    types = "roberta.embeddings.token_type_embeddings.weight"
    renamed[types] = np.ascontiguousarray(renamed[types][:1])
    config = _CONFIG | dict(
      model_type="roberta", type_vocab_size=1, layer_norm_eps=1e-5
    )
    _save(self.folder, renamed, config)
    cfg = bert.etc_config(self.folder, radius=_LONG, max_distance=None)
    assert cfg.encoder.layer_norm_eps == 1e-5
    lifted = bert.lift(self.folder, cfg, _init(cfg))
    self.assertEqual(lifted.fresh, ())
    long, global_ = _inputs()
    logits, _ = jax.jit(etc.EtcMaskedLM(cfg).apply)(
      {"params": lifted.params}, long, global_
    )
    joined = np.concatenate([np.asarray(long)[0], np.asarray(global_)[0]])
    # The oracle's epsilon is 1e-12: 1e-5 moves unit variances by 5e-6 or more.
    np.testing.assert_allclose(
      logits[0], _bert(weights, joined)[1][:_LONG], atol=2e-3
    )

  def test_reads_old_names_and_low_precision(self):
    """TensorFlow's norm names, no prefix, bfloat16."""
    weights = _weights(head=False)
    old = {}
    for name, value in weights.items():
      name = name.removeprefix("bert.")
      name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
      name = name.replace("LayerNorm.bias", "LayerNorm.beta")
      old[name] = value.astype(jnp.bfloat16)
    _save(self.folder, old)
    cfg = bert.etc_config(self.folder, radius=2)
    lifted = bert.lift(self.folder, cfg, _init(cfg, etc.EtcModel))
    got = nn.unbox(lifted.params)["long_embed_norm"]["scale"]
    assert got.dtype == jnp.float32
    want = old["embeddings.LayerNorm.gamma"].astype(np.float32)
    np.testing.assert_array_equal(got, want)

  def test_reads_shards(self):
    weights = _weights()
    _save(self.folder, weights)
    (self.folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
      file = f"model-{i}.safetensors"
      safetensors_numpy.save_file(
        {n: weights[n] for n in part}, self.folder / file
      )
      index |= dict.fromkeys(part, file)
    path = self.folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    cfg = bert.etc_config(self.folder, radius=2)
    lifted = bert.lift(self.folder, cfg, _init(cfg, etc.EtcModel))
    np.testing.assert_array_equal(
      nn.unbox(lifted.params)["word_embed"]["embedding"],
      weights["bert.embeddings.word_embeddings.weight"],
    )
    (self.folder / "model-1.safetensors").unlink()
    with self.assertRaisesRegex(FileNotFoundError, "model-1.safetensors"):
      bert.lift(self.folder, cfg, _init(cfg, etc.EtcModel))

  @parameterized.named_parameters(
    (
      "missing",
      lambda w: w.pop("bert.encoder.layer.1.output.dense.bias"),
      "encoder.layer.1.output.dense.bias' is missing in ",
    ),
    (
      "unexpected",
      lambda w: w.update({"bert.encoder.layer.2.x": np.ones(3, np.float32)}),
      "unexpected tensors in .*encoder.layer.2.x",
    ),
    (
      "shape",
      lambda w: w.update(
        {"bert.embeddings.LayerNorm.bias": np.ones(3, np.float32)}
      ),
      r"LayerNorm.bias' in .*model.safetensors must have shape \(8,\), got "
      r"\(3,\)",
    ),
    (
      "twice",
      lambda w: w.update(
        {"bert.embeddings.LayerNorm.beta": np.ones(8, np.float32)}
      ),
      "are one tensor",
    ),
  )
  def test_bad_tensors_are_named(self, change, message):
    weights = _weights()
    change(weights)
    _save(self.folder, weights)
    cfg = bert.etc_config(self.folder, radius=2)
    with self.assertRaisesRegex(ValueError, message):
      bert.lift(self.folder, cfg, _init(cfg, etc.EtcModel))

  def test_bad_configurations_are_named(self):
    _save(self.folder, _weights())
    cfg = bert.etc_config(self.folder, radius=2)
    params = _init(cfg, etc.EtcModel)
    for change, message in (
      (dict(layer_norm_eps=1e-6), "layer_norm_eps of the checkpoint"),
      (dict(norm="pre"), "norm='post'"),
      (dict(mlp_width=None), "mlp_width of the checkpoint"),
    ):
      wrong = dataclasses.replace(
        cfg, encoder=dataclasses.replace(cfg.encoder, **change)
      )
      with self.assertRaisesRegex(ValueError, message):
        bert.lift(self.folder, wrong, params)
    with self.assertRaisesRegex(ValueError, "params have no 'layers_1'"):
      less = {k: v for k, v in params.items() if k != "layers_1"}
      bert.lift(self.folder, cfg, less)
    with self.assertRaisesRegex(ValueError, "fixes .'width'."):
      bert.etc_config(self.folder, width=4)
    for change, message in (
      (dict(model_type="gpt2"), "must be of model_type"),
      (dict(hidden_act="swish"), "hidden_act 'swish'"),
      (dict(position_embedding_type="relative_key"), "only 'absolute'"),
    ):
      _save(self.folder, {}, _CONFIG | change)
      with self.assertRaisesRegex(ValueError, message):
        bert.etc_config(self.folder)
    _save(self.folder, _weights(), _CONFIG | {"tie_word_embeddings": False})
    with self.assertRaisesRegex(ValueError, "lift into EtcModel"):
      bert.lift(self.folder, cfg, _init(cfg))

  def test_bad_files_are_named(self):
    with self.assertRaisesRegex(FileNotFoundError, "config.json is missing"):
      bert.etc_config(self.folder)
    with self.assertRaisesRegex(FileNotFoundError, "pytorch_model.bin only"):
      safetensors_io.TensorReader(self.folder)
    (self.folder / "model.safetensors").write_bytes(b"\x09" * 40)
    with self.assertRaisesRegex(ValueError, "no complete safetensors file"):
      safetensors_io.TensorReader(self.folder)
    (self.folder / "config.json").write_text("{")
    with self.assertRaisesRegex(ValueError, "is not JSON"):
      bert.etc_config(self.folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_equals_hugging_face(tmp_path, kind):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  fields = {k: v for k, v in _CONFIG.items() if k != "model_type"}
  fields |= dict(max_position_embeddings=16, initializer_range=0.4)
  config = getattr(transformers, f"{kind}Config")(**fields)
  model = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
  encoder = getattr(model, kind.lower())
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
    # ETC has no positions.
    encoder.embeddings.position_embeddings.weight.zero_()
  model.save_pretrained(tmp_path, safe_serialization=True)
  cfg = bert.etc_config(tmp_path, radius=_LONG, max_distance=None)
  lifted = bert.lift(tmp_path, cfg, _init(cfg))
  assert lifted.fresh == ()
  long, global_ = _inputs()
  logits, got = etc.EtcMaskedLM(cfg).apply(
    {"params": lifted.params}, long, global_
  )
  joined = torch.asarray(np.concatenate([long, global_], axis=1))
  joined = joined.to(torch.int64)
  full = torch.ones_like(joined)
  with torch.no_grad():
    want = model(joined, attention_mask=full).logits.numpy()
    hidden = encoder(joined, attention_mask=full).last_hidden_state.numpy()
  np.testing.assert_allclose(logits, want[:, :_LONG], atol=5e-5)
  np.testing.assert_allclose(got, hidden[:, _LONG:], atol=2e-5)
