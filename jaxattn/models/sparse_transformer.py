"""The Sparse Transformer's form of the decoder, with its methods by layer."""

import math
from typing import Any
from typing import Literal

from jaxattn._src import sparse_transformer as method_lib
from jaxattn.models import decoder

Factors = Literal["merged", "heads", "interleaved"]


def config(
  *,
  vocab_size: int,
  position_axes: tuple[int, ...],
  stride: int,
  kind: method_lib.Kind = "fixed",
  factors: Factors = "merged",
  summary: int = 1,
  subblocks: int = 1,
  order: tuple[method_lib.Factors, ...] = ("local", "remote"),
  num_layers: int = 8,
  init_gain: float = 0.125,
  **options: Any,
) -> decoder.DecoderConfig:
  """The configuration of a `Decoder` in the form of Sparse Transformer.

  Pre-norm blocks add `a + b` with `a = attention(norm(H))` and
  `b = feed_forward(norm(H + a))`; GELU is `x sigmoid(1.702 x)`; positions are
  one learned vector per coordinate; kernels have variance
  `init_gain / inputs`, those that end a branch a `2 num_layers`-th of it; the
  output matrix is zero, so that the first loss is `log(vocab_size)`; biases are
  on and zero. `remat="full"` computes attention and feed-forward again in the
  backward pass.

  Args:
    vocab_size: number of token ids.
    position_axes: sizes of the axes of the data, the last counting fastest:
      `(rows, columns, channels)` for images, `(length / stride, stride)` for
      text and audio. Their product is the longest input.
    stride: l, of the attention; for images the tokens of a row.
    kind: `strided` for images and audio, `fixed` for text.
    factors: `merged` and `heads` as of `jaxattn.sparse_transformer`;
      `interleaved` gives the layers one factor each, in `order`.
    summary: c, summary columns of a chunk (`fixed` only).
    subblocks: how many sets of c summary columns the heads share out.
    order: of interleaved factors.
    num_layers: number of blocks.
    init_gain: of the kernels; 0.125 is the authors'.
    **options: any other field of `DecoderConfig`.

  Returns:
    A `DecoderConfig`.

  Raises:
    ValueError: if options do not fit together.

  Example:
    >>> from jaxattn.models import sparse_transformer
    >>> cfg = sparse_transformer.config(
    ...     vocab_size=256, position_axes=(32, 32, 3), stride=96,
    ...     kind="strided", factors="interleaved", width=256, num_heads=2)
    >>> cfg.max_length, cfg.methods[1].factors
    (3072, 'remote')

  Source: Child et al., 2019, https://arxiv.org/abs/1904.10509, sections 4 to 6;
  the numbers of the authors' code where the paper leaves them open.
  """
  interleaved = factors == "interleaved"
  method = method_lib.sparse_transformer(
    stride=stride,
    kind=kind,
    factors="local" if interleaved else factors,
    summary=summary,
    subblocks=subblocks,
  )
  methods: tuple[Any, ...] = (method,)
  if interleaved:
    methods = method_lib.interleave(method, num_layers, order)
  fields: dict[str, Any] = {
    **form(position_axes, init_gain=init_gain),
    "vocab_size": vocab_size,
    "num_layers": num_layers,
    "methods": methods,
    **options,
  }
  return decoder.DecoderConfig(**fields)


def form(
  position_axes: tuple[int, ...], *, init_gain: float = 0.125
) -> dict[str, Any]:
  """The fields of `DecoderConfig` that make the form, for any methods.

  Args:
    position_axes: as of `config`.
    init_gain: as of `config`.

  Returns:
    Fields by name.

  Example:
    >>> form((16, 8))["max_length"]
    128

  Source: as of `config`.
  """
  return {
    "positions": "axes",
    "position_axes": position_axes,
    "max_length": math.prod(position_axes),
    "activation": "gelu_sigmoid",
    "init_gain": init_gain,
    "scale_embeddings": False,
    "zero_unembed": True,
    "tie_embeddings": False,
    "use_bias": True,
    "layer_norm_eps": 1e-5,
  }
