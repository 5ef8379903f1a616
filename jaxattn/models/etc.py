"""The ETC encoder: a long and a global input through one stack of layers."""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import etc_labels
from jaxattn.models.layers import etc as etc_layers
from jaxattn.nn import linen as layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class EtcModelConfig:
  """The shape of the models of this module.

  Attributes:
    vocab_size: number of token ids, of long and global tokens.
    num_token_types: rows of the table of token types.
    max_positions: rows of the two tables of learned absolute positions, one
      for each stream; 0, the default, has none.
    encoder: the shape of the layers.

  Raises:
    ValueError: if a size is out of range.

  Example:
    >>> from jaxattn.models import etc
    >>> etc.base(vocab_size=30522).encoder.radius
    84

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483.
  """

  vocab_size: int
  num_token_types: int = 16
  max_positions: int = 0
  encoder: etc_layers.EtcConfig = etc_layers.EtcConfig()

  def __post_init__(self) -> None:
    for name, low in (
      ("vocab_size", 1),
      ("num_token_types", 2),
      ("max_positions", 0),
    ):
      if getattr(self, name) < low:
        raise ValueError(
          f"{name} must be at least {low}, got {getattr(self, name)}."
        )


def base(*, vocab_size: int, **options: Any) -> EtcModelConfig:
  """The base model: 12 layers of 768, radius 84, distances to 12.

  Args:
    vocab_size: number of token ids.
    **options: fields of `jaxattn.models.layers.etc.EtcConfig`, which win;
      `share_qkv=False` gives the paper's best.

  Returns:
    The configuration.

  Raises:
    ValueError: if options do not fit together.

  Example:
    >>> from jaxattn.models import etc
    >>> etc.base(vocab_size=100, num_layers=2).encoder.num_layers
    2

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 4.
  """
  defaults: dict[str, Any] = {"num_labels": 32}
  if "max_distance" in options:
    defaults = {}
  encoder = etc_layers.EtcConfig(**defaults | options)
  return EtcModelConfig(vocab_size=vocab_size, encoder=encoder)


def large(*, vocab_size: int, **options: Any) -> EtcModelConfig:
  """The large model: 24 layers of 1024, radius 169, distances to 24.

  Args:
    vocab_size: number of token ids.
    **options: fields of `jaxattn.models.layers.etc.EtcConfig`, which win.

  Returns:
    The configuration.

  Raises:
    ValueError: if options do not fit together.

  Example:
    >>> from jaxattn.models import etc
    >>> etc.large(vocab_size=100).encoder.max_distance
    24

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 4.
  """
  defaults: dict[str, Any] = {
    "width": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "radius": 169,
    "max_distance": 24,
  }
  encoder = etc_layers.EtcConfig(**defaults | options)
  return EtcModelConfig(vocab_size=vocab_size, encoder=encoder)


class EtcInputs(NamedTuple):
  """What an `EtcModel` takes.

  Attributes:
    tokens: `[B, T]` ints.
    global_tokens: `[B, G]` ints.
    structure: masks and members.

  Example:
    >>> from jaxattn.models import etc
    >>> tokens = jnp.ones((1, 4), jnp.int32)
    >>> etc.EtcInputs(tokens, tokens[:, :1], None).tokens.shape
    (1, 4)

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.
  """

  tokens: jax.Array
  global_tokens: jax.Array
  structure: etc_labels.EtcStructure | None


