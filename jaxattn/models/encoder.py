"""A bidirectional encoder in Flax Linen, with any method in any layer."""

import dataclasses
from typing import Any
from typing import ClassVar
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import base
from jaxattn._src import dense_method
from jaxattn._src import masks
from jaxattn._src import positions as positions_lib
from jaxattn.models import blocks
from jaxattn.models.layers import longformer
from jaxattn.nn import linen as layers
from jaxattn.nn import mixing

Positions = Literal["learned", "sinusoidal", "rotary", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
  """The shape of an `Encoder`; the defaults are RoBERTa's form.

  Attributes:
    vocab_size: number of token ids.
    width: D, of the residual stream.
    num_layers: number of blocks.
    num_heads: query heads of every block.
    num_kv_heads: key and value heads; None means `num_heads`.
    head_dim: size of a head; None means `width / num_heads`.
    mlp_width: of the feed-forward layers; None means `4 * width`.
    methods: one attention method for all blocks, or one for each, such as
      windows that grow with depth.
    global_projections: whether global tokens have queries, keys and values of
      their own; every method must then be a static pattern.
    norm: `post` normalises the embeddings, and after every branch the sum
      (BERT, RoBERTa, BART); `pre` normalises what each branch reads, and the
      end (Pegasus).
    activation: of the feed-forward layers: `gelu`, exact or as `gelu_tanh` by
      its usual approximation or `gelu_sigmoid` by `x sigmoid(1.702 x)`, or
      `relu`.
    positions: `learned` adds a trained vector per position to the embedding,
      `sinusoidal` a fixed one; `rotary` turns queries and keys; `none` adds
      nothing. A relative scheme that a method has works with all of them.
    max_length: rows of the learned table.
    type_vocab_size: number of token types, 0 for none.
    use_bias: whether linear maps and norms have biases.
    qk_norm: whether to normalise queries and keys.
    layer_norm_eps: of the norms; BERT and BigBird have 1e-12.
    dropout: rate on the embedding and on what each branch adds.
    remat: what the backward pass computes again: nothing, each block in
      `full`, or each block but its matrix products (`dots`).
    dtype: of the activations.
    param_dtype: of the parameters.

  Raises:
    ValueError: if the options do not fit together, or methods that share their
      parameters between layers differ.

  Example:
    >>> from jaxattn.models import encoder
    >>> encoder.EncoderConfig(vocab_size=256, width=64, num_heads=4).head_size
    16

  Source: Devlin et al., 2019 (BERT), https://arxiv.org/abs/1810.04805; Zhang et
  al., 2020 (Pegasus), https://arxiv.org/abs/1912.08777.
  """

  vocab_size: int
  width: int = 768
  num_layers: int = 12
  num_heads: int = 12
  num_kv_heads: int | None = None
  head_dim: int | None = None
  mlp_width: int | None = None
  methods: tuple[base.AttentionMethod, ...] = (dense_method.Dense(),)
  global_projections: bool = False
  norm: blocks.Norm = "post"
  activation: str = "gelu"
  positions: Positions = "learned"
  max_length: int = 512
  type_vocab_size: int = 0
  use_bias: bool = True
  qk_norm: bool = False
  layer_norm_eps: float = 1e-5
  dropout: float = 0.0
  remat: blocks.Remat = "none"
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  cross_attention: ClassVar[bool] = False

  def __post_init__(self) -> None:
    blocks.check_config(self, get_args(Positions))
    if self.type_vocab_size < 0:
      raise ValueError(
        f"type_vocab_size must not be negative, got {self.type_vocab_size}."
      )
    if self.global_projections:
      check_patterns(self.methods, "global_projections=True")
    shared_method(self.methods)  # Raises where two would share.

  @property
  def head_size(self) -> int:
    """`head_dim`, with its default filled in."""
    return self.head_dim or self.width // self.num_heads

  def layer_methods(self) -> tuple[base.AttentionMethod, ...]:
    """The method of every layer."""
    once = len(self.methods) == 1
    return self.methods * self.num_layers if once else self.methods


class EncoderBlock(blocks.Block):
  """A block whose attention takes global tokens where its method can.

  Example:
    >>> from jaxattn.models import encoder
    >>> cfg = encoder.EncoderConfig(vocab_size=8, width=16, num_heads=2)
    >>> method = jaxattn.longformer(window=4)
    >>> block = encoder.EncoderBlock(cfg=cfg, method=method)
    >>> x, places = jnp.ones((1, 9, 16)), jnp.array([[7]])
    >>> block.init_with_output(
    ...     jax.random.key(0), x, jaxattn.FULL, None, False, False,
    ...     global_positions=places)[0].shape
    (1, 9, 16)

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, section 3.1.
  """

  def make_attention(self, **options: Any) -> layers.Attention:
    """The layer that mixes tokens."""
    if not longformer.is_pattern(self.method):
      return layers.Attention(method=self.method, **options)
    return longformer.LongformerSelfAttention(
      method=self.method,
      global_projections=self.cfg.global_projections,
      **options,
    )


class Encoder(nn.Module):
  """Turns tokens into vectors that know of each other.

  Parameters carry the logical axis names `embed` (the width), `mlp`, `heads`
  (`kv_heads` where grouped), `head_dim` and `vocab`; strip the boxes with
  `nn.unbox`. Embeddings are scaled by the root of the width in the `pre` form
  and with sinusoids, and not otherwise. The collection `attention` holds the
  state of methods that have any. A method whose parameters are one for all
  layers has them as `shared_method`. Dropout draws from the stream `dropout`.

  Attributes:
    cfg: the shape of the model.
    shared_embed: an embedding to use in place of its own, or None.

  Example:
    >>> from jaxattn.models import encoder
    >>> cfg = encoder.EncoderConfig(
    ...     vocab_size=11, width=16, num_layers=2, num_heads=2,
    ...     methods=(jaxattn.longformer(window=4),), global_projections=True)
    >>> model = encoder.Encoder(cfg)
    >>> tokens = jnp.array([[1, 2, 3, 4, 0], [1, 5, 0, 0, 0]])
    >>> variables = model.init(jax.random.key(0), tokens)
    >>> valid = tokens != 0
    >>> model.apply(
    ...     variables, tokens, global_positions=jnp.array([[0, 3], [0, -1]]),
    ...     mask=jaxattn.Mask(key_valid=valid, query_valid=valid)).shape
    (2, 5, 16)

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805; Beltagy et al.,
  2020 (global tokens), https://arxiv.org/abs/2004.05150.
  """

  cfg: EncoderConfig
  shared_embed: nn.Module | None = None

  def setup(self) -> None:
    """Makes the layers."""
    cfg = self.cfg
    if self.shared_embed is None:
      self.embed = blocks.make_embed(cfg, cfg.vocab_size, "vocab")
    else:
      self.embed = self.shared_embed
    if cfg.positions == "learned":
      self.position_embed = blocks.make_embed(cfg, cfg.max_length, None)
    if cfg.type_vocab_size:
      self.type_embed = blocks.make_embed(cfg, cfg.type_vocab_size, None)
    self.drop = nn.Dropout(cfg.dropout)
    block = blocks.remat(EncoderBlock, cfg.remat)
    self.blocks = [block(cfg=cfg, method=m) for m in cfg.layer_methods()]
    shared = shared_method(cfg.methods)
    if shared is not None:
      self.shared_method = layers.MethodVariables(
        method=shared,
        shapes=base.AttentionShapes(
          num_heads=cfg.num_heads,
          num_kv_heads=cfg.num_kv_heads,
          head_dim=cfg.head_size,
          dtype=cfg.param_dtype,
        ),
      )
    if cfg.norm == "pre":
      self.final_norm = blocks.make_norm(cfg)
    else:
      self.embed_norm = blocks.make_norm(cfg)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    type_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    global_positions: jax.Array | None = None,
    mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> jax.Array:
    """Encodes every token.

    Args:
      tokens: `[B, T]` ints in `[0, vocab_size)`; others give NaN.
      type_ids: `[B, T]` ints in `[0, type_vocab_size)`; None means 0.
      positions: `[B, T]` ints for learned, sinusoidal and rotary positions, for
        example counting real tokens only; None counts from 0.
      global_positions: `[B, G]` ints, the places of the tokens that see all and
        are seen by all, -1 at padding; see `jaxattn.global_positions`.
      mask: what may attend to what; for padded rows
        `jaxattn.Mask(key_valid=valid, query_valid=valid)`.
      train: whether dropout and the state of methods are active.

    Returns:
      `[B, T, D]` in `dtype`.

    Raises:
      ValueError: if shapes do not fit, T exceeds the learned positions, or an
        argument has nothing to act on.
    """
    cfg = self.cfg
    blocks.check_tokens(tokens)
    _check_call(cfg, tokens, type_ids, positions)
    if global_positions is not None:
      check_patterns(cfg.methods, "global_positions")
    x = self._embed(tokens, type_ids, positions)
    x = self.drop(x, deterministic=not train)
    turns = positions if cfg.positions == "rotary" else None
    chosen: dict[str, Any] = {}
    if global_positions is not None:
      chosen["global_positions"] = global_positions
    shared: dict[str, Any] = {}
    if shared_method(cfg.methods) is not None:
      shared["method_variables"] = self.shared_method()
    for block, method in zip(self.blocks, cfg.layer_methods(), strict=True):
      extra = chosen | shared if mixing.shares(method) else chosen
      x = block(x, mask, turns, train, False, **extra)
    return self.final_norm(x) if cfg.norm == "pre" else x

  def unembed(self, x: jax.Array) -> jax.Array:
    """Logits `[..., vocab_size]` of `[..., D]` by the embedding table."""
    return blocks.unembed(x, self.embed.embedding)

  def _embed(
    self,
    tokens: jax.Array,
    type_ids: jax.Array | None,
    positions: jax.Array | None,
  ) -> jax.Array:
    cfg = self.cfg
    if positions is None:
      positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    x = self.embed(tokens)
    if cfg.positions == "learned":
      x = x + jnp.broadcast_to(self.position_embed(positions), x.shape)
    if cfg.type_vocab_size:
      type_ids = jnp.zeros_like(tokens) if type_ids is None else type_ids
      x = x + self.type_embed(type_ids)
    if blocks.scales_embeddings(cfg):
      x = x * cfg.width**0.5
    if cfg.positions == "sinusoidal":
      table = positions_lib.sinusoidal(positions, width=cfg.width)
      x = x + jnp.broadcast_to(table.astype(x.dtype), x.shape)
    return x.astype(cfg.dtype) if cfg.norm == "pre" else self.embed_norm(x)


def shared_method(
  methods: tuple[base.AttentionMethod, ...],
) -> base.AttentionMethod | None:
  """The method whose parameters are one for all its layers, or None.

  Raises:
    ValueError: if there are several that differ.
  """
  found = list(dict.fromkeys(filter(mixing.shares, methods)))
  if len(found) > 1:
    raise ValueError(
      "methods that share their parameters between layers must be equal in all "
      f"layers, but differ: {found}; take another sharing, or one method."
    )
  return found[0] if found else None


def check_patterns(methods: tuple[base.AttentionMethod, ...], by: str) -> None:
  """Raises ValueError unless all methods can take global tokens."""
  for method in methods:
    if not longformer.is_pattern(method):
      raise ValueError(
        f"{by} needs methods that are static patterns, such as "
        f"jaxattn.longformer(window=512), got {method}."
      )


def _check_call(
  cfg: EncoderConfig,
  tokens: jax.Array,
  type_ids: jax.Array | None,
  positions: jax.Array | None,
) -> None:
  for name, given in (("type_ids", type_ids), ("positions", positions)):
    if given is None:
      continue
    integers = jnp.issubdtype(given.dtype, jnp.integer)
    if given.shape != tokens.shape or not integers:
      raise ValueError(
        f"{name} must be integers in the shape of tokens {tokens.shape}, got "
        f"{given.dtype}{given.shape}."
      )
  if type_ids is not None and not cfg.type_vocab_size:
    raise ValueError(
      "type_ids need type_vocab_size in the configuration, which is 0."
    )
  if positions is not None and cfg.positions == "none":
    raise ValueError(
      "positions have nothing to act on: the model has positions='none'."
    )
  if positions is None and cfg.positions == "learned":
    if tokens.shape[1] > cfg.max_length:
      raise ValueError(
        f"tokens of length {tokens.shape[1]} exceed max_length "
        f"{cfg.max_length} of the learned positions."
      )
