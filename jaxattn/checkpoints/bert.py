"""Lifting BERT and RoBERTa checkpoints into ETC models.

With projections shared, a window that covers the text, and relative tables of
zero, ETC is BERT's self-attention on both inputs joined. So BERT's weights are
a start for ETC, to be trained further.
"""

import os
import re
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxattn.checkpoints import safetensors_io
from jaxattn.models import etc
from jaxattn.models.layers import etc as etc_layers

_ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}
# What ETC has no place for: positions, poolers and the next-sentence head.
_DROPPED = (
  r"embeddings\.position_embeddings\.weight",
  r"embeddings\.(position|token_type)_ids",
  r"pooler\..*",
  r"cls\.seq_relationship\..*",
)
_HEAD = r"(cls\.predictions|lm_head)\..*"
_KINDS = ("bert", "roberta", "xlm-roberta", "camembert")


def etc_config(
  folder: str | os.PathLike[str], **options: Any
) -> etc.EtcModelConfig:
  """The configuration of an ETC model that can take a checkpoint's weights.

  Args:
    folder: a local folder with BERT's or RoBERTa's `config.json`.
    **options: fields of `jaxattn.models.layers.etc.EtcConfig` that the
      checkpoint does not fix, as `radius`, `max_distance` and what is shared.

  Returns:
    The configuration.

  Raises:
    FileNotFoundError: if there is no `config.json`.
    ValueError: if the checkpoint is of another kind, or an option is fixed.

  Example:
    >>> from jaxattn.checkpoints import bert
    >>> import json, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   _ = pathlib.Path(folder, "config.json").write_text(json.dumps(dict(
    ...       model_type="bert", vocab_size=9, hidden_size=8,
    ...       num_hidden_layers=2, num_attention_heads=2,
    ...       intermediate_size=32, hidden_act="gelu")))
    ...   cfg = bert.etc_config(folder, radius=4)
    >>> cfg.encoder.width, cfg.encoder.radius
    (8, 4)

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.5.
  """
  found = safetensors_io.read_config(folder)
  kind = found.get("model_type")
  if kind not in _KINDS:
    raise ValueError(
      f"config.json in {folder} must be of model_type {_KINDS}, got {kind!r}."
    )
  position_kind = found.get("position_embedding_type", "absolute")
  if position_kind != "absolute":
    raise ValueError(
      f"config.json in {folder} has position_embedding_type {position_kind!r}; "
      "only 'absolute' can be lifted."
    )
  act = found.get("hidden_act", "gelu")
  if act not in _ACTIVATIONS:
    raise ValueError(
      f"config.json in {folder} has hidden_act {act!r}; known are "
      f"{sorted(_ACTIVATIONS)}."
    )
  fields = {
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
  }
  for name in (*fields.values(), "vocab_size"):
    if name not in found:
      raise ValueError(
        f"config.json in {folder} lacks {name!r}; copy it again."
      )
  fixed: dict[str, Any] = {k: int(found[v]) for k, v in fields.items()}
  fixed["activation"] = _ACTIVATIONS[act]
  fixed["layer_norm_eps"] = float(found.get("layer_norm_eps", 1e-12))
  clash = sorted(set(fixed) & set(options))
  if clash:
    raise ValueError(
      f"the checkpoint in {folder} fixes {clash}; leave them out."
    )
  encoder = etc_layers.EtcConfig(**fixed | options)
  return etc.EtcModelConfig(
    vocab_size=int(found["vocab_size"]), encoder=encoder
  )


class Lifted(NamedTuple):
  """The result of `lift`.

  Attributes:
    params: the model's parameters, with the checkpoint's weights.
    fresh: paths of the parameters that stayed as they were.
    dropped: tensors of the checkpoint that have no place in ETC.

  Example:
    >>> from jaxattn.checkpoints import bert
    >>> bert.Lifted({}, ("layers_0/attention/long_bias",), ()).fresh[0]
    'layers_0/attention/long_bias'

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.5.
  """

  params: Any
  fresh: tuple[str, ...]
  dropped: tuple[str, ...]


