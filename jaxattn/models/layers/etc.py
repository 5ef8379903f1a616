"""ETC's transformer layer in Flax Linen: two streams through each."""

import dataclasses
from collections.abc import Callable
from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import base
from jaxattn._src import etc_labels
from jaxattn._src import etc_streams
from jaxattn.nn import linen as layers

Norm = Literal["post", "pre"]
Activation = Literal["gelu", "gelu_tanh", "relu"]

_ACTIVATIONS = {
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
  "relu": nn.relu,
}
Streams = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EtcConfig:
  """The shape of a stack of `EtcLayer`; the defaults are the base model.

  The defaults of what is shared are those of the authors' code. The paper's
  best base model shares nothing but the feed-forward layers: `share_qkv=False`.

  Attributes:
    width: D, of both streams.
    num_layers: number of layers.
    num_heads: N.
    head_dim: H; None means `width / num_heads`.
    mlp_width: of the feed-forward layers; None means `4 * width`.
    radius: how far long tokens see to each side.
    max_distance: k of the relative labels; None for no relative tables.
    num_labels: R, rows of the relative tables, at least `2 k + 4`; None means
      just as many. More leave rows free for labels of a task's own.
    share_qkv: whether the four pieces share one projection each for queries,
      keys and values. If not, each stream has its own queries, and each piece
      its own keys and values.
    share_kv: whether the keys and values that a stream sees share one
      projection, be they of its own tokens or of the other's. Has no place
      beside `share_qkv`.
    share_attention_output: whether the streams share the projection behind
      attention.
    share_feed_forward: whether they share the feed-forward layer and its norm.
      Norms around attention are separate always.
    norm: `post` normalises after every residual sum; `pre` normalises what
      enters each branch, and the result of the last layer.
    activation: of the feed-forward layers; `gelu` is the exact one.
    dropout: rate on what each branch adds.
    layer_norm_eps: of the norms.
    kernel_stddev: of the kernels' truncated normal.
    relative_stddev: of that of the relative vectors.
    remat: whether the backward pass computes each layer again.
    implementation: as of `jaxattn.block_sparse`.
    dtype: of the computation; softmax and norms are float32 inside.
    param_dtype: of the parameters.

  Raises:
    ValueError: if options do not fit together.

  Example:
    >>> from jaxattn.models.layers import etc
    >>> etc.EtcConfig(width=64, num_heads=4).head_size
    16

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, and its code,
  https://github.com/google-research/google-research/tree/master/etcmodel.
  """

  width: int = 768
  num_layers: int = 12
  num_heads: int = 12
  head_dim: int | None = None
  mlp_width: int | None = None
  radius: int = 84
  max_distance: int | None = 12
  num_labels: int | None = None
  share_qkv: bool = True
  share_kv: bool = False
  share_attention_output: bool = False
  share_feed_forward: bool = True
  norm: Norm = "post"
  activation: Activation = "gelu"
  dropout: float = 0.1
  layer_norm_eps: float = 1e-12
  kernel_stddev: float = 0.02
  relative_stddev: float = 0.5
  remat: bool = False
  implementation: base.Implementation = None
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    for name in ("width", "num_layers", "num_heads"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
    if self.head_dim is None and self.width % self.num_heads:
      raise ValueError(
        f"num_heads must divide width {self.width}, got {self.num_heads}; or "
        "give head_dim."
      )
    if self.radius < 0:
      raise ValueError(f"radius must not be negative, got {self.radius}.")
    if self.share_qkv and self.share_kv:
      raise ValueError(
        "share_kv has no effect beside share_qkv, which shares more; set one."
      )
    for name, allowed in (
      ("norm", get_args(Norm)),
      ("activation", get_args(Activation)),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name} must be one of {allowed}, got {getattr(self, name)!r}."
        )
    if not 0.0 <= self.dropout < 1.0:
      raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
    self._check_labels()

  def _check_labels(self) -> None:
    if self.max_distance is None:
      if self.num_labels is not None:
        raise ValueError(
          "num_labels has no effect without relative tables; give "
          "max_distance or leave it out."
        )
      return
    etc_labels.EtcDistance(self.max_distance)  # Checks it.
    if self.label_rows < self.least_labels:
      raise ValueError(
        f"num_labels must be at least 2 max_distance + 4 = "
        f"{self.least_labels}, got {self.num_labels}."
      )

  @property
  def head_size(self) -> int:
    """`head_dim`, with its default filled in."""
    return self.head_dim or self.width // self.num_heads

  @property
  def least_labels(self) -> int:
    """How many labels there are; 0 without relative tables."""
    if self.max_distance is None:
      return 0
    return 2 * self.max_distance + 1 + etc_labels.NUM_STRUCTURE_LABELS

  @property
  def label_rows(self) -> int:
    """`num_labels`, with its default filled in."""
    return self.least_labels if self.num_labels is None else self.num_labels

  def kernel_init(self) -> layers.Initializer:
    """The initializer of kernels and embeddings."""
    return nn.initializers.truncated_normal(self.kernel_stddev)


