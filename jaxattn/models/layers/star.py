"""The Star Transformer's encoder in Flax Linen."""

import dataclasses
from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import masks
from jaxattn._src import star
from jaxattn.nn import linen as layers

Norm = Literal["post", "pre"]
Activation = Literal["relu", "leaky_relu"]
Positions = Literal["learned", "none"]
Padding = Literal["masked", "fastnlp"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StarConfig:
  """The shape of a `StarEncoder`; the defaults are the paper's form.

  `fastnlp` gives the form of the authors' code.

  Attributes:
    width: D, of satellites and relay.
    num_layers: updates of both; each has its own parameters.
    num_heads: N.
    head_dim: H; `N * H` need not be the width.
    max_length: rows of the table of learned positions.
    positions: `learned` adds a trained vector per position to the embeddings;
      `none` adds nothing.
    dropout: rate on the embeddings, positions included.
    norm: `post` normalises what each attention adds, after the activation, for
      satellites and relay; `pre` normalises the satellites before the ring
      attention and nothing else, neither the embeddings' and the relay's keys
      nor the relay.
    activation: of both updates; `leaky_relu` has slope 0.01.
    ring: `cyclic`, `open`, `ghost` or `none`, as of
      `jaxattn.star_ring_attention`.
    radical: whether there is a relay; without it tokens meet over the ring
      alone.
    padding: `masked` makes the result independent of padding; `fastnlp` does
      what the authors' code does: the relay starts from the mean over padding
      as well, and the ring sees padding, zeroed after every layer.
    use_bias: of the projections; norms have biases always.
    layer_norm_eps: of the norms.
    kernel_init: initializer of the kernels, as matrices.
    dtype: of the computation; softmax and norms are float32 inside.
    param_dtype: of the parameters.

  Raises:
    ValueError: if an option is out of range.

  Example:
    >>> from jaxattn.models.layers import star
    >>> star.StarConfig(width=64, num_heads=4, head_dim=16).ring
    'cyclic'

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113.
  """

  width: int = 300
  num_layers: int = 4
  num_heads: int = 8
  head_dim: int = 32
  max_length: int = 512
  positions: Positions = "learned"
  dropout: float = 0.1
  norm: Norm = "post"
  activation: Activation = "relu"
  ring: star.Ring = "cyclic"
  radical: bool = True
  padding: Padding = "masked"
  use_bias: bool = True
  layer_norm_eps: float = 1e-6
  kernel_init: layers.Initializer = nn.initializers.lecun_normal()
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    for name in (
      "width",
      "num_layers",
      "num_heads",
      "head_dim",
      "max_length",
    ):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
    for name, allowed in (
      ("positions", get_args(Positions)),
      ("norm", get_args(Norm)),
      ("activation", get_args(Activation)),
      ("ring", get_args(star.Ring)),
      ("padding", get_args(Padding)),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name} must be one of {allowed}, got {getattr(self, name)!r}."
        )
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}.")


def fastnlp(**options: Any) -> StarConfig:
  """The form of the authors' code: five deviations from the paper at once.

  Norm before the ring and nowhere else, leaky ReLU, ghost neighbours at the
  ends, and padding that is seen.

  Args:
    **options: fields of `StarConfig`, which win.

  Returns:
    The configuration.

  Raises:
    ValueError: if an option is out of range.

  Example:
    >>> from jaxattn.models.layers import star
    >>> star.fastnlp(num_layers=2).norm
    'pre'

  Source: fastNLP, https://github.com/fastnlp/fastNLP.
  """
  authors: dict[str, Any] = {
    "norm": "pre",
    "activation": "leaky_relu",
    "ring": "ghost",
    "padding": "fastnlp",
  }
  return StarConfig(**authors | options)


def real_tokens(
  mask: masks.Mask,
  batch: tuple[int, ...],
  length: int,
  by: str = "a Star Transformer",
) -> jax.Array:
  """Which tokens are no padding, `[*B, T]` bool.

  Args:
    mask: sets `key_valid` and `query_valid` at most; a token that is invalid in
      either is padding.
    batch: `*B`.
    length: T.
    by: who honours no other field, for the error.

  Returns:
    The array.

  Raises:
    NotImplementedError: if another field is set.
    ValueError: if an array has another shape.

  Example:
    >>> from jaxattn.models.layers import star
    >>> mask = jaxattn.Mask(key_valid=jnp.array([True, False]))
    >>> star.real_tokens(mask, (), 2).tolist()
    [True, False]

  Source: none.
  """
  mask.only("key_valid", "query_valid", by=by)
  mask.check(batch, length, length)
  real = jnp.ones((*batch, length), bool)
  for valid in (mask.key_valid, mask.query_valid):
    if valid is not None:
      real = real & valid
  return real