def lift(
  folder: str | os.PathLike[str], cfg: etc.EtcModelConfig, params: Any
) -> Lifted:
  """Puts BERT's or RoBERTa's weights into the parameters of an ETC model.

  Query, key, value, output, feed-forward and norm weights go to every branch
  that has its own, in both streams; the vector of token type 0 to types 0 and
  1, those of global and of long tokens. Relative tables, positions and further
  token types stay fresh. A masked-language-model head is taken by
  `EtcMaskedLM`, and dropped by `EtcModel`.

  Args:
    folder: a local folder with `config.json` and `model.safetensors`.
    cfg: of the model, from `etc_config(folder)`.
    params: of `EtcModel` or `EtcMaskedLM`, freshly initialised, with or without
      Flax's boxes of logical axes. They are not changed.

  Returns:
    The parameters, and what was not lifted.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: naming file and tensor if one is missing, not expected, or of
      another shape; or if `cfg` does not fit the checkpoint.

  Example:
    See `docs/etc.md`; it needs a checkpoint:

    >>> from jaxattn.checkpoints import bert
    >>> cfg = etc.base(vocab_size=8)
    >>> try:
    ...   bert.lift("no/such/folder", cfg, {})
    ... except FileNotFoundError as error:
    ...   print(str(error)[:26])
    no/such/folder/config.json

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.5.
  """
  _check_config(folder, cfg)
  reader = safetensors_io.TensorReader(folder)
  # Tensors of old checkpoints have TensorFlow's names.
  reader.rename(r"LayerNorm\.gamma$", "LayerNorm.weight")
  reader.rename(r"LayerNorm\.beta$", "LayerNorm.bias")
  reader.rename(r"^(bert|roberta)\.", "")
  target = _Target(nn.unbox(params))
  has_head = "model" in target.tree
  prefix = ("model",) if has_head else ()
  _lift_embeddings(reader, cfg, target, prefix)
  for i in range(cfg.encoder.num_layers):
    _lift_layer(reader, cfg.encoder, target, i, prefix)
  if has_head:
    _lift_head(reader, cfg.encoder.width, cfg.vocab_size, target)
  patterns = _DROPPED if has_head else (*_DROPPED, _HEAD)
  dropped = reader.drop(*patterns)
  reader.finish()
  return Lifted(
    nn.meta.replace_boxed(params, target.tree), target.fresh(), dropped
  )


def _check_config(
  folder: str | os.PathLike[str], cfg: etc.EtcModelConfig
) -> None:
  """Raises unless `cfg` computes as the checkpoint was trained."""
  want = etc_config(folder)
  pairs: list[tuple[str, Any, Any]] = [
    ("vocab_size", want.vocab_size, cfg.vocab_size)
  ]
  names = ("width", "num_layers", "num_heads", "activation", "layer_norm_eps")
  pairs += [
    (n, getattr(want.encoder, n), getattr(cfg.encoder, n)) for n in names
  ]
  pairs.append(
    (
      "mlp_width",
      want.encoder.mlp_width,
      cfg.encoder.mlp_width or 4 * cfg.encoder.width,
    )
  )
  for name, wanted, found in pairs:
    if wanted != found:
      raise ValueError(
        f"{name} of the checkpoint in {folder} is {wanted}, that of cfg "
        f"{found}; make cfg with etc_config(folder)."
      )
  enc = cfg.encoder
  if enc.norm != "post" or enc.head_size * enc.num_heads != enc.width:
    raise ValueError(
      "cfg must have norm='post' and head_dim width / num_heads, as BERT has; "
      f"got norm={enc.norm!r} and head_dim={enc.head_size}."
    )


class _Target:
  """A copy of nested parameters that knows what was put into it."""

  def __init__(self, params: Any) -> None:
    self.tree = jax.tree.map(lambda x: x, params)
    self._put: set[str] = set()

  def get(self, path: tuple[str, ...]) -> Any:
    tree = self.tree
    for i, key in enumerate(path):
      if key not in tree:
        raise ValueError(
          f"params have no {'/'.join(path[: i + 1])!r}; make them with the "
          "init of EtcModel(cfg) or EtcMaskedLM(cfg)."
        )
      tree = tree[key]
    return tree

  def put(self, path: tuple[str, ...], value: np.ndarray) -> None:
    like = self.get(path)
    if like.size != value.size:
      raise ValueError(
        f"params {'/'.join(path)!r} have shape {like.shape}, the checkpoint "
        f"has {value.shape} there; make them with the init of EtcModel(cfg) or "
        "EtcMaskedLM(cfg)."
      )
    new = jnp.asarray(value.reshape(like.shape), like.dtype)
    self.get(path[:-1])[path[-1]] = new
    self._put.add("/".join(path))

  def fresh(self) -> tuple[str, ...]:
    leaves = jax.tree_util.tree_leaves_with_path(self.tree)
    names = ("/".join(str(k.key) for k in path) for path, _ in leaves)
    return tuple(sorted(set(names) - self._put))