class EtcSelfAttention(nn.Module):
  """The four attentions of a layer, with their projections.

  Parameters: with `share_qkv` the projections `query`, `key`, `value`;
  otherwise `long_query`, `global_query` and keys and values of every piece,
  `long_to_long_key` and so on (those of the stream named first see those of the
  second), or, with `share_kv`, of every looking stream, `long_key`,
  `global_key`. Then `out`, or `long_out` and `global_out`; and the tables
  `long_vectors`, `long_bias`, `global_vectors`, `global_bias`. Kernels carry
  the logical axis names `embed`, `heads` and `head_dim`.

  Attributes:
    cfg: the shape.

  Example:
    >>> from jaxattn.models.layers import etc
    >>> cfg = etc.EtcConfig(width=8, num_heads=2, radius=2, max_distance=3)
    >>> x, g = jnp.ones((1, 9, 8)), jnp.ones((1, 2, 8))
    >>> outs, _ = etc.EtcSelfAttention(cfg).init_with_output(
    ...     jax.random.key(0), x, g)
    >>> outs[1].shape
    (1, 2, 8)

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.2.
  """

  cfg: EtcConfig

  @nn.compact
  def __call__(
    self,
    long: jax.Array,
    global_: jax.Array,
    structure: etc_labels.EtcStructure | None = None,
  ) -> Streams:
    """Attends: `[*B, T, D]` and `[*B, G, D]` to the same shapes.

    Args:
      long: the long stream.
      global_: the global stream.
      structure: masks and members; see `jaxattn.EtcStructure`.

    Returns:
      What both streams receive.

    Raises:
      ValueError: if shapes do not fit or a field would have no effect.
    """
    cfg = self.cfg
    streams = {"long": long, "global": global_}
    outs = etc_streams.etc_attention(
      *self._heads(streams),
      radius=cfg.radius,
      structure=structure,
      max_distance=cfg.max_distance,
      long_table=self._table("long"),
      global_table=self._table("global"),
      implementation=cfg.implementation,
    )
    shared = cfg.share_attention_output
    names = ("out", "out") if shared else ("long_out", "global_out")
    made: dict[str, layers.Projection] = {}
    found = []
    for name, x in zip(names, outs, strict=True):
      if name not in made:
        made[name] = layers.Projection(
          features=(cfg.width,),
          names=("heads", "head_dim", "embed"),
          contract=2,
          name=name,
          **_linear_options(cfg),
        )
      found.append(made[name](x))
    return found[0], found[1]

  def _heads(
    self, streams: dict[str, jax.Array]
  ) -> tuple[etc_streams.EtcHeads, etc_streams.EtcHeads]:
    """Projections of both streams."""
    cfg = self.cfg
    made: dict[str, layers.Projection] = {}

    def project(name: str, x: jax.Array) -> jax.Array:
      if name not in made:
        made[name] = layers.Projection(
          features=(cfg.num_heads, cfg.head_size),
          names=("embed", "heads", "head_dim"),
          name=name,
          **_linear_options(cfg),
        )
      return made[name](x)

    if cfg.share_qkv:
      long, global_ = (
        etc_streams.EtcHeads(
          *(project(name, x) for name in ("query", "key", "value"))
        )
        for x in streams.values()
      )
      return long, global_

    def seen(by: str, of: str, kind: str) -> jax.Array:
      name = f"{by}_{kind}" if cfg.share_kv else f"{by}_to_{of}_{kind}"
      return project(name, streams[of])

    def heads(own: str, other: str) -> etc_streams.EtcHeads:
      return etc_streams.EtcHeads(
        project(f"{own}_query", streams[own]),
        seen(own, own, "key"),
        seen(own, own, "value"),
        seen(other, own, "key"),
        seen(other, own, "value"),
      )

    return heads("long", "global"), heads("global", "long")

  def _table(self, name: str) -> etc_streams.EtcTable | None:
    cfg = self.cfg
    if cfg.max_distance is None:
      return None

    def vectors(rng: jax.Array, dtype: Any) -> jax.Array:
      table = etc_streams.init_table(
        rng, cfg.label_rows, cfg.num_heads, cfg.head_size, cfg.relative_stddev
      )
      return table.vectors.astype(dtype)

    names = (None, "heads", "head_dim")
    # Unboxed when read, which its type does not say.
    made: Any = [
      self.param(
        f"{name}_vectors",
        nn.with_logical_partitioning(vectors, names),
        cfg.param_dtype,
      ),
      self.param(
        f"{name}_bias",
        nn.with_logical_partitioning(nn.initializers.zeros_init(), names[:2]),
        (cfg.label_rows, cfg.num_heads),
        cfg.param_dtype,
      ),
    ]
    return etc_streams.EtcTable(*made)