def masked_mean(x: jax.Array, real: jax.Array) -> jax.Array:
  """Means over the real tokens, zero where there are none.

  Args:
    x: `[*B, T, D]` floats.
    real: `[*B, T]` bool.

  Returns:
    `[*B, D]` in the dtype of `x`, summed in float32.

  Raises:
    Nothing.

  Example:
    >>> from jaxattn.models.layers import star
    >>> x = jnp.array([[1.0], [3.0], [9.0]])
    >>> star.masked_mean(x, jnp.array([True, True, False])).tolist()
    [2.0]

  Source: none.
  """
  total = jnp.sum(jnp.where(real[..., None], x, 0), axis=-2, dtype=jnp.float32)
  count = jnp.sum(real, axis=-1, dtype=jnp.float32)[..., None]
  return (total / jnp.maximum(count, 1.0)).astype(x.dtype)


class StarLayer(nn.Module):
  """One update of the satellites, then one of the relay.

  `h = f(ring(h; e, s))`, then `s = f(attention(s; [s, h]))` with the new `h`,
  where `f` is the activation and, in the paper's form, a norm. There is neither
  a residual nor a feed-forward sublayer: the embeddings among the keys take
  their place. Parameters: `ring` and `relay`, each with `query`, `key`,
  `value`, `out`, and `ring_norm`, `relay_norm`.

  Attributes:
    cfg: the shape of the encoder.

  Example:
    >>> from jaxattn.models.layers import star
    >>> layer = star.StarLayer(star.StarConfig(width=8))
    >>> e = jnp.ones((2, 5, 8))
    >>> args = (e, jnp.ones((2, 8)), e)
    >>> (nodes, relay), _ = layer.init_with_output(jax.random.key(0), *args)
    >>> nodes.shape, relay.shape
    ((2, 5, 8), (2, 8))

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113.
  """

  cfg: StarConfig

  def setup(self) -> None:
    """Makes the layers."""
    cfg = self.cfg
    self.ring = _Projections(cfg)
    self.ring_norm = _norm(cfg)
    if cfg.radical:
      self.relay = _Projections(cfg)
      if cfg.norm == "post":
        self.relay_norm = _norm(cfg)

  def __call__(
    self,
    nodes: jax.Array,
    relay: jax.Array | None,
    embeddings: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Updates both.

    Args:
      nodes: `[*B, T, D]`, the satellites; the embeddings in the first layer.
      relay: `[*B, D]`, or None where the configuration has no relay.
      embeddings: `[*B, T, D]`.
      mask: `key_valid` and `query_valid`, of which tokens are real.

    Returns:
      The satellites, zero at padding, and the relay.

    Raises:
      ValueError: if shapes do not fit or the relay is missing or superfluous.
      NotImplementedError: if `mask` sets another field.
    """
    cfg = self.cfg
    if cfg.radical != (relay is not None):
      raise ValueError(
        f"radical={cfg.radical} needs relay to be "
        f"{'an array' if cfg.radical else 'None'}, got {type(relay).__name__}."
      )
    real = real_tokens(mask, nodes.shape[:-2], nodes.shape[-2])
    act = nn.relu if cfg.activation == "relu" else nn.leaky_relu
    relay_key = relay_value = None
    if relay is not None:
      relay = relay[..., None, :]
      relay_key, relay_value = self.ring.key(relay), self.ring.value(relay)
    inner = self.ring_norm(nodes) if cfg.norm == "pre" else nodes
    mixed = star.star_ring_attention(
      self.ring.query(inner),
      self.ring.key(inner),
      self.ring.value(inner),
      embedding_key=self.ring.key(embeddings),
      embedding_value=self.ring.value(embeddings),
      relay_key=relay_key,
      relay_value=relay_value,
      mask=mask if cfg.padding == "masked" else masks.FULL,
      ring=cfg.ring,
    )
    nodes = act(self.ring.out(mixed))
    if cfg.norm == "post":
      nodes = self.ring_norm(nodes)
    nodes = jnp.where(real[..., None], nodes, 0)
    if relay is not None:
      relay = self._relay(nodes, relay, mask, act)[..., 0, :]
    return nodes, relay

  def _relay(
    self, nodes: jax.Array, relay: jax.Array, mask: masks.Mask, act: Any
  ) -> jax.Array:
    """The relay, `[*B, 1, D]`, from the new satellites."""
    mixed = star.star_relay_attention(
      self.relay.query(relay),
      self.relay.key(nodes),
      self.relay.value(nodes),
      relay_key=self.relay.key(relay),
      relay_value=self.relay.value(relay),
      mask=mask,
    )
    relay = act(self.relay.out(mixed))
    return self.relay_norm(relay) if self.cfg.norm == "post" else relay


class StarEncoder(nn.Module):
  """Star Transformer: satellites and a relay, updated `num_layers` times.

  Embeddings get learned positions and dropout; satellites start as embeddings
  `e` and the relay as their mean. Every layer sees `e` again. Any two tokens
  are two steps apart, at O(T) time and memory a layer. Dropout draws from the
  stream `dropout`.

  Attributes:
    cfg: the shape of the encoder.

  Example:
    >>> from jaxattn.models.layers import star
    >>> model = star.StarEncoder(star.StarConfig(width=8, num_layers=2))
    >>> x = jnp.ones((2, 5, 8))
    >>> valid = jnp.arange(5)[None] < jnp.array([[5], [3]])
    >>> (nodes, relay), _ = model.init_with_output(
    ...     jax.random.key(0), x, mask=jaxattn.Mask(key_valid=valid))
    >>> nodes.shape, relay.shape
    ((2, 5, 8), (2, 8))

  Source: Guo et al., 2019, https://arxiv.org/abs/1902.09113.
  """

  cfg: StarConfig

  def setup(self) -> None:
    """Makes the layers."""
    cfg = self.cfg
    if cfg.positions == "learned":
      self.position_embed = self.param(
        "position_embed",
        nn.with_logical_partitioning(
          nn.initializers.normal(1.0), (None, "embed")
        ),
        (cfg.max_length, cfg.width),
        cfg.param_dtype,
      )
    self.drop = nn.Dropout(cfg.dropout)
    self.layers = [StarLayer(cfg) for _ in range(cfg.num_layers)]

  def __call__(
    self,
    x: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Encodes embeddings.

    Args:
      x: `[*B, T, D]` floats.
      mask: `key_valid` and `query_valid`, of which tokens are real.
      train: whether dropout is active.

    Returns:
      The satellites `[*B, T, D]`, zero at padding, and the relay `[*B, D]`, or
      None where the configuration has no relay.

    Raises:
      ValueError: if shapes do not fit, or T exceeds the learned positions.
      NotImplementedError: if `mask` sets another field: a relay mixes the whole
        sequence, so that a causal mask cannot be honoured.
    """
    cfg = self.cfg
    if x.ndim < 2 or x.shape[-1] != cfg.width:
      raise ValueError(
        f"x must have shape [*B, T, {cfg.width}], of cfg.width; got {x.shape}."
      )
    real = real_tokens(mask, x.shape[:-2], x.shape[-2])
    x = x.astype(cfg.dtype)
    if cfg.positions == "learned":
      if x.shape[-2] > cfg.max_length:
        raise ValueError(
          f"x of length {x.shape[-2]} exceeds max_length {cfg.max_length} of "
          "the learned positions; raise it, or take positions='none'."
        )
      table = jnp.asarray(self.position_embed, cfg.dtype)[: x.shape[-2]]
      x = x + jax.lax.broadcast_to_rank(table, x.ndim)
    x = self.drop(x, deterministic=not train)
    nodes, relay = x, None
    if cfg.radical:
      start = real if cfg.padding == "masked" else jnp.ones_like(real)
      relay = masked_mean(x, start)
    for layer in self.layers:
      nodes, relay = layer(nodes, relay, x, mask=mask)
    return nodes, relay


class _Projections(nn.Module):
  """The four linear maps of one attention."""

  cfg: StarConfig

  def setup(self) -> None:
    cfg = self.cfg
    shared = {
      "use_bias": cfg.use_bias,
      "dtype": cfg.dtype,
      "param_dtype": cfg.param_dtype,
      "kernel_init": cfg.kernel_init,
    }
    heads = {
      "features": (cfg.num_heads, cfg.head_dim),
      "names": ("embed", "heads", "head_dim"),
    }
    self.query = layers.Projection(**heads, **shared)
    self.key = layers.Projection(**heads, **shared)
    self.value = layers.Projection(**heads, **shared)
    self.out = layers.Projection(
      features=(cfg.width,),
      names=("heads", "head_dim", "embed"),
      contract=2,
      **shared,
    )


def _norm(cfg: StarConfig) -> nn.LayerNorm:
  return nn.LayerNorm(
    epsilon=cfg.layer_norm_eps,
    dtype=cfg.dtype,
    param_dtype=cfg.param_dtype,
    scale_init=nn.with_logical_partitioning(
      nn.initializers.ones_init(), ("embed",)
    ),
    bias_init=nn.with_logical_partitioning(
      nn.initializers.zeros_init(), ("embed",)
    ),
  )
