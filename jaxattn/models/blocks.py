"""The block that encoders and decoders are made of, and what they share."""

import functools
from collections.abc import Callable
from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import base
from jaxattn._src import chunked
from jaxattn._src import masks
from jaxattn.models.layers import cross
from jaxattn.nn import linen as layers
from jaxattn.nn import mixing

Remat = Literal["none", "full", "dots"]
Norm = Literal["pre", "post"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_sigmoid": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "relu": jax.nn.relu,
}


def check_config(cfg: Any, positions: tuple[str, ...]) -> None:
  """Raises ValueError for options of blocks that do not fit together."""
  for name in ("vocab_size", "width", "num_layers", "num_heads", "max_length"):
    if getattr(cfg, name) < 1:
      raise ValueError(f"{name} must be positive, got {getattr(cfg, name)}.")
  if cfg.head_dim is None and cfg.width % cfg.num_heads:
    raise ValueError(
      f"num_heads must divide width {cfg.width}, got {cfg.num_heads}; or "
      "give head_dim."
    )
  kv_heads = cfg.num_kv_heads or cfg.num_heads
  if cfg.num_heads % kv_heads:
    raise ValueError(
      f"num_kv_heads must divide num_heads {cfg.num_heads}, got {kv_heads}."
    )
  num_methods = len(cfg.methods) if isinstance(cfg.methods, tuple) else 0
  if num_methods not in (1, cfg.num_layers):
    raise ValueError(
      "methods must be a tuple of one method, or of one for each of "
      f"{cfg.num_layers} layers; got {cfg.methods!r}."
    )
  for name, allowed in (
    ("positions", positions),
    ("remat", get_args(Remat)),
    ("norm", get_args(Norm)),
    ("activation", tuple(ACTIVATIONS)),
  ):
    if getattr(cfg, name) not in allowed:
      raise ValueError(
        f"{name} must be one of {allowed}, got {getattr(cfg, name)!r}."
      )
  chunk = getattr(cfg, "mlp_chunk", None)
  if chunk is not None and chunk < 1:
    raise ValueError(f"mlp_chunk must be positive or None, got {chunk}.")
  if not 0.0 <= cfg.dropout < 1.0:
    raise ValueError(f"dropout must be in [0, 1), got {cfg.dropout}.")


