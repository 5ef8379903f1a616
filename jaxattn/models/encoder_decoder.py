"""An encoder-decoder in Flax Linen: any method reads, a decoder writes."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from jaxattn._src import longformer
from jaxattn._src import masks
from jaxattn.models import blocks
from jaxattn.models import decoder
from jaxattn.models import encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
  """The shape of an `EncoderDecoder`.

  Attributes:
    encoder: the shape of the encoder.
    decoder: the shape of the decoder, with `cross_attention=True`.
    share_embeddings: whether source and target have one embedding table; with
      the decoder's `tie_embeddings` it is the output table too.

  Raises:
    ValueError: if the two do not fit together.

  Example:
    >>> from jaxattn.models import encoder_decoder
    >>> encoder_decoder.led(vocab_size=50265).encoder.max_length
    16384

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762.
  """

  encoder: encoder.EncoderConfig
  decoder: decoder.DecoderConfig
  share_embeddings: bool = True

  def __post_init__(self) -> None:
    if not self.decoder.cross_attention:
      raise ValueError(
        "decoder must have cross_attention=True, or it cannot see the source."
      )
    if not self.share_embeddings:
      return
    first, second = (
      (cfg.vocab_size, cfg.width, blocks.scales_embeddings(cfg))
      for cfg in (self.encoder, self.decoder)
    )
    if first != second:
      raise ValueError(
        "share_embeddings=True needs one vocab_size, width and scale of "
        f"embeddings (that of norm='pre' or 'post'); the encoder has {first}, "
        f"the decoder {second}."
      )


def led(
  *,
  vocab_size: int,
  width: int = 768,
  num_layers: int = 6,
  num_heads: int = 12,
  window: int | tuple[int, ...] = 1024,
  max_source: int = 16_384,
  max_target: int = 1024,
  dropout: float = 0.1,
  **both: Any,
) -> EncoderDecoderConfig:
  """The form of the Longformer-Encoder-Decoder; the defaults are its base size.

  Encoder blocks attend to a window and to global tokens with projections of
  their own, decoder blocks to everything; norms after each branch, learned
  positions, one embedding table.

  Args:
    vocab_size: number of token ids.
    width: of both residual streams; 1024 in the large model.
    num_layers: of the encoder and of the decoder, each; 12 in the large model.
    num_heads: of all attentions; 16 in the large model.
    window: total width of the encoder's window, even, or one for each layer.
    max_source: longest source.
    max_target: longest target.
    dropout: rate.
    **both: further options, which `EncoderConfig` and `DecoderConfig` share.

  Returns:
    The configuration.

  Raises:
    ValueError: if the options do not fit together.

  Example:
    >>> from jaxattn.models import encoder_decoder
    >>> cfg = encoder_decoder.led(vocab_size=100, num_layers=2, window=(32, 64))
    >>> [method.window for method in cfg.encoder.methods]
    [32, 64]

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 7;
  Lewis et al., 2020 (BART), https://arxiv.org/abs/1910.13461.
  """
  windows = window if isinstance(window, tuple) else (window,)
  options: dict[str, Any] = {
    "vocab_size": vocab_size,
    "width": width,
    "num_layers": num_layers,
    "num_heads": num_heads,
    "dropout": dropout,
    "norm": "post",
    "activation": "gelu",
    "positions": "learned",
    "layer_norm_eps": 1e-5,
    "use_bias": True,
    **both,
  }
  methods = tuple(longformer.longformer(window=size) for size in windows)
  return EncoderDecoderConfig(
    encoder=encoder.EncoderConfig(
      methods=methods,
      global_projections=True,
      max_length=max_source,
      **options,
    ),
    decoder=decoder.DecoderConfig(
      cross_attention=True, max_length=max_target, **options
    ),
  )


class EncoderDecoder(nn.Module):
  """Reads a source and predicts a target, token by token.

  The encoder may be sparse; every target token attends to all earlier ones and
  to the whole source. Parameters lie in `encoder`, `decoder` and, where shared,
  `embed`, with the logical axis names of these models.

  Attributes:
    cfg: the shape of the model.

  Example:
    >>> from jaxattn.models import encoder_decoder
    >>> model = encoder_decoder.EncoderDecoder(encoder_decoder.led(
    ...     vocab_size=11, width=16, num_layers=1, num_heads=2, window=4))
    >>> source, target = jnp.array([[1, 2, 3, 4, 5]]), jnp.array([[2, 7, 8]])
    >>> places = jnp.array([[0]])
    >>> variables = model.init(jax.random.key(0), source, target)
    >>> model.apply(
    ...     variables, source, target, global_positions=places).shape
    (1, 3, 11)

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; Beltagy et
  al., 2020 (LED), https://arxiv.org/abs/2004.05150, section 7.
  """

  cfg: EncoderDecoderConfig

  def setup(self) -> None:
    """Makes the layers."""
    cfg, shared = self.cfg, None
    if cfg.share_embeddings:
      rows = cfg.encoder.vocab_size
      self.embed = shared = blocks.make_embed(cfg.encoder, rows, "vocab")
    self.encoder = encoder.Encoder(cfg.encoder, shared_embed=shared)
    self.decoder = decoder.Decoder(cfg.decoder, shared_embed=shared)

  def __call__(
    self,
    source: jax.Array,
    target: jax.Array,
    *,
    source_mask: masks.Mask = masks.FULL,
    target_mask: masks.Mask = masks.CAUSAL,
    global_positions: jax.Array | None = None,
    source_positions: jax.Array | None = None,
    target_positions: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Logits of the next token after every token of the target.

    Args:
      source: `[B, S]` ints.
      target: `[B, T]` ints, what the decoder reads: the start token, then the
        target without its last token.
      source_mask: of the encoder; its `key_valid` and segment ids hold for
        cross-attention too.
      target_mask: of the decoder.
      global_positions: `[B, G]` ints, global tokens of the source; as of
        `Encoder`.
      source_positions: `[B, S]` ints; as of `Encoder`.
      target_positions: `[B, T]` ints; as of `Decoder`.
      train: whether dropout and the state of methods are active.

    Returns:
      `[B, T, vocab_size]` float32.

    Raises:
      ValueError: if shapes do not fit.
    """
    context = self.encode(
      source,
      mask=source_mask,
      global_positions=global_positions,
      positions=source_positions,
      train=train,
    )
    return self.decoder(
      target,
      mask=target_mask,
      positions=target_positions,
      context=context,
      context_mask=cross_mask(source_mask, target_mask),
      train=train,
    )

  def encode(
    self,
    source: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    global_positions: jax.Array | None = None,
    positions: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """The encoder alone: `[B, S]` to `[B, S, D]`; as of `Encoder`."""
    return self.encoder(
      source,
      mask=mask,
      global_positions=global_positions,
      positions=positions,
      train=train,
    )

  def init_cache(
    self,
    context: jax.Array,
    context_valid: jax.Array | None = None,
    max_length: int | None = None,
  ) -> None:
    """Puts a decoding cache in the collection `cache`; see `seq2seq`."""
    self.decoder.init_cache(
      context.shape[0], max_length, context, context_valid
    )

  def extend(
    self,
    tokens: jax.Array,
    key_valid: jax.Array | None = None,
    *,
    last_only: bool = False,
  ) -> jax.Array:
    """Appends target tokens to the cache; see `seq2seq.decode_step`."""
    return self.decoder.extend(tokens, key_valid, last_only=last_only)


def cross_mask(source: masks.Mask, target: masks.Mask) -> masks.Mask:
  """The mask of cross-attention, from those of both sequences.

  Args:
    source: of the encoder; valid keys and segments are taken from it.
    target: of the decoder; valid queries and segments are taken from it.

  Returns:
    A mask without causality: a target token sees the whole source, or that of
    its segment.

  Raises:
    ValueError: if only one of the two has segments.

  Example:
    >>> from jaxattn.models import encoder_decoder
    >>> source = jaxattn.Mask(key_valid=jnp.array([[True, False]]))
    >>> mask = encoder_decoder.cross_mask(source, jaxattn.CAUSAL)
    >>> mask.fields_set
    ('key_valid',)

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, section 3.2.3.
  """
  segments = (target.query_segment_ids, source.key_segment_ids)
  if (segments[0] is None) != (segments[1] is None):
    raise ValueError(
      "source_mask and target_mask must both have segment ids or neither; got "
      f"{source.fields_set} and {target.fields_set}."
    )
  return masks.Mask(
    key_valid=source.key_valid,
    query_valid=target.query_valid,
    query_segment_ids=segments[0],
    key_segment_ids=segments[1],
  )
