"""Star Transformer models: classification, tagging and pairs of texts."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import masks
from jaxattn.models.layers import star
from jaxattn.nn import linen as layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class StarModelConfig:
  """The shape of the models of this module.

  Attributes:
    num_classes: of the result.
    vocab_size: number of token ids; None where the inputs are vectors, such as
      trained word vectors that are to stay as they are.
    embed_size: E, of an input vector or of the embedding table.
    mlp_width: hidden width of the head.
    dropout: rate inside the head; that of the embeddings is `encoder.dropout`.
    encoder: the shape of the encoder.

  Raises:
    ValueError: if an option is out of range.

  Example:
    >>> from jaxattn.models import star
    >>> star.StarModelConfig(num_classes=5, vocab_size=100).mlp_width
    600

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113; the defaults are
  those of https://github.com/fastnlp/fastNLP.
  """

  num_classes: int
  vocab_size: int | None = None
  embed_size: int = 300
  mlp_width: int = 600
  dropout: float = 0.1
  encoder: star.StarConfig = star.StarConfig()

  def __post_init__(self) -> None:
    for name in ("num_classes", "vocab_size", "embed_size", "mlp_width"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name} must be positive, got {value}.")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}.")


def pool(
  nodes: jax.Array,
  relay: jax.Array | None,
  *,
  mask: masks.Mask = masks.FULL,
) -> jax.Array:
  """One vector for a sequence: `(relay + max_i nodes_i) / 2`.

  Args:
    nodes: `[*B, T, D]`, the satellites.
    relay: `[*B, D]`; None gives the maximum alone.
    mask: `key_valid` and `query_valid`; padding never wins the maximum, which
      is 0 for a sequence without tokens.

  Returns:
    `[*B, D]`.

  Raises:
    NotImplementedError: if `mask` sets another field.
    ValueError: if shapes do not fit.

  Example:
    >>> from jaxattn.models import star
    >>> nodes = jnp.array([[-2.0], [-1.0], [0.0]])
    >>> valid = jnp.array([True, True, False])
    >>> mask = jaxattn.Mask(key_valid=valid)
    >>> star.pool(nodes, jnp.zeros(1), mask=mask).tolist()
    [-0.5]

  Source: fastNLP, https://github.com/fastnlp/fastNLP. Differs: there the
  maximum runs over zeros at padding.
  """
  batch, length = nodes.shape[:-2], nodes.shape[-2]
  real = star.real_tokens(mask, batch, length)
  if relay is not None and relay.shape != (*batch, nodes.shape[-1]):
    raise ValueError(
      f"relay must have shape {(*batch, nodes.shape[-1])}, got {relay.shape}."
    )
  if not length:
    top = jnp.zeros((*batch, nodes.shape[-1]), nodes.dtype)
    return top if relay is None else (relay + top) / 2
  # By index: the gradient of a maximum compares the operand with the result,
  # and is NaN where a compiler computes the operand twice, rounded otherwise.
  where = jnp.argmax(
    jnp.where(real[..., None], nodes, -jnp.inf), axis=-2, keepdims=True
  )
  top = jnp.take_along_axis(nodes, where, axis=-2)[..., 0, :]
  top = jnp.where(jnp.any(real, axis=-1)[..., None], top, 0)
  return top if relay is None else (relay + top) / 2


class StarClassifier(nn.Module):
  """Classifies a text: encoder, `pool`, and a network of two layers.

  Attributes:
    cfg: the shape of the model.

  Example:
    >>> from jaxattn.models import star
    >>> model = star.StarClassifier(star.StarModelConfig(
    ...     num_classes=5, vocab_size=11))
    >>> tokens = jnp.array([[1, 2, 3, 0]])
    >>> mask = jaxattn.Mask(key_valid=tokens != 0)
    >>> model.init_with_output(jax.random.key(0), tokens, mask=mask)[0].shape
    (1, 5)

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113.
  """

  cfg: StarModelConfig

  def setup(self) -> None:
    """Makes the layers."""
    self.encoder = _Encoder(self.cfg)
    self.head = _Head(self.cfg)

  def __call__(
    self,
    inputs: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> jax.Array:
    """Logits of a text.

    Args:
      inputs: `[*B, T]` ints in `[0, vocab_size)`, or `[*B, T, E]` floats where
        the model has no vocabulary.
      mask: `key_valid` and `query_valid`, of which tokens are real.
      train: whether dropout is active.

    Returns:
      `[*B, num_classes]` float32.

    Raises:
      ValueError: if shapes do not fit.
      NotImplementedError: if `mask` sets another field.
    """
    nodes, relay = self.encoder(inputs, mask, train)
    return self.head(_pooled(self.cfg, nodes, relay, mask), train)


class StarTagger(nn.Module):
  """Labels every token: encoder, and a network of two layers on each.

  Attributes:
    cfg: the shape of the model.

  Example:
    >>> from jaxattn.models import star
    >>> model = star.StarTagger(star.StarModelConfig(
    ...     num_classes=5, vocab_size=11))
    >>> tokens = jnp.array([[1, 2, 3, 0]])
    >>> model.init_with_output(jax.random.key(0), tokens)[0].shape
    (1, 4, 5)

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113.
  """

  cfg: StarModelConfig

  def setup(self) -> None:
    """Makes the layers."""
    self.encoder = _Encoder(self.cfg)
    self.head = _Head(self.cfg)

  def __call__(
    self,
    inputs: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> jax.Array:
    """Logits of every token.

    Args:
      inputs: as of `StarClassifier`.
      mask: `key_valid` and `query_valid`, of which tokens are real.
      train: whether dropout is active.

    Returns:
      `[*B, T, num_classes]` float32, zero at padding.

    Raises:
      ValueError: if shapes do not fit.
      NotImplementedError: if `mask` sets another field.
    """
    nodes, _ = self.encoder(inputs, mask, train)
    real = star.real_tokens(mask, nodes.shape[:-2], nodes.shape[-2])
    return jnp.where(real[..., None], self.head(nodes, train), 0)


class StarPairClassifier(nn.Module):
  """Classifies a pair of texts, such as premise and hypothesis.

  Both pass one encoder and `pool`; the head reads `[y, z, |y - z|, y z]`, of
  four times the width.

  Attributes:
    cfg: the shape of the model.

  Example:
    >>> from jaxattn.models import star
    >>> model = star.StarPairClassifier(star.StarModelConfig(
    ...     num_classes=3, vocab_size=11))
    >>> premise, hypothesis = jnp.array([[1, 2, 3, 0]]), jnp.array([[4, 5]])
    >>> mask = jaxattn.Mask(key_valid=premise != 0)
    >>> model.init_with_output(
    ...     jax.random.key(0), premise, hypothesis, premise_mask=mask)[0].shape
    (1, 3)

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113.
  """

  cfg: StarModelConfig

  def setup(self) -> None:
    """Makes the layers."""
    self.encoder = _Encoder(self.cfg)
    self.drop = nn.Dropout(self.cfg.dropout)
    self.head = _Head(self.cfg)

  def __call__(
    self,
    premise: jax.Array,
    hypothesis: jax.Array,
    *,
    premise_mask: masks.Mask = masks.FULL,
    hypothesis_mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> jax.Array:
    """Logits of a pair.

    Args:
      premise: inputs as of `StarClassifier`.
      hypothesis: the same, of the same leading axes; the length is its own.
      premise_mask: `key_valid` and `query_valid` of the premise.
      hypothesis_mask: the same of the hypothesis.
      train: whether dropout is active.

    Returns:
      `[*B, num_classes]` float32.

    Raises:
      ValueError: if shapes do not fit.
      NotImplementedError: if a mask sets another field.
    """
    y, z = (
      _pooled(self.cfg, *self.encoder(inputs, mask, train), mask)
      for inputs, mask in (
        (premise, premise_mask),
        (hypothesis, hypothesis_mask),
      )
    )
    if y.shape != z.shape:
      raise ValueError(
        "premise and hypothesis must share their leading axes, got "
        f"{premise.shape} and {hypothesis.shape}."
      )
    both = jnp.concatenate([y, z, jnp.abs(y - z), y * z], axis=-1)
    return self.head(self.drop(both, deterministic=not train), train)


def _pooled(
  cfg: StarModelConfig,
  nodes: jax.Array,
  relay: jax.Array | None,
  mask: masks.Mask,
) -> jax.Array:
  if cfg.encoder.padding == "fastnlp":
    mask = masks.FULL  # There padding, which is zero, may win.
  return pool(nodes, relay, mask=mask)


class _Encoder(nn.Module):
  """Embeds, maps to the encoder's width, and encodes."""

  cfg: StarModelConfig

  @nn.compact
  def __call__(
    self, inputs: jax.Array, mask: masks.Mask, train: bool
  ) -> tuple[jax.Array, jax.Array | None]:
    cfg = self.cfg
    if cfg.vocab_size is not None:
      if not jnp.issubdtype(inputs.dtype, jnp.integer):
        raise ValueError(
          f"inputs must be token ids [*B, T], got {inputs.dtype}; vocab_size="
          "None takes vectors."
        )
      inputs = nn.Embed(
        cfg.vocab_size,
        cfg.embed_size,
        param_dtype=cfg.encoder.param_dtype,
        embedding_init=nn.with_logical_partitioning(
          nn.initializers.normal(1.0), ("vocab", "embed")
        ),
        name="embed",
      )(inputs)
    elif inputs.shape[-1] != cfg.embed_size or not jnp.issubdtype(
      inputs.dtype, jnp.floating
    ):
      raise ValueError(
        f"inputs must be vectors [*B, T, {cfg.embed_size}], got "
        f"{inputs.dtype}{inputs.shape}; token ids need vocab_size."
      )
    x = layers.Projection(
      features=(cfg.encoder.width,),
      names=(None, "embed"),
      use_bias=True,
      dtype=cfg.encoder.dtype,
      param_dtype=cfg.encoder.param_dtype,
      kernel_init=cfg.encoder.kernel_init,
      name="input",
    )(inputs)
    return star.StarEncoder(cfg.encoder, name="star")(x, mask=mask, train=train)


class _Head(nn.Module):
  """Linear, leaky ReLU, dropout, linear, in float32 at the end."""

  cfg: StarModelConfig

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    cfg = self.cfg
    shared = {
      "use_bias": True,
      "param_dtype": cfg.encoder.param_dtype,
      "kernel_init": cfg.encoder.kernel_init,
    }
    x = layers.Projection(
      features=(cfg.mlp_width,),
      names=("embed", "mlp"),
      dtype=cfg.encoder.dtype,
      name="hidden",
      **shared,
    )(x)
    x = nn.Dropout(cfg.dropout)(nn.leaky_relu(x), deterministic=not train)
    return layers.Projection(
      features=(cfg.num_classes,),
      names=("mlp", None),
      dtype=jnp.float32,
      name="out",
      **shared,
    )(x)
