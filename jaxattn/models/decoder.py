"""A decoder language model in Flax Linen, with any method in any layer."""

import dataclasses
import functools
import math
from typing import Any
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
from jaxattn.models import losses
from jaxattn.models import reversible

Residuals = Literal["plain", "reversible"]
Positions = Literal["learned", "rotary", "relative", "axes", "none"]


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
      relative scheme its own `T5Bias(bidirectional=False)`; `axes` adds one
      trained vector for each coordinate of the position in `position_axes`;
      `none` adds nothing. A scheme that a method brings along works with all.
    position_axes: sizes of the axes, the last one counting fastest: (rows,
      columns, channels) of an image, (length / stride, stride) of a text.
    axis_widths: sizes of the vectors of each axis, which are then joined, not
      added; their sum is the width.
    max_length: rows of the learned table, and default size of the cache.
    norm: `pre` normalises what each branch reads, and the end; `post` the sum
      of branch and residual, and the embeddings, which are then not scaled.
    layer_norm_eps: of the norms.
    activation: of the feed-forward layers: `gelu`, exact or as `gelu_tanh` by
      its usual approximation or `gelu_sigmoid` by `x sigmoid(1.702 x)`, or
      `relu`.
    cross_attention: whether blocks attend to a context too, as in
      `jaxattn.models.encoder_decoder`.
    qk_norm: whether to normalise queries and keys.
    use_bias: whether linear maps and norms have biases.
    tie_embeddings: whether the output uses the embedding table.
    init_gain: variance of the kernels times their inputs.
    scale_embeddings: whether embeddings are scaled by the root of the width
      (`pre` only); if not, their variance is `init_gain / width`.
    zero_unembed: whether the output matrix starts at zero, so that all tokens
      are equally likely; needs `tie_embeddings=False`.
    residuals: `plain`; or `reversible`: attention and feed-forward add to two
      float32 streams in turn, which the backward pass computes back, so that
      activation memory does not grow with the layers. Logits come of both
      streams, joined and normalised; with tied embeddings of their mean.
    mlp_chunk: tokens that the feed-forward layers take at a time; None: all.
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
  position_axes: tuple[int, ...] = ()
  axis_widths: tuple[int, ...] = ()
  max_length: int = 1024
  norm: blocks.Norm = "pre"
  layer_norm_eps: float = 1e-6
  activation: str = "gelu_tanh"
  cross_attention: bool = False
  qk_norm: bool = False
  use_bias: bool = False
  tie_embeddings: bool = True
  init_gain: float = 1.0
  scale_embeddings: bool = True
  zero_unembed: bool = False
  residuals: Residuals = "plain"
  mlp_chunk: int | None = None
  dropout: float = 0.0
  remat: blocks.Remat = "none"
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    blocks.check_config(self, get_args(Positions))
    for method in self.methods:
      if method.causality == "none":
        raise ValueError(
          f"methods: {method} does not serve causal masks, which a decoder "
          "needs."
        )
    self._check_axes()
    self._check_residuals()
    if self.init_gain <= 0:
      raise ValueError(f"init_gain must be positive, got {self.init_gain}.")
    if self.zero_unembed and self.tie_embeddings:
      raise ValueError("zero_unembed=True needs tie_embeddings=False.")
    if not self.scale_embeddings and self.norm == "post":
      raise ValueError("scale_embeddings is for norm='pre'; leave it out.")
    self.layer_methods()  # Raises for positions that a method cannot have.

  def _check_axes(self) -> None:
    axes = self.position_axes
    if (self.positions == "axes") != bool(axes):
      raise ValueError(
        "position_axes go with positions='axes', got positions="
        f"{self.positions!r} and position_axes={axes}."
      )
    if not axes:
      return
    if min(axes) < 1 or math.prod(axes) < self.max_length:
      raise ValueError(
        f"position_axes must be positive and hold max_length {self.max_length} "
        f"positions, got {axes} = {math.prod(axes)}."
      )

    widths = self.axis_widths
    if widths and (len(widths) != len(axes) or sum(widths) != self.width):
      raise ValueError(
        f"axis_widths must be one for each of {len(axes)} axes and add up to "
        f"width {self.width}, got {widths}."
      )

  def _check_residuals(self) -> None:
    if self.residuals not in get_args(Residuals):
      raise ValueError(
        f"residuals must be one of {get_args(Residuals)}, got "
        f"{self.residuals!r}."
      )
    if self.residuals == "reversible" and self.norm != "pre":
      raise ValueError("residuals='reversible' needs norm='pre'.")
    if self.residuals == "reversible" and self.remat != "none":
      raise ValueError(
        "residuals='reversible' computes every block again by itself; leave "
        "remat out."
      )

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