def unstructured_inputs(
  tokens: jax.Array,
  *,
  tokens_per_block: int,
  pad_id: int = 0,
  global_id: int = 1,
  hard: bool = False,
) -> EtcInputs:
  """Inputs of a text without known structure: one global token per block.

  Args:
    tokens: `[B, T]` ints.
    tokens_per_block: tokens for each global token; the paper takes about 27.
    pad_id: id of padding in `tokens`.
    global_id: id that all global tokens get.
    hard: whether global tokens see the tokens of their own block only.

  Returns:
    The inputs, with `ceil(T / tokens_per_block)` global tokens.

  Raises:
    ValueError: if `tokens` are no integers or `tokens_per_block` not positive.

  Example:
    >>> from jaxattn.models import etc
    >>> tokens = jnp.array([[5, 6, 7, 0, 0]])
    >>> made = etc.unstructured_inputs(tokens, tokens_per_block=2)
    >>> made.structure.sentence_ids.tolist()
    [[0, 0, 1, -1, -1]]

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.3.
  """
  if not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(f"tokens must be integers, got {tokens.dtype}.")
  structure = etc_labels.etc_fixed_blocks(
    tokens != pad_id, tokens_per_block=tokens_per_block
  )
  structure = dataclasses.replace(structure, hard_global_to_long=hard)
  size = -(-tokens.shape[-1] // tokens_per_block)
  global_tokens = jnp.full((*tokens.shape[:-1], size), global_id, tokens.dtype)
  return EtcInputs(tokens, global_tokens, structure)


def sentence_inputs(
  tokens: jax.Array,
  sentence_ids: jax.Array,
  *,
  num_global: int,
  global_id: int = 1,
  hard: bool = False,
) -> EtcInputs:
  """Inputs of a text whose sentences are known: one global token for each.

  Args:
    tokens: `[B, T]` ints.
    sentence_ids: `[B, T]` ints in `[0, num_global)`, the sentence of each
      token; -1 at padding.
    num_global: G, how many sentences a row may have.
    global_id: id that all global tokens get.
    hard: whether global tokens see the tokens of their own sentence only.

  Returns:
    The inputs; global tokens of sentences without tokens are invalid.

  Raises:
    ValueError: if shapes disagree or `num_global` is not positive.

  Example:
    >>> from jaxattn.models import etc
    >>> made = etc.sentence_inputs(
    ...     jnp.array([[5, 6, 7, 0]]), jnp.array([[0, 0, 1, -1]]), num_global=3)
    >>> made.structure.global_valid.tolist()
    [[True, True, False]]

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.3.
  """
  if tokens.shape != sentence_ids.shape:
    raise ValueError(
      f"sentence_ids must have the shape of tokens {tokens.shape}, got "
      f"{sentence_ids.shape}."
    )
  if num_global < 1:
    raise ValueError(f"num_global must be at least 1, got {num_global}.")
  index = jnp.arange(num_global, dtype=sentence_ids.dtype)
  ids = sentence_ids[..., None, :]
  index = jax.lax.broadcast_to_rank(index[:, None], ids.ndim)
  structure = etc_labels.EtcStructure(
    long_valid=sentence_ids >= 0,
    global_valid=jnp.any(ids == index, axis=-1),
    sentence_ids=sentence_ids,
    hard_global_to_long=hard,
  )
  shape = (*tokens.shape[:-1], num_global)
  return EtcInputs(tokens, jnp.full(shape, global_id, tokens.dtype), structure)


class EtcModel(nn.Module):
  """The encoder: embeddings, norms, and a stack of `EtcLayer`.

  Parameters: `word_embed` (both streams), `type_embed`, `long_positions` and
  `global_positions` where there are any, `long_embed_norm`,
  `global_embed_norm`, and `layers_0` and so on; with `norm="pre"` also
  `long_final_norm` and `global_final_norm`. Dropout draws from the stream
  `dropout`.

  Attributes:
    cfg: the shape of the model.

  Example:
    >>> from jaxattn.models import etc
    >>> cfg = etc.base(vocab_size=11, width=8, num_heads=2, num_layers=1)
    >>> tokens = jnp.arange(1, 11)[None]
    >>> inputs = etc.unstructured_inputs(tokens, tokens_per_block=4)
    >>> (long, global_), _ = etc.EtcModel(cfg).init_with_output(
    ...     jax.random.key(0), *inputs)
    >>> long.shape, global_.shape
    ((1, 10, 8), (1, 3, 8))

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483. Differs: no
  dropout of attention weights; with `norm="pre"` the result is normalised.
  """

  cfg: EtcModelConfig

  def setup(self) -> None:
    """Makes the layers."""
    cfg, enc = self.cfg, self.cfg.encoder
    self.word_embed = _embed(enc, cfg.vocab_size, "vocab")
    self.type_embed = _embed(enc, cfg.num_token_types, None)
    if cfg.max_positions:
      self.long_positions = _embed(enc, cfg.max_positions, None)
      self.global_positions = _embed(enc, cfg.max_positions, None)
    self.long_embed_norm = _norm(enc)
    self.global_embed_norm = _norm(enc)
    self.drop = nn.Dropout(enc.dropout)
    layer = etc_layers.EtcLayer
    if enc.remat:
      layer = nn.remat(layer, static_argnums=(4,))  # `train`, after self.
    self.layers = [layer(enc) for _ in range(enc.num_layers)]
    if enc.norm == "pre":
      self.long_final_norm = _norm(enc)
      self.global_final_norm = _norm(enc)

  def __call__(
    self,
    tokens: jax.Array,
    global_tokens: jax.Array,
    structure: etc_labels.EtcStructure | None = None,
    *,
    token_types: jax.Array | None = None,
    global_token_types: jax.Array | None = None,
    train: bool = False,
  ) -> etc_layers.Streams:
    """Encodes both inputs.

    Args:
      tokens: `[B, T]` ints in `[0, vocab_size)`; others give NaN.
      global_tokens: `[B, G]` ints.
      structure: masks and members, or None for none.
      token_types: `[B, T]` ints in `[0, num_token_types)`; None means 1.
      global_token_types: `[B, G]` ints; None means 0.
      train: whether dropout is active.

    Returns:
      `[B, T, D]` and `[B, G, D]` in `dtype`.

    Raises:
      ValueError: if shapes do not fit.
    """
    cfg = self.cfg
    long = self._embed("long", tokens, token_types, 1, train)
    global_ = self._embed("global", global_tokens, global_token_types, 0, train)
    for layer in self.layers:
      long, global_ = layer(long, global_, structure, train)
    if cfg.encoder.norm == "pre":
      return self.long_final_norm(long), self.global_final_norm(global_)
    return long, global_

  def _embed(
    self,
    stream: str,
    tokens: jax.Array,
    types: jax.Array | None,
    default: int,
    train: bool,
  ) -> jax.Array:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
      raise ValueError(
        f"tokens of the {stream} stream must be integers [B, L], got "
        f"{tokens.dtype}{tokens.shape}."
      )
    if types is None:
      types = jnp.full_like(tokens, default)
    if types.shape != tokens.shape:
      raise ValueError(
        f"token types of the {stream} stream must have the shape of its tokens "
        f"{tokens.shape}, got {types.shape}."
      )
    x = self.word_embed(tokens) + self.type_embed(types)
    rows = self.cfg.max_positions
    if rows:
      if tokens.shape[1] > rows:
        raise ValueError(
          f"{tokens.shape[1]} tokens of the {stream} stream exceed "
          f"max_positions {rows}."
        )
      index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
      x = x + jnp.broadcast_to(
        getattr(self, f"{stream}_positions")(index), x.shape
      )
    x = getattr(self, f"{stream}_embed_norm")(x)
    return self.drop(x, deterministic=not train)


class EtcMaskedLM(nn.Module):
  """An `EtcModel` with a head that predicts long tokens.

  A linear map with activation and norm, then the word embeddings, transposed,
  and a bias per word, as in BERT. Parameters: `model`, `mlm_transform`,
  `mlm_norm`, `mlm_bias`.

  Attributes:
    cfg: the shape of the model.

  Example:
    >>> from jaxattn.models import etc
    >>> cfg = etc.base(vocab_size=11, width=8, num_heads=2, num_layers=1)
    >>> tokens = jnp.arange(1, 11)[None]
    >>> inputs = etc.unstructured_inputs(tokens, tokens_per_block=4)
    >>> (logits, _), _ = etc.EtcMaskedLM(cfg).init_with_output(
    ...     jax.random.key(0), *inputs)
    >>> logits.shape
    (1, 10, 11)

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483; the head of
  Devlin et al., 2018, https://arxiv.org/abs/1810.04805.
  """

  cfg: EtcModelConfig

  def setup(self) -> None:
    """Makes the layers."""
    enc = self.cfg.encoder
    self.model = EtcModel(self.cfg)
    self.mlm_transform = layers.Projection(
      features=(enc.width,),
      names=("embed", None),
      use_bias=True,
      dtype=enc.dtype,
      param_dtype=enc.param_dtype,
      kernel_init=enc.kernel_init(),
    )
    self.mlm_norm = _norm(enc)
    self.mlm_bias = self.param(
      "mlm_bias",
      nn.with_logical_partitioning(nn.initializers.zeros_init(), ("vocab",)),
      (self.cfg.vocab_size,),
      enc.param_dtype,
    )

  def __call__(
    self, tokens: jax.Array, *args: Any, **options: Any
  ) -> tuple[jax.Array, jax.Array]:
    """Logits of every long token, and the global stream.

    Args:
      tokens: as of `EtcModel`.
      *args: as of `EtcModel`.
      **options: as of `EtcModel`.

    Returns:
      `[B, T, vocab_size]` float32 and `[B, G, D]`.

    Raises:
      ValueError: if shapes do not fit.
    """
    long, global_ = self.model(tokens, *args, **options)
    x = etc_layers.activation(self.cfg.encoder)(self.mlm_transform(long))
    x = self.mlm_norm(x)
    logits = jnp.einsum(
      "...d,vd->...v",
      x,
      self.model.word_embed.embedding.astype(x.dtype),
      preferred_element_type=jnp.float32,
    )
    bias = jnp.asarray(self.mlm_bias, jnp.float32)
    return logits + jax.lax.broadcast_to_rank(bias, logits.ndim), global_


def _embed(enc: etc_layers.EtcConfig, rows: int, name: str | None) -> nn.Embed:
  return nn.Embed(
    rows,
    enc.width,
    dtype=enc.dtype,
    param_dtype=enc.param_dtype,
    embedding_init=nn.with_logical_partitioning(
      enc.kernel_init(), (name, "embed")
    ),
  )


def _norm(enc: etc_layers.EtcConfig) -> nn.LayerNorm:
  return etc_layers.norm(enc, None)