class EtcLayer(nn.Module):
  """Attention of both streams, then a feed-forward layer for each.

  Parameters: `attention`, `long_attention_norm`, `global_attention_norm`, and
  `mlp_in`, `mlp_out`, `mlp_norm`, or these with `long_` and `global_` before
  the name where they are not shared. Dropout draws from the stream `dropout`.

  Attributes:
    cfg: the shape.

  Example:
    >>> from jaxattn.models.layers import etc
    >>> cfg = etc.EtcConfig(width=8, num_heads=2, radius=2, max_distance=3)
    >>> x, g = jnp.ones((1, 9, 8)), jnp.ones((1, 2, 8))
    >>> outs, _ = etc.EtcLayer(cfg).init_with_output(
    ...     jax.random.key(0), x, g, None, False)
    >>> outs[0].shape
    (1, 9, 8)

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483.
  """

  cfg: EtcConfig

  @nn.compact
  def __call__(
    self,
    long: jax.Array,
    global_: jax.Array,
    structure: etc_labels.EtcStructure | None,
    train: bool,
  ) -> Streams:
    """Maps `[*B, T, D]` and `[*B, G, D]` to the same shapes.

    Args:
      long: the long stream.
      global_: the global stream.
      structure: masks and members, or None.
      train: whether dropout is active.

    Returns:
      Both streams.

    Raises:
      ValueError: as of `EtcSelfAttention`.
    """
    cfg = self.cfg
    drop = nn.Dropout(cfg.dropout, deterministic=not train)
    norms = [norm(cfg, f"{s}_attention_norm") for s in ("long", "global")]
    attention = EtcSelfAttention(cfg, name="attention")
    streams = [long, global_]
    if cfg.norm == "pre":
      normed = [n(x) for n, x in zip(norms, streams, strict=True)]
      added = attention(normed[0], normed[1], structure)
      streams = [x + drop(a) for x, a in zip(streams, added, strict=True)]
    else:
      added = attention(long, global_, structure)
      streams = [
        n(x + drop(a)) for n, x, a in zip(norms, streams, added, strict=True)
      ]
    feed = [self._feed_forward("" if cfg.share_feed_forward else "long_")]
    feed.append(
      feed[0] if cfg.share_feed_forward else self._feed_forward("global_")
    )
    outs = []
    for x, (mlp, mlp_norm) in zip(streams, feed, strict=True):
      if cfg.norm == "pre":
        outs.append(x + drop(mlp(mlp_norm(x))))
      else:
        outs.append(mlp_norm(x + drop(mlp(x))))
    return outs[0], outs[1]

  def _feed_forward(self, prefix: str) -> tuple[Any, nn.LayerNorm]:
    """A feed-forward layer and its norm."""
    cfg = self.cfg
    mlp_in = layers.Projection(
      features=(cfg.mlp_width or 4 * cfg.width,),
      names=("embed", "mlp"),
      name=f"{prefix}mlp_in",
      **_linear_options(cfg),
    )
    mlp_out = layers.Projection(
      features=(cfg.width,),
      names=("mlp", "embed"),
      name=f"{prefix}mlp_out",
      **_linear_options(cfg),
    )
    act = activation(cfg)
    return lambda x: mlp_out(act(mlp_in(x))), norm(cfg, f"{prefix}mlp_norm")


def activation(cfg: EtcConfig) -> Callable[[jax.Array], jax.Array]:
  """The activation that `cfg` names."""
  return _ACTIVATIONS[cfg.activation]


def norm(cfg: EtcConfig, name: str | None) -> nn.LayerNorm:
  """A layer norm with the options of `cfg`."""
  return nn.LayerNorm(
    epsilon=cfg.layer_norm_eps,
    # Its fast form subtracts squares, which an epsilon of 1e-12 does not save.
    use_fast_variance=False,
    dtype=cfg.dtype,
    param_dtype=cfg.param_dtype,
    name=name,
    scale_init=nn.with_logical_partitioning(
      nn.initializers.ones_init(), ("embed",)
    ),
    bias_init=nn.with_logical_partitioning(
      nn.initializers.zeros_init(), ("embed",)
    ),
  )


def _linear_options(cfg: EtcConfig) -> dict[str, Any]:
  return {
    "use_bias": True,
    "dtype": cfg.dtype,
    "param_dtype": cfg.param_dtype,
    "kernel_init": cfg.kernel_init(),
  }