class Decoder(nn.Module):
  """A causal language model: tokens to logits of the next token.

  Parameters carry the logical axis names `embed` (the width), `mlp`, `heads`
  (`kv_heads` where grouped), `head_dim` and `vocab`; strip the boxes with
  `nn.unbox`. Embeddings have variance 1 / width and are scaled by its root
  before the first block, or normalised in the `post` form. The collection
  `attention` holds the state of methods that have any, and exists only then.
  Dropout draws from the stream `dropout`.

  Attributes:
    cfg: the shape of the model.
    shared_embed: an embedding to use in place of its own, or None.

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
    elif cfg.positions == "axes":
      self.axis_embeds = [
        blocks.make_embed(
          cfg,
          size,
          None,
          share=1 if cfg.axis_widths else len(cfg.position_axes),
          width=width,
        )
        for size, width in zip(
          cfg.position_axes,
          cfg.axis_widths or (None,) * len(cfg.position_axes),
          strict=True,
        )
      ]
    self.drop = nn.Dropout(cfg.dropout)
    block = blocks.remat(blocks.Block, cfg.remat)
    self.blocks = [block(cfg=cfg, method=m) for m in cfg.layer_methods()]
    if cfg.norm == "pre":
      self.final_norm = blocks.make_norm(cfg)
    else:
      self.embed_norm = blocks.make_norm(cfg)
    if not cfg.tie_embeddings:
      size = 0.0 if cfg.zero_unembed else 0.02
      self.unembed = self.param(
        "unembed",
        blocks.boxed(nn.initializers.normal(size), "vocab", "embed"),
        (
          cfg.vocab_size,
          cfg.width * (2 if cfg.residuals == "reversible" else 1),
        ),
        cfg.param_dtype,
      )

  def __call__(
    self,
    tokens: jax.Array,
    *,
    mask: masks.Mask = masks.CAUSAL,
    positions: jax.Array | None = None,
    context: jax.Array | None = None,
    context_mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> jax.Array:
    """Logits of the next token after every token.

    Args:
      tokens: `[B, T]` ints in `[0, vocab_size)`; others give NaN.
      mask: what may attend to what; for packed rows
        `jaxattn.packed(segment_ids, causal=True)`.
      positions: `[B, T]` ints for learned, axes and rotary ones, for example
        restarting in every packed document; None counts from 0.
      context: `[B, S, C]` floats, with `cross_attention` only.
      context_mask: which token may attend to what of the context.
      train: whether dropout and the state of methods are active.

    Returns:
      `[B, T, vocab_size]` float32.

    Raises:
      ValueError: if shapes do not fit, or T exceeds the learned positions.
    """
    x = self.features(
      tokens,
      mask=mask,
      positions=positions,
      context=context,
      context_mask=context_mask,
      train=train,
    )
    return blocks.unembed(x, self._table())

  def token_losses(
    self,
    tokens: jax.Array,
    targets: jax.Array,
    *,
    chunk: int,
    **options: Any,
  ) -> jax.Array:
    """Cross-entropy of every target, logits of some tokens at a time.

    `model.apply(variables, tokens, targets, chunk=128, method="token_losses")`
    never holds the logits of all tokens, in the backward pass neither.

    Args:
      tokens: `[B, T]` ints.
      targets: `[B, T]` ints in `[0, vocab_size)`.
      chunk: tokens of a row whose logits exist at a time.
      **options: of a call.

    Returns:
      `[B, T]` float32, in nats.

    Raises:
      ValueError: if shapes do not fit.
    """
    x = self.features(tokens, **options)
    return losses.chunked_cross_entropy(x, self._table(), targets, chunk=chunk)

  def features(
    self,
    tokens: jax.Array,
    *,
    mask: masks.Mask = masks.CAUSAL,
    positions: jax.Array | None = None,
    context: jax.Array | None = None,
    context_mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> jax.Array:
    """What logits are made of, `[B, T, D]`; arguments as of a call."""
    cfg = self.cfg
    blocks.check_tokens(tokens)
    if (context is not None) != cfg.cross_attention:
      raise ValueError(
        "context goes with cross_attention=True of the configuration, which "
        f"is {cfg.cross_attention}."
      )
    if positions is not None and positions.shape != tokens.shape:
      raise ValueError(
        f"positions must have the shape of tokens {tokens.shape}, got "
        f"{positions.shape}."
      )
    if positions is not None and cfg.positions in ("relative", "none"):
      raise ValueError(
        f"positions are for learned, axes and rotary positions; the model has "
        f"{cfg.positions!r}: leave them out."
      )
    if positions is None:
      added = cfg.positions in ("learned", "axes")
      if added and tokens.shape[1] > cfg.max_length:
        raise ValueError(
          f"tokens of length {tokens.shape[1]} exceed max_length "
          f"{cfg.max_length} of the learned positions."
        )
      positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    x = self._blocks(
      tokens, mask, positions, train, False, context, context_mask
    )
    return self._normalized(x)

  def init_cache(
    self,
    batch_size: int,
    max_length: int | None = None,
    context: jax.Array | None = None,
    context_valid: jax.Array | None = None,
  ) -> None:
    """Puts an empty decoding cache in the collection `cache`.

    Use `init_cache` of `jaxattn.models.decoding`, which returns it, or that of
    `jaxattn.models.seq2seq` for a model with a context.
    """
    length = self.cfg.max_length if max_length is None else max_length
    for block in self.blocks:
      block.attention.init_cache((batch_size,), length)
      if self.cfg.cross_attention:
        if context is None:
          raise ValueError(
            "cross_attention=True decodes with a context; make the cache with "
            "jaxattn.models.seq2seq.init_cache."
          )
        block.cross.remember(context, context_valid)
    self.put_variable("cache", "length", jnp.zeros(batch_size, jnp.int32))

  def extend(
    self,
    tokens: jax.Array,
    key_valid: jax.Array | None = None,
    *,
    last_only: bool = False,
  ) -> jax.Array:
    """Appends tokens to the collection `cache`; see `decoding.decode_step`."""
    blocks.check_tokens(tokens)
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
    context_mask = masks.Mask(query_valid=key_valid)
    x = self._blocks(tokens, mask, positions, False, True, None, context_mask)
    self.put_variable("cache", "length", length + count)
    if last_only:
      last = jnp.maximum(count - 1, 0)[:, None, None]
      x = jnp.take_along_axis(x, last, axis=1)[:, 0]
    return blocks.unembed(self._normalized(x), self._table())

  def _blocks(
    self,
    tokens: jax.Array,
    mask: masks.Mask,
    positions: jax.Array,
    train: bool,
    decode: bool,
    context: jax.Array | None,
    context_mask: masks.Mask,
  ) -> jax.Array:
    cfg = self.cfg
    x = self.embed(tokens)
    if cfg.positions == "learned":
      x = x + jnp.broadcast_to(self.position_embed(positions), x.shape)
    elif cfg.positions == "axes":
      x = x + jnp.broadcast_to(self._on_axes(positions), x.shape)
    if cfg.norm == "pre":
      # Of the size of what blocks add, or the tokens would drown in it.
      x = (x * cfg.width**0.5 if cfg.scale_embeddings else x).astype(cfg.dtype)
    else:
      x = self.embed_norm(x)
    x = self.drop(x, deterministic=not train)
    turns = positions if cfg.positions == "rotary" else None
    if cfg.residuals == "reversible":
      given = reversible.Arguments(mask, turns, context, context_mask)
      if decode or self.is_initializing():
        found = reversible.run_plainly(
          self.blocks, x, given, train=train, decode=decode
        )
      else:
        found = reversible.run(self.blocks, x, given, train=train)
      if cfg.tie_embeddings:
        return ((found[0] + found[1]) * 0.5).astype(cfg.dtype)
      return jnp.concatenate(found, axis=-1).astype(cfg.dtype)
    for block in self.blocks:
      x = block(x, mask, turns, train, decode, context, context_mask)
    return x

  def _on_axes(self, positions: jax.Array) -> jax.Array:
    """The vectors of all coordinates of the positions, added or joined."""
    inner, found = math.prod(self.cfg.position_axes), []
    for axis, (size, table) in enumerate(
      zip(self.cfg.position_axes, self.axis_embeds, strict=True)
    ):
      inner //= size
      at = positions // inner
      found.append(table(at if axis == 0 else at % size))
    if self.cfg.axis_widths:
      return jnp.concatenate(found, axis=-1)
    return functools.reduce(jnp.add, found)

  def _normalized(self, x: jax.Array) -> jax.Array:
    return self.final_norm(x) if self.cfg.norm == "pre" else x

  def _table(self) -> jax.Array:
    return self.embed.embedding if self.cfg.tie_embeddings else self.unembed
