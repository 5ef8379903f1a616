"""Heads over an encoder: classification, tagging, masked language modelling."""

from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import masks
from jaxattn.models import blocks
from jaxattn.models import encoder
from jaxattn.models.layers import star
from jaxattn.nn import linen as layers

Pooling = Literal["first", "mean"]


def pool(
  x: jax.Array,
  *,
  pooling: Pooling = "first",
  mask: masks.Mask = masks.FULL,
) -> jax.Array:
  """One vector for every row.

  Args:
    x: `[B, T, D]` floats, T at least 1.
    pooling: `first` takes the first real token, `mean` the mean of the real
      ones.
    mask: `key_valid` and `query_valid`: real are the tokens valid in both.

  Returns:
    `[B, D]`, 0 for a row without real tokens.

  Raises:
    ValueError: if `pooling` is another or shapes do not fit.
    NotImplementedError: if `mask` sets another field.

  Example:
    >>> from jaxattn.models import heads
    >>> x = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> mask = jaxattn.Mask(key_valid=jnp.array([[True, True, False]]))
    >>> heads.pool(x, pooling="mean", mask=mask).tolist()
    [[2.0]]

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805 (`first`);
  Reimers and Gurevych, 2019, https://arxiv.org/abs/1908.10084 (`mean`).
  """
  if pooling not in get_args(Pooling):
    raise ValueError(
      f"pooling must be one of {get_args(Pooling)}, got {pooling!r}."
    )
  batch, length = x.shape[:-2], x.shape[-2]
  real = star.real_tokens(mask, batch, length, by="pool")
  if pooling == "first":
    index = jnp.arange(length, dtype=jnp.int32)
    index = jax.lax.broadcast_to_rank(index, real.ndim)
    weight = real & (index == jnp.argmax(real, axis=-1, keepdims=True))
    count = jnp.ones((*batch, 1), jnp.float32)
  else:
    weight = real
    count = jnp.maximum(jnp.sum(real, axis=-1, dtype=jnp.float32), 1)[..., None]
  kept = jnp.where(weight[..., None], x.astype(jnp.float32), 0.0)
  return (jnp.sum(kept, axis=-2) / count).astype(x.dtype)


class ClassificationHead(nn.Module, kw_only=True):
  """Classifies a row: `pool`, a layer with tanh, a linear map.

  Attributes:
    num_classes: of the result.
    pooling: as of `pool`.
    hidden: width of the layer with tanh; None means that of `x`, 0 none.
    dropout: rate before each linear map.
    dtype: of the computation; None means that of inputs and parameters.
    param_dtype: of the parameters.

  Example:
    >>> from jaxattn.models import heads
    >>> head = heads.ClassificationHead(num_classes=3)
    >>> x = jnp.ones((2, 5, 8))
    >>> head.init_with_output(jax.random.key(0), x)[0].shape
    (2, 3)

  Source: the classifier of RoBERTa, https://arxiv.org/abs/1907.11692, and of
  Longformer, https://arxiv.org/abs/2004.05150.
  """

  num_classes: int
  pooling: Pooling = "first"
  hidden: int | None = None
  dropout: float = 0.0
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> jax.Array:
    """Logits `[B, num_classes]` in float32 of `x [B, T, D]`; see `pool`."""
    x = pool(x, pooling=self.pooling, mask=mask)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    hidden = x.shape[-1] if self.hidden is None else self.hidden
    kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    if hidden:
      x = layers.Projection(
        features=(hidden,),
        names=("embed", "mlp"),
        use_bias=True,
        name="hidden_layer",
        **kinds,
      )(drop(x))
      x = jnp.tanh(x)
    x = layers.Projection(
      features=(self.num_classes,),
      names=("mlp" if hidden else "embed", None),
      use_bias=True,
      name="out",
      **kinds,
    )(drop(x))
    return x.astype(jnp.float32)