class Block(nn.Module, kw_only=True):
  """One block: attention, attention to a context where asked, feed-forward.

  Attributes:
    cfg: the model's configuration, of a decoder or an encoder.
    method: the attention method of this block.

  Example:
    >>> from jaxattn.models import blocks
    >>> from jaxattn.models import decoder
    >>> cfg = decoder.DecoderConfig(vocab_size=8, width=16, num_heads=2)
    >>> block = blocks.Block(cfg=cfg, method=jaxattn.dense())
    >>> x = jnp.ones((1, 4, 16))
    >>> args = (x, jaxattn.CAUSAL, None, False, False)
    >>> block.init_with_output(jax.random.key(0), *args)[0].shape
    (1, 4, 16)

  Source: Xiong et al., 2020, https://arxiv.org/abs/2002.04745.
  """

  cfg: Any
  method: base.AttentionMethod

  def setup(self) -> None:
    """Makes the layers."""
    cfg = self.cfg
    shared = {
      "use_bias": cfg.use_bias,
      "dtype": cfg.dtype,
      "param_dtype": cfg.param_dtype,
    }
    # The sum of all branches then has the variance of one.
    branches = cfg.num_layers * (3 if cfg.cross_attention else 2)
    gain = getattr(cfg, "init_gain", 1.0)
    plain, scaled = (
      nn.initializers.variance_scaling(size, "fan_in", "normal")
      for size in (gain, gain / branches)
    )
    heads = {
      "num_heads": cfg.num_heads,
      "num_kv_heads": cfg.num_kv_heads,
      "head_dim": cfg.head_size,
      "out_features": cfg.width,
      "qk_norm": cfg.qk_norm,
      "kernel_init": plain,
      "out_kernel_init": scaled,
      **shared,
    }
    self.attention_norm, self.mlp_norm = make_norm(cfg), make_norm(cfg)
    rotary = 10_000.0 if cfg.positions == "rotary" else None
    self.attention = self.make_attention(rotary=rotary, **heads)
    if cfg.cross_attention:
      self.cross_norm = make_norm(cfg)
      self.cross = cross.CrossAttention(**heads)
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
    context: jax.Array | None = None,
    context_mask: masks.Mask = masks.FULL,
    **extra: Any,
  ) -> jax.Array:
    """Maps `[B, T, D]` to `[B, T, D]`; arguments as of the attentions."""
    for name in self.branches:
      added, _ = self.branch(
        name,
        x,
        mask=mask,
        positions=positions,
        train=train,
        decode=decode,
        context=context,
        context_mask=context_mask,
        **extra,
      )
      x = x + added
      if self.cfg.norm == "post":
        x = self._norm(name)(x)
    return x

  @property
  def branches(self) -> tuple[str, ...]:
    """What the block adds, in this order."""
    cross = ("cross",) if self.cfg.cross_attention else ()
    return ("attention", *cross, "mlp")

  def branch(
    self,
    name: str,
    x: jax.Array,
    *,
    mask: masks.Mask,
    positions: jax.Array | None,
    train: bool,
    decode: bool = False,
    context: jax.Array | None = None,
    context_mask: masks.Mask = masks.FULL,
    selection: Any = None,
    **extra: Any,
  ) -> tuple[jax.Array, Any]:
    """What a branch adds to the residual stream `x`, and what it selected.

    Args:
      name: of `branches`.
      x: `[B, T, D]`.
      mask: as of the attention.
      positions: as of the attention.
      train: whether dropout and the state of the method are active.
      decode: as of the attention.
      context: of cross-attention.
      context_mask: of cross-attention.
      selection: what the method chose before, to be taken again.
      **extra: further arguments of the attention.

    Returns:
      `[B, T, D]`, and the method's choice, None if it makes none.
    """
    if self.cfg.norm == "pre":
      x = self._norm(name)(x)
    if name == "attention":
      if mixing.selects(self.method) and not decode:
        extra |= {"selection": selection, "return_selection": True}
      out = self.attention(
        x, mask=mask, positions=positions, train=train, decode=decode, **extra
      )
      out, selection = out if isinstance(out, tuple) else (out, None)
    elif name == "cross":
      out = self.cross(x, context=context, mask=context_mask)
    else:
      out = self._feed(x)
    return self.drop(out, deterministic=not train), selection

  def _norm(self, name: str) -> nn.LayerNorm:
    return getattr(self, f"{name}_norm")

  def _feed(self, x: jax.Array) -> jax.Array:
    """The feed-forward layers, of some tokens at a time where asked."""
    activation = ACTIVATIONS[self.cfg.activation]
    chunk = getattr(self.cfg, "mlp_chunk", None)
    if chunk is None or self.is_initializing():
      return self.mlp_out(activation(self.mlp_in(x)))
    # Without bonds to this module, as transformations ask.
    first, second = (
      functools.partial(m.clone(parent=None).apply, m.variables)
      for m in (self.mlp_in, self.mlp_out)
    )
    return chunked.map_tokens(
      lambda x: second(activation(first(x))),  # pyrefly: ignore
      x,
      chunk=chunk,
    )

  def make_attention(self, **options: Any) -> layers.Attention:
    """The layer that mixes tokens."""
    return layers.Attention(method=self.method, **options)


def remat(block: Any, policy: Remat) -> Any:
  """The class of blocks, which recompute what the policy names."""
  if policy == "none":
    return block
  keep = None
  if policy == "dots":
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  # `train` and `decode`, counted with self.
  return nn.remat(block, static_argnums=(4, 5), policy=keep)


def scales_embeddings(cfg: Any) -> bool:
  """Whether embeddings are multiplied by the root of the width.

  They then have the size of what blocks add, or of sinusoids; where a norm
  follows and nothing else is added they need no scale.
  """
  if cfg.norm == "post":
    return cfg.positions == "sinusoidal"
  return getattr(cfg, "scale_embeddings", True)


def make_embed(
  cfg: Any,
  rows: int,
  name: str | None,
  *,
  share: int = 1,
  width: int | None = None,
) -> nn.Embed:
  """A table of `rows` vectors; of `share` tables that are added up, one.

  With a `width` of its own it is one of tables that are joined.
  """
  size = cfg.width**-0.5 if scales_embeddings(cfg) else 0.02
  if not getattr(cfg, "scale_embeddings", True):
    size = (cfg.init_gain / cfg.width) ** 0.5
  size = size * share**-0.5
  init = boxed(nn.initializers.normal(size), name, "embed")
  return nn.Embed(
    rows,
    width or cfg.width,
    param_dtype=cfg.param_dtype,
    embedding_init=init,
  )


def make_norm(cfg: Any) -> nn.LayerNorm:
  """A layer norm in the kinds of a configuration."""
  return nn.LayerNorm(
    epsilon=cfg.layer_norm_eps,
    use_bias=cfg.use_bias,
    dtype=cfg.dtype,
    param_dtype=cfg.param_dtype,
    scale_init=boxed(nn.initializers.ones_init(), "embed"),
    bias_init=boxed(nn.initializers.zeros_init(), "embed"),
  )


def unembed(x: jax.Array, table: jax.Array) -> jax.Array:
  """Logits `[..., V]` in float32 of `x [..., D]` by `table [V, D]`."""
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


def boxed(init: Any, *names: str | None) -> Any:
  """The initializer, with logical names of the axes of what it makes."""
  """The initializer, whose result carries logical axis names."""
  return nn.with_logical_partitioning(init, names)
