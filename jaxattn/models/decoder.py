"""A decoder language model in Flax Linen, with any method in any layer."""

import dataclasses
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import base
from jaxattn._src import dense_method
from jaxattn._src import masks
from jaxattn._src import positions as positions_lib
from jaxattn.nn import linen as layers

Positions = Literal["learned", "rotary", "relative", "none"]
Remat = Literal["none", "full", "dots"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """The shape of a `Decoder`.

  Attributes:
    vocab_size: number of token ids.
    width: D, of the residual stream.
    num_layers: number of blocks.
    num_heads: query heads of every block.
    num_kv_heads: key and value heads; None means `num_heads`.
    head_dim: size of a head; None means `width / num_heads`.
    mlp_width: of the feed-forward layers; None means `4 * width`.
    methods: one attention method for all blocks, or one for each.
    positions: `rotary` turns queries and keys; `learned` adds a trained vector
      per position to the embedding; `relative` gives every method without a
      relative scheme its own `T5Bias(bidirectional=False)`; `none` adds
      nothing. A scheme that a method brings along works with all of them.
    max_length: rows of the learned table, and default size of the cache.
    qk_norm: whether to normalise queries and keys.
    use_bias: whether linear maps and norms have biases.
    tie_embeddings: whether the output uses the embedding table.
    dropout: rate on the embedding and on what each block adds.
    remat: what the backward pass computes again: nothing, each block in
      `full`, or each block but its matrix products (`dots`).
    dtype: of the activations; logits are float32 always.
    param_dtype: of the parameters.

  Raises:
    ValueError: if the options do not fit together.

  Example:
    >>> from jaxattn.models import decoder
    >>> decoder.DecoderConfig(vocab_size=256, width=64).head_size
    8

  Source: Radford et al., 2019 (GPT-2), https://openai.com/research/better-language-models.
  """

  vocab_size: int
  width: int = 512
  num_layers: int = 8
  num_heads: int = 8
  num_kv_heads: int | None = None
  head_dim: int | None = None
  mlp_width: int | None = None
  methods: tuple[base.AttentionMethod, ...] = (dense_method.Dense(),)
  positions: Positions = "rotary"
  max_length: int = 1024
  qk_norm: bool = False
  use_bias: bool = False
  tie_embeddings: bool = True
  dropout: float = 0.0
  remat: Remat = "none"
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    for name in ("vocab_size", "width", "num_layers", "num_heads"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
    if self.head_dim is None and self.width % self.num_heads:
      raise ValueError(
        f"num_heads must divide width {self.width}, got {self.num_heads}; or "
        "give head_dim."
      )
    kv_heads = self.num_kv_heads or self.num_heads
    if self.num_heads % kv_heads:
      raise ValueError(
        f"num_kv_heads must divide num_heads {self.num_heads}, got {kv_heads}."
      )
    if not isinstance(self.methods, tuple) or len(self.methods) not in (
      1,
      self.num_layers,
    ):
      raise ValueError(
        "methods must be a tuple of one method, or of one for each of "
        f"{self.num_layers} layers; got {self.methods!r}."
      )
    for name, allowed in (
      ("positions", ("learned", "rotary", "relative", "none")),
      ("remat", ("none", "full", "dots")),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name} must be one of {allowed}, got {getattr(self, name)!r}."
        )
    if not 0.0 <= self.dropout < 1.0:
      raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
    for method in self.methods:
      if method.causality == "none":
        raise ValueError(
          f"methods: {method} does not serve causal masks, which a decoder "
          "needs."
        )
    self.layer_methods()  # Raises for positions that a method cannot have.

  @property
  def head_size(self) -> int:
    """`head_dim`, with its default filled in."""
    return self.head_dim or self.width // self.num_heads

  def layer_methods(self) -> tuple[base.AttentionMethod, ...]:
    """The method of every layer, with its relative scheme filled in."""
    methods = self.methods
    if self.positions == "relative":
      methods = tuple(map(_with_scheme, methods))
    return methods * self.num_layers if len(methods) == 1 else methods


def _with_scheme(method: Any) -> Any:
  """The method with a T5 bias, unless it has a scheme already."""
  fields = {f.name for f in dataclasses.fields(method)}
  if "relative" not in fields:
    raise ValueError(
      "positions='relative' needs methods with the option `relative`; "
      f"{type(method).__name__} has {sorted(fields)}. Take positions='rotary' "
      "or 'learned'."
    )
  if method.relative is not None:
    return method
  scheme = positions_lib.T5Bias(bidirectional=False)
  return dataclasses.replace(method, relative=scheme)


class Block(nn.Module, kw_only=True):
  """One pre-norm block: attention, then a feed-forward layer with GELU.

  Attributes:
    cfg: the model's configuration.
    method: the attention method of this block.

  Example:
    >>> from jaxattn.models import decoder
    >>> cfg = decoder.DecoderConfig(vocab_size=8, width=16, num_heads=2)
    >>> block = decoder.Block(cfg=cfg, method=jaxattn.dense())
    >>> x = jnp.ones((1, 4, 16))
    >>> args = (x, jaxattn.CAUSAL, None, False, False)
    >>> block.init_with_output(jax.random.key(0), *args)[0].shape
    (1, 4, 16)

  Source: Xiong et al., 2020, https://arxiv.org/abs/2002.04745.
  """

  cfg: DecoderConfig
  method: base.AttentionMethod

  def setup(self) -> None:
    """Makes the layers."""
    cfg = self.cfg
    shared = {
      "use_bias": cfg.use_bias,
      "dtype": cfg.dtype,
      "param_dtype": cfg.param_dtype,
    }
    # The sum of 2 L branches then has the variance of one.
    scaled = nn.initializers.variance_scaling(
      1 / (2 * cfg.num_layers), "fan_in", "normal"
    )
    plain = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    self.attention_norm, self.mlp_norm = _norm(cfg), _norm(cfg)
    self.attention = layers.Attention(
      method=self.method,
      num_heads=cfg.num_heads,
      num_kv_heads=cfg.num_kv_heads,
      head_dim=cfg.head_size,
      out_features=cfg.width,
      qk_norm=cfg.qk_norm,
      rotary=10_000.0 if cfg.positions == "rotary" else None,
      kernel_init=plain,
      out_kernel_init=scaled,
      **shared,
    )
    mlp_width = cfg.mlp_width or 4 * cfg.width
    self.mlp_in = layers.Projection(
      features=(mlp_width,),
      names=("embed", "mlp"),
      kernel_init=plain,
      **shared,
    )
    self.mlp_out = layers.Projection(
      features=(cfg.width,),
      names=("mlp", "embed"),
      kernel_init=scaled,
      **shared,
    )
    self.drop = nn.Dropout(cfg.dropout)

  def __call__(
    self,
    x: jax.Array,
    mask: masks.Mask,
    positions: jax.Array | None,
    train: bool,
    decode: bool,
  ) -> jax.Array:
    """Maps `[B, T, D]` to `[B, T, D]`; arguments as of `layers.Attention`."""
    mixed = self.attention(
      self.attention_norm(x),
      mask=mask,
      positions=positions,
      train=train,
      decode=decode,
    )
    x = x + self.drop(mixed, deterministic=not train)
    hidden = nn.gelu(self.mlp_in(self.mlp_norm(x)))
    return x + self.drop(self.mlp_out(hidden), deterministic=not train)


class Decoder(nn.Module):
  """A causal language model: tokens to logits of the next token.

  Parameters carry the logical axis names `embed` (the width), `mlp`, `heads`
  (`kv_heads` where grouped), `head_dim` and `vocab`; strip the boxes with
  `nn.unbox`. Embeddings have variance 1 / width and are scaled by its root
  before the first block. The collection `attention` holds the state of methods
  that have any, and exists only then. Dropout draws from the stream `dropout`.

  Attributes:
    cfg: the shape of the model.

  Example:
    >>> from jaxattn.models import decoder
    >>> cfg = decoder.DecoderConfig(
    ...     vocab_size=11, width=16, num_layers=2, num_heads=2,
    ...     methods=(jaxattn.sliding_window(left=3),))
    >>> tokens = jnp.array([[1, 2, 3, 4]])
    >>> model = decoder.Decoder(cfg)
    >>> variables = model.init(jax.random.key(0), tokens)
    >>> model.apply(variables, tokens).shape
    (1, 4, 11)

  Source: Radford et al., 2019 (GPT-2); Press and Wolf, 2017 (tied embeddings),
  https://arxiv.org/abs/1608.05859; Vaswani et al., 2017 (their scale),
  https://arxiv.org/abs/1706.03762, section 3.4.
  """

  cfg: DecoderConfig

  def setup(self) -> None:
    """Makes the layers."""
    cfg = self.cfg
    self.embed = nn.Embed(
      cfg.vocab_size,
      cfg.width,
      param_dtype=cfg.param_dtype,
      embedding_init=_boxed(
        nn.initializers.normal(cfg.width**-0.5), "vocab", "embed"
      ),
    )
    if cfg.positions == "learned":
      self.position_embed = nn.Embed(
        cfg.max_length,
        cfg.width,
        param_dtype=cfg.param_dtype,
        embedding_init=_boxed(
          nn.initializers.normal(cfg.width**-0.5), None, "embed"
        ),
      )
    self.drop = nn.Dropout(cfg.dropout)
    block = _remat(cfg.remat)
    self.blocks = [block(cfg=cfg, method=m) for m in cfg.layer_methods()]
    self.final_norm = _norm(cfg)
    if not cfg.tie_embeddings:
      self.unembed = self.param(
        "unembed",
        _boxed(nn.initializers.normal(0.02), "vocab", "embed"),
        (cfg.vocab_size, cfg.width),
        cfg.param_dtype,
      )

  def __call__(
    self,
    tokens: jax.Array,
    *,
    mask: masks.Mask = masks.CAUSAL,
    positions: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Logits of the next token after every token.

    Args:
      tokens: `[B, T]` ints in `[0, vocab_size)`; others give NaN.
      mask: what may attend to what; for packed rows
        `jaxattn.packed(segment_ids, causal=True)`.
      positions: `[B, T]` ints for learned and rotary positions, for example
        restarting in every packed document; None counts from 0.
      train: whether dropout and the state of methods are active.

    Returns:
      `[B, T, vocab_size]` float32.

    Raises:
      ValueError: if shapes do not fit, or T exceeds the learned positions.
    """
    cfg = self.cfg
    check_tokens(tokens)
    if positions is not None and positions.shape != tokens.shape:
      raise ValueError(
        f"positions must have the shape of tokens {tokens.shape}, got "
        f"{positions.shape}."
      )
    if positions is not None and cfg.positions in ("relative", "none"):
      raise ValueError(
        f"positions are for learned and rotary positions; the model has "
        f"{cfg.positions!r}: leave them out."
      )
    if positions is None:
      if cfg.positions == "learned" and tokens.shape[1] > cfg.max_length:
        raise ValueError(
          f"tokens of length {tokens.shape[1]} exceed max_length "
          f"{cfg.max_length} of the learned positions."
        )
      positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    x = self._blocks(tokens, mask, positions, train, False)
    return self._logits(x)

  def init_cache(self, batch_size: int, max_length: int | None = None) -> None:
    """Puts an empty decoding cache in the collection `cache`.

    Use `init_cache` of `jaxattn.models.decoding`, which returns it.
    """
    length = self.cfg.max_length if max_length is None else max_length
    for block in self.blocks:
      block.attention.init_cache((batch_size,), length)
    self.put_variable("cache", "length", jnp.zeros(batch_size, jnp.int32))

  def extend(
    self,
    tokens: jax.Array,
    key_valid: jax.Array | None = None,
    *,
    last_only: bool = False,
  ) -> jax.Array:
    """Appends tokens to the collection `cache`; see `decoding.decode_step`."""
    check_tokens(tokens)
    if not self.has_variable("cache", "length"):
      raise ValueError(
        "extend needs the collection 'cache'; see decoding.init_cache."
      )
    if key_valid is not None and key_valid.shape != tokens.shape:
      raise ValueError(
        f"key_valid must have the shape of tokens {tokens.shape}, got "
        f"{key_valid.shape}."
      )
    length = self.get_variable("cache", "length")
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    positions = length[:, None] + steps
    count = jnp.full_like(length, tokens.shape[1])
    if key_valid is not None:
      count = jnp.sum(key_valid, axis=1, dtype=jnp.int32)
      # Padding may lie beyond the learned table, and NaN would spread from it.
      positions = jnp.where(key_valid, positions, 0)
    mask = masks.Mask(causal=True, key_valid=key_valid)
    x = self._blocks(tokens, mask, positions, False, True)
    self.put_variable("cache", "length", length + count)
    if last_only:
      last = jnp.maximum(count - 1, 0)[:, None, None]
      x = jnp.take_along_axis(x, last, axis=1)[:, 0]
    return self._logits(x)

  def _blocks(
    self,
    tokens: jax.Array,
    mask: masks.Mask,
    positions: jax.Array,
    train: bool,
    decode: bool,
  ) -> jax.Array:
    cfg = self.cfg
    x = self.embed(tokens)
    if cfg.positions == "learned":
      x = x + jnp.broadcast_to(self.position_embed(positions), x.shape)
    # Of the size of what blocks add, or the tokens would drown in it.
    x = (x * cfg.width**0.5).astype(cfg.dtype)
    x = self.drop(x, deterministic=not train)
    turns = positions if cfg.positions == "rotary" else None
    for block in self.blocks:
      x = block(x, mask, turns, train, decode)
    return x

  def _logits(self, x: jax.Array) -> jax.Array:
    table = self.embed.embedding if self.cfg.tie_embeddings else self.unembed
    x = self.final_norm(x)
    return jnp.einsum(
      "...d,vd->...v",
      x,
      table.astype(x.dtype),
      preferred_element_type=jnp.float32,
    )


def check_tokens(tokens: jax.Array) -> None:
  """Raises ValueError unless `tokens` are integers `[B, T]`."""
  if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(
      f"tokens must be integers [B, T], got {tokens.dtype}{tokens.shape}."
    )


def _boxed(init: Any, *names: str | None) -> Any:
  return nn.with_logical_partitioning(init, names)


def _norm(cfg: DecoderConfig) -> nn.LayerNorm:
  return nn.LayerNorm(
    use_bias=cfg.use_bias,
    dtype=cfg.dtype,
    param_dtype=cfg.param_dtype,
    scale_init=_boxed(nn.initializers.ones_init(), "embed"),
    bias_init=_boxed(nn.initializers.zeros_init(), "embed"),
  )


def _remat(policy: Remat) -> Any:
  """The class of blocks, which recompute what the policy names."""
  if policy == "none":
    return Block
  keep = None
  if policy == "dots":
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  # `train` and `decode`, counted with self.
  return nn.remat(Block, static_argnums=(4, 5), policy=keep)