class RetrievalHead(nn.Module, kw_only=True):
  """Says whether two texts belong together, from one encoder over each.

  Neither text sees the other: encode both in one batch of twice as many rows,
  and split it. What is pooled of each becomes features, layers with ReLU, and a
  linear map.

  Attributes:
    num_classes: of the result.
    features: `products` for `[a, b, a * b, a - b]`, `pair` for `[a, b]`.
    hidden: widths of the layers with ReLU; None means that of the texts, and
      half of it in a second one for `pair`.
    pooling: as of `pool`.
    dropout: rate before each linear map.
    dtype: of the computation; None means that of inputs and parameters.
    param_dtype: of the parameters.

  Raises:
    ValueError: if `features` is unknown or shapes do not fit.

  Example:
    >>> from jaxattn.models import heads
    >>> head = heads.RetrievalHead()
    >>> texts = jnp.ones((2, 5, 8)), jnp.ones((2, 7, 8))
    >>> head.init_with_output(jax.random.key(0), *texts)[0].shape
    (2, 2)

  Source: the document retrieval of Tay et al., 2021 (Long Range Arena),
  https://arxiv.org/abs/2011.04006, section 2.2.3: `products` is the paper's
  form, `pair` that of its published code.
  """

  num_classes: int = 2
  features: Literal["products", "pair"] = "products"
  hidden: tuple[int, ...] | None = None
  pooling: Pooling = "mean"
  dropout: float = 0.0
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    first: jax.Array,
    second: jax.Array,
    *,
    first_mask: masks.Mask = masks.FULL,
    second_mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> jax.Array:
    """Logits `[B, num_classes]` in float32 of `[B, T, D]` and `[B, S, D]`."""
    if self.features not in ("products", "pair"):
      raise ValueError(
        f"features must be products or pair, got {self.features!r}."
      )
    fits = first.ndim == second.ndim == 3
    if not fits or first.shape[::2] != second.shape[::2]:
      raise ValueError(
        "both texts must be [B, length, D] of the same B and D, got "
        f"{first.shape} and {second.shape}."
      )
    a = pool(first, pooling=self.pooling, mask=first_mask)
    b = pool(second, pooling=self.pooling, mask=second_mask)
    width = a.shape[-1]
    found, hidden = [a, b], self.hidden
    if self.features == "products":
      found += [a * b, a - b]
      hidden = (width,) if hidden is None else hidden
    elif hidden is None:
      hidden = (width, width // 2)
    x = jnp.concatenate(found, axis=-1)
    for i, size in enumerate((*hidden, self.num_classes)):
      if i:
        x = nn.relu(x)
      x = layers.Projection(
        features=(size,),
        names=("mlp" if i else "embed", "mlp" if i < len(hidden) else None),
        use_bias=True,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=f"layer_{i}" if i < len(hidden) else "out",
      )(nn.Dropout(self.dropout, deterministic=not train)(x))
    return x.astype(jnp.float32)


class TokenHead(nn.Module, kw_only=True):
  """Maps every token to logits: tags, or starts and ends of an answer.

  Attributes:
    num_outputs: logits of a token; 2 for the span of an answer.
    dropout: rate before the linear map.
    dtype: of the computation; None means that of inputs and parameters.
    param_dtype: of the parameters.

  Example:
    >>> from jaxattn.models import heads
    >>> head = heads.TokenHead(num_outputs=2)
    >>> x = jnp.ones((2, 5, 8))
    >>> head.init_with_output(jax.random.key(0), x)[0].shape
    (2, 5, 2)

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 4.
  """

  num_outputs: int
  dropout: float = 0.0
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Logits `[B, T, num_outputs]` in float32 of `x [B, T, D]`."""
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    out = layers.Projection(
      features=(self.num_outputs,),
      names=("embed", None),
      use_bias=True,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="out",
    )(x)
    return out.astype(jnp.float32)


class MaskedLanguageModel(nn.Module):
  """An encoder that predicts tokens, with the embedding as output table.

  The head is a linear map, the activation, a norm, the table and a bias.

  Attributes:
    cfg: the shape of the encoder.

  Example:
    >>> from jaxattn.models import encoder
    >>> from jaxattn.models import heads
    >>> model = heads.MaskedLanguageModel(encoder.EncoderConfig(
    ...     vocab_size=11, width=16, num_layers=1, num_heads=2))
    >>> tokens, hidden = jnp.array([[1, 2, 3, 4]]), jnp.array([[2]])
    >>> variables = model.init(jax.random.key(0), tokens)
    >>> model.apply(variables, tokens, predict=hidden).shape
    (1, 1, 11)

  Source: Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 3.1;
  Press and Wolf, 2017 (tied table), https://arxiv.org/abs/1608.05859.
  """

  cfg: encoder.EncoderConfig

  def setup(self) -> None:
    """Makes the layers."""
    cfg = self.cfg
    self.encoder = encoder.Encoder(cfg)
    self.transform = layers.Projection(
      features=(cfg.width,),
      names=("embed", None),
      use_bias=cfg.use_bias,
      dtype=cfg.dtype,
      param_dtype=cfg.param_dtype,
    )
    self.norm = blocks.make_norm(cfg)
    self.bias = self.param(
      "bias",
      blocks.boxed(nn.initializers.zeros_init(), "vocab"),
      (cfg.vocab_size,),
      cfg.param_dtype,
    )

  def __call__(
    self,
    tokens: jax.Array,
    *,
    predict: jax.Array | None = None,
    type_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    global_positions: jax.Array | None = None,
    mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> jax.Array:
    """Logits of the tokens that stand, or stood, at some places.

    Args:
      tokens: `[B, T]` ints, some replaced by the mask token.
      predict: `[B, P]` ints in `[0, T)`, the places to predict, which saves the
        logits of the others; None means all.
      type_ids: as of `Encoder`.
      positions: as of `Encoder`.
      global_positions: as of `Encoder`.
      mask: as of `Encoder`.
      train: as of `Encoder`.

    Returns:
      `[B, P, vocab_size]` or `[B, T, vocab_size]` float32.

    Raises:
      ValueError: if shapes do not fit.
    """
    x = self.encoder(
      tokens,
      type_ids=type_ids,
      positions=positions,
      global_positions=global_positions,
      mask=mask,
      train=train,
    )
    if predict is not None:
      fits = predict.ndim == 2 and predict.shape[0] == x.shape[0]
      if not fits or not jnp.issubdtype(predict.dtype, jnp.integer):
        raise ValueError(
          f"predict must be integers [B, P] with B {x.shape[0]}, got "
          f"{predict.dtype}{predict.shape}."
        )
      x = jnp.take_along_axis(x, predict[..., None], axis=1)
    x = self.norm(blocks.ACTIVATIONS[self.cfg.activation](self.transform(x)))
    logits = self.encoder.unembed(x)
    bias = self.bias.astype(logits.dtype)
    return logits + jax.lax.broadcast_to_rank(bias, logits.ndim)
