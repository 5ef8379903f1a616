"""Cross-attention whose keys and values are computed once for decoding."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import masks
from jaxattn._src import patterns
from jaxattn._src.engines import block_sparse as engine
from jaxattn._src.engines import dense as oracle
from jaxattn.nn import linen as layers
from jaxattn.nn import mixing


class CrossAttention(nn.Module, kw_only=True):
  """Full attention from one sequence to another.

  Parameters have the names and shapes of `jaxattn.nn.linen.Attention`. For
  decoding, `remember` puts keys and values of the context in the collection
  `cache`; calls without a context then read them.

  Attributes:
    num_heads: N, query heads.
    num_kv_heads: K, key and value heads; None means N.
    head_dim: H.
    out_features: width of the result.
    use_bias: whether the four projections have biases.
    qk_norm: whether to normalise queries and keys.
    dtype: of the computation; None means that of inputs and parameters.
    param_dtype: of the parameters.
    kernel_init: initializer of the kernels, as matrices `[inputs, outputs]`.
    out_kernel_init: initializer of `out`; None means `kernel_init`.

  Example:
    >>> from jaxattn.models.layers import cross
    >>> layer = cross.CrossAttention(num_heads=2, head_dim=4, out_features=8)
    >>> x, context = jnp.ones((1, 3, 8)), jnp.ones((1, 5, 6))
    >>> layer.init_with_output(jax.random.key(0), x, context)[0].shape
    (1, 3, 8)

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, section 3.2.3.
  """

  num_heads: int
  num_kv_heads: int | None = None
  head_dim: int
  out_features: int
  use_bias: bool = False
  qk_norm: bool = False
  dtype: Any = None
  param_dtype: Any = jnp.float32
  kernel_init: layers.Initializer = nn.initializers.lecun_normal()
  out_kernel_init: layers.Initializer | None = None

  def setup(self) -> None:
    """Makes the projections."""
    names = mixing.axis_names(self.num_heads, self.num_kv_heads)
    kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def project(name: str, heads: int | None, **options: Any) -> Any:
      options = {
        "features": (heads, self.head_dim),
        "kernel_init": self.kernel_init,
        **options,
      }
      return layers.Projection(
        names=names[name], use_bias=self.use_bias, **kinds, **options
      )

    kv_heads = self.num_kv_heads or self.num_heads
    self.query = project("query", self.num_heads)
    self.key = project("key", kv_heads)
    self.value = project("value", kv_heads)
    self.out = project(
      "out",
      None,
      features=(self.out_features,),
      contract=2,
      kernel_init=self.out_kernel_init or self.kernel_init,
    )
    if self.qk_norm:
      scale = nn.with_logical_partitioning(
        nn.initializers.ones_init(), ("head_dim",)
      )
      self.query_norm = nn.RMSNorm(scale_init=scale, **kinds)
      self.key_norm = nn.RMSNorm(scale_init=scale, **kinds)

  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    mask: masks.Mask = masks.FULL,
  ) -> jax.Array:
    """Attends from `x` to `context`, or to what `remember` was given.

    Args:
      x: `[B, T, D]` floats.
      context: `[B, S, C]` floats, or None for the remembered one.
      mask: what may attend to what; of the remembered context its validity is
        known, and only `query_valid` may be given.

    Returns:
      `[B, T, out_features]`.

    Raises:
      ValueError: if shapes do not fit, or there is no context.
    """
    query = self.query(x)
    if self.qk_norm:
      query = self.query_norm(query)
    if context is not None:
      key, value = self._keys(context)
    elif self.has_variable("cache", "key"):
      mask.only("query_valid", by="a remembered context")
      key = self.get_variable("cache", "key")
      value = self.get_variable("cache", "value")
      valid = self.get_variable("cache", "valid")
      mask = masks.Mask(query_valid=mask.query_valid, key_valid=valid)
    else:
      raise ValueError(
        "context must be given, or remembered before in the collection 'cache'."
      )
    if query.shape[1] == 1:  # One step of decoding: no tiles to gain from.
      return self.out(oracle.dense_attention(query, key, value, mask=mask))
    out = engine.block_sparse(
      query, key, value, pattern=patterns.Full(), mask=mask
    )
    return self.out(out)

  def remember(
    self, context: jax.Array, valid: jax.Array | None = None
  ) -> None:
    """Puts keys and values of a context in the collection `cache`.

    Args:
      context: `[B, S, C]` floats.
      valid: `[B, S]` bool, False at padding; None when there is none.

    Raises:
      ValueError: if `valid` has another shape.
    """
    shape = context.shape[:2]
    valid = jnp.ones(shape, bool) if valid is None else valid
    if valid.shape != shape:
      raise ValueError(f"valid must have shape {shape}, got {valid.shape}.")
    key, value = self._keys(context)
    for name, array in (("key", key), ("value", value), ("valid", valid)):
      self.put_variable("cache", name, array)

  def _keys(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
    key, value = self.key(context), self.value(context)
    return (self.key_norm(key) if self.qk_norm else key), value