def _lift_embeddings(
  reader: safetensors_io.TensorReader,
  cfg: etc.EtcModelConfig,
  target: _Target,
  prefix: tuple[str, ...],
) -> None:
  width = cfg.encoder.width
  words = reader.take(
    "embeddings.word_embeddings.weight", (cfg.vocab_size, width)
  )
  target.put((*prefix, "word_embed", "embedding"), words)
  rows = safetensors_io.read_config(reader.folder).get("type_vocab_size", 2)
  types = reader.take(
    "embeddings.token_type_embeddings.weight", (int(rows), width)
  )
  path = (*prefix, "type_embed", "embedding")
  table = np.array(target.get(path), np.float32)
  table[:2] = types[0].astype(np.float32)
  target.put(path, table)
  _lift_norm(
    reader,
    "embeddings.LayerNorm",
    target,
    [(*prefix, f"{s}_embed_norm") for s in ("long", "global")],
    width,
  )


def _lift_norm(
  reader: safetensors_io.TensorReader,
  source: str,
  target: _Target,
  paths: list[tuple[str, ...]],
  width: int,
) -> None:
  for kind, name in (("weight", "scale"), ("bias", "bias")):
    value = reader.take(f"{source}.{kind}", (width,))
    for path in paths:
      target.put((*path, name), value)


def _lift_linear(
  reader: safetensors_io.TensorReader,
  source: str,
  target: _Target,
  paths: list[tuple[str, ...]],
  inputs: int,
  outputs: int,
) -> None:
  """A linear map, transposed: torch keeps `[outputs, inputs]`."""
  kernel = reader.take(f"{source}.weight", (outputs, inputs)).T
  bias = reader.take(f"{source}.bias", (outputs,))
  for path in paths:
    target.put((*path, "kernel"), kernel)
    target.put((*path, "bias"), bias)


def _lift_layer(
  reader: safetensors_io.TensorReader,
  enc: etc_layers.EtcConfig,
  target: _Target,
  index: int,
  prefix: tuple[str, ...],
) -> None:
  """One layer, into every branch that has parameters of its own."""
  source = f"encoder.layer.{index}"
  here = (*prefix, f"layers_{index}")
  width, mlp = enc.width, enc.mlp_width or 4 * enc.width

  def branches(kind: str, *, under: tuple[str, ...] = ()) -> list[Any]:
    """Paths of modules named `kind`, with or without a stream before it."""
    pattern = rf"((long|global)_(to_(long|global)_)?)?{kind}"
    names = target.get((*here, *under))
    found = [n for n in sorted(names) if re.fullmatch(pattern, n)]
    return [(*here, *under, n) for n in found]

  for kind in ("query", "key", "value"):
    _lift_linear(
      reader,
      f"{source}.attention.self.{kind}",
      target,
      branches(kind, under=("attention",)),
      width,
      width,
    )
  for part, kind, under, inputs, outputs in (
    ("attention.output.dense", "out", ("attention",), width, width),
    ("intermediate.dense", "mlp_in", (), width, mlp),
    ("output.dense", "mlp_out", (), mlp, width),
  ):
    paths = branches(kind, under=under)
    _lift_linear(reader, f"{source}.{part}", target, paths, inputs, outputs)
  for part, kind in (
    ("attention.output.LayerNorm", "attention_norm"),
    ("output.LayerNorm", "mlp_norm"),
  ):
    _lift_norm(reader, f"{source}.{part}", target, branches(kind), width)


def _lift_head(
  reader: safetensors_io.TensorReader,
  width: int,
  vocab: int,
  target: _Target,
) -> None:
  """The head of masked language models, if the checkpoint has one."""
  config = safetensors_io.read_config(reader.folder)
  if not config.get("tie_word_embeddings", True):
    raise ValueError(
      f"config.json in {reader.folder} has tie_word_embeddings false, but the "
      "head of EtcMaskedLM uses the word embeddings; lift into EtcModel."
    )
  names = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    ("lm_head.dense", "lm_head.layer_norm"),
  )
  for (dense, norm), root in zip(
    names, ("cls.predictions", "lm_head"), strict=True
  ):
    if f"{dense}.weight" not in reader.names:
      continue
    _lift_linear(reader, dense, target, [("mlm_transform",)], width, width)
    _lift_norm(reader, norm, target, [("mlm_norm",)], width)
    target.put(("mlm_bias",), reader.take(f"{root}.bias", (vocab,)))
    # Tied to the word embeddings and the bias; some files hold them again.
    reader.drop(rf"{re.escape(root)}\.decoder\.(weight|bias)")
