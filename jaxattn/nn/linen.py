"""The attention layer for Flax Linen: one for every method."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes

from jaxattn._src import base
from jaxattn._src import masks
from jaxattn.nn import mixing

Initializer = Callable[..., jax.Array]


class Attention(nn.Module, kw_only=True):
  """Multi-head attention whose mixing is any `AttentionMethod`.

  `x` gives queries, `context` (default `x`) keys and values; heads are split,
  optionally normalised (RMS over the head, with a learned scale) and turned by
  rotary positions, mixed by `method`, and projected to `out_features`.

  Variables: `params` holds `query`, `key`, `value`, `out` (kernels and biases
  as in `nn.MultiHeadDotProductAttention`), `query_norm`, `key_norm`, and the
  method's parameters as `method`, where there are any. There is no `key` for a
  method that attends with its queries as keys. A method with state
  keeps it in the collection `attention`, which moves under `train=True` and
  must then be mutable. Layers that share them are given both, made by
  `MethodVariables`, and have none of their own. A decoding cache lies in the
  collection `cache`. Kernels carry the logical axis names `embed`, `heads`
  (`kv_heads` where grouped) and `head_dim`. The random stream `attention`, if
  given, reaches the method.

  Attributes:
    method: how to attend, for example `jaxattn.sliding_window(left=255)`.
    num_heads: N, query heads.
    num_kv_heads: K, key and value heads; None means N. K divides N.
    head_dim: H; None means the width of `x` over N.
    out_features: width of the result; None means that of `x`.
    use_bias: whether the four projections have biases.
    dtype: of the computation; None means that of inputs and parameters.
    param_dtype: of the parameters.
    rotary: base of rotary positions, for example 10_000.0; None for none.
    qk_norm: whether to normalise queries and keys, before rotary.
    kernel_init: initializer of the kernels, as matrices `[inputs, outputs]`.
    out_kernel_init: initializer of `out`; None means `kernel_init`.
    bias_init: initializer of the biases.

  Example:
    >>> from jaxattn.nn import linen as attn
    >>> layer = attn.Attention(method=jaxattn.dense(), num_heads=2)
    >>> x = jnp.ones((1, 5, 8))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer.apply(variables, x, mask=jaxattn.CAUSAL).shape
    (1, 5, 8)

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; grouped heads,
  https://arxiv.org/abs/2305.13245; query and key norm,
  https://arxiv.org/abs/2302.05442.
  """

  method: base.AttentionMethod
  num_heads: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  out_features: int | None = None
  use_bias: bool = False
  dtype: Any = None
  param_dtype: Any = jnp.float32
  rotary: float | None = None
  qk_norm: bool = False
  kernel_init: Initializer = nn.initializers.lecun_normal()
  out_kernel_init: Initializer | None = None
  bias_init: Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    mask: masks.Mask = masks.FULL,
    positions: jax.Array | None = None,
    context_positions: jax.Array | None = None,
    train: bool = False,
    decode: bool = False,
    method_variables: tuple[base.Params, base.State] | None = None,
    selection: Any = None,
    return_selection: bool = False,
  ) -> Any:
    """Attends from `x` to `context`, or to itself.

    Args:
      x: `[*B, T, D]` floats.
      context: `[*B, S, C]` floats, or None for self-attention.
      mask: what may attend to what.
      positions: `[*B, T]` ints for rotary; None counts from 0, or from the
        cache's length.
      context_positions: `[*B, S]` ints for rotary; None counts from 0.
      train: whether the method's state moves.
      decode: whether to append `x` to the cache of `init_cache` and attend from
        it; `mask` is then `CAUSAL`, with `key_valid [*B, T]` for right-padded
        rows.
      method_variables: parameters and state of the method, where other layers
        have the same; this state does not move. None for the layer's own.
      selection: what the method chose by the data in an earlier call, to be
        taken in place of a new choice; see `AttentionMethod`.
      return_selection: whether to return the choice too.

    Returns:
      `[*B, T, out_features]`; with `return_selection` a pair of it and of the
      choice, None for methods that make none.

    Raises:
      ValueError: if options, shapes or arguments do not fit together.
    """
    mixing.check_call(
      mask=mask,
      context=context,
      positions=positions,
      context_positions=context_positions,
      rotary=self.rotary,
      train=train,
      decode=decode,
    )
    if context is not None and mixing.shares_query_key(self.method):
      raise ValueError(
        f"{type(self.method).__name__} attends with its queries as keys, to no "
        "context; leave context out."
      )
    shapes = self._shapes(x.shape[-1])
    names = mixing.axis_names(self.num_heads, self.num_kv_heads)
    query, key, value = self._heads(x, context, shapes, names)
    owned = method_variables is None
    params, state = method_variables or self._method_variables(shapes)
    if decode and not self.has_variable("cache", "cache"):
      raise ValueError(
        "decode=True needs the collection 'cache'; make it with init_cache."
      )
    out, new_state, cache, selection = mixing.mix(
      self.method,
      params,
      state,
      self.get_variable("cache", "cache") if decode else None,
      query,
      key,
      value,
      mask=mask,
      positions=positions,
      context_positions=context_positions,
      rotary=self.rotary,
      is_cross=context is not None,
      train=train,
      rng=self.make_rng("attention") if self.has_rng("attention") else None,
      selection=selection,
      keep_selection=return_selection,
    )
    if decode:
      self.put_variable("cache", "cache", cache)
    moves = train and owned and mixing.has_leaves(state)
    if moves and not self.is_initializing():
      self.put_variable("attention", "state", new_state)
    width = x.shape[-1] if self.out_features is None else self.out_features
    out = self._project(
      "out",
      (width,),
      names["out"],
      contract=2,
      kernel_init=self.out_kernel_init or self.kernel_init,
    )(out)
    return (out, selection) if return_selection else out

  def init_cache(self, batch_shape: tuple[int, ...], max_length: int) -> None:
    """Puts an empty decoding cache in the collection `cache`.

    `layer.apply(variables, (2,), 128, method="init_cache", mutable=["cache"])`
    returns it as `{"cache": ...}`, to be passed with the variables.

    Args:
      batch_shape: `*B`.
      max_length: tokens that a row can hold; a method may keep fewer.

    Raises:
      ValueError: if the layer has no parameters yet.
    """
    if not self.has_variable("params", "query"):
      raise ValueError("init_cache needs the layer's variables; call init.")
    kernel = nn.unbox(self.get_variable("params", "query"))["kernel"]
    params = nn.unbox(self.get_variable("params", "method", ()))
    shapes = dataclasses.replace(
      self._shapes(kernel.shape[0]),
      dtype=kernel.dtype if self.dtype is None else self.dtype,
    )
    cache = self.method.init_cache(
      params,
      self.get_variable("attention", "state", ()),
      batch_shape=batch_shape,
      max_length=max_length,
      shapes=shapes,
    )
    self.put_variable("cache", "cache", cache)

  def _heads(
    self,
    x: jax.Array,
    context: jax.Array | None,
    shapes: base.AttentionShapes,
    names: dict[str, tuple[str, ...]],
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries `[*B, T, N, H]`, keys and values `[*B, S, K, H]`."""
    shared = mixing.shares_query_key(self.method)
    source = x if context is None else context

    def heads(name: str, count: int, inputs: jax.Array) -> jax.Array:
      return self._project(name, (count, shapes.head_dim), names[name])(inputs)

    query = heads("query", self.num_heads, x)
    key = query if shared else heads("key", shapes.kv_heads, source)
    value = heads("value", shapes.kv_heads, source)
    if self.qk_norm:
      query = self._norm("query_norm")(query)
      key = query if shared else self._norm("key_norm")(key)
    return query, key, value

  def _shapes(self, width: int) -> base.AttentionShapes:
    mixing.check_shared(self.method, self.num_heads, self.num_kv_heads)
    return base.AttentionShapes(
      num_heads=self.num_heads,
      num_kv_heads=self.num_kv_heads,
      head_dim=mixing.head_size(width, self.num_heads, self.head_dim),
      dtype=self.param_dtype,
    )

  def _project(
    self,
    name: str,
    features: tuple[int, ...],
    names: tuple[str, ...],
    **options: Any,
  ) -> "Projection":
    options = {"kernel_init": self.kernel_init, **options}
    return Projection(
      features=features,
      names=names,
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      bias_init=self.bias_init,
      name=name,
      **options,
    )

  def _norm(self, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name=name,
      scale_init=nn.with_logical_partitioning(
        nn.initializers.ones_init(), ("head_dim",)
      ),
    )

  def _method_variables(
    self, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    return _method_variables(self, self.method, shapes)


class MethodVariables(nn.Module, kw_only=True):
  """Parameters and state of a method, made once for several layers.

  Attributes:
    method: the method, as `jaxattn.linformer(..., sharing="layerwise")`.
    shapes: of the layers that share them.

  Example:
    >>> from jaxattn.nn import linen as attn
    >>> method = jaxattn.linformer(max_length=6, k=2, sharing="layerwise")
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=4)
    >>> shared = attn.MethodVariables(method=method, shapes=shapes)
    >>> (params, state), _ = shared.init_with_output(jax.random.key(0))
    >>> layer = attn.Attention(method=method, num_heads=2)
    >>> x = jnp.ones((1, 5, 8))
    >>> layer.init_with_output(
    ...     jax.random.key(0), x, method_variables=(params, state))[0].shape
    (1, 5, 8)

  Source: Wang et al., 2020, https://arxiv.org/abs/2006.04768, section 4.
  """

  method: base.AttentionMethod
  shapes: base.AttentionShapes

  @nn.compact
  def __call__(self) -> tuple[base.Params, base.State]:
    """Parameters and state, `()` where there are none."""
    return _method_variables(self, self.method, self.shapes)


def _method_variables(
  module: nn.Module, method: base.AttentionMethod, shapes: base.AttentionShapes
) -> tuple[base.Params, base.State]:
  """Parameters and state of the method; no variable for an empty one."""

  def init(rng: jax.Array) -> tuple[base.Params, base.State]:
    return method.init(rng, shapes)

  params, state = jax.eval_shape(init, jax.random.key(0))
  drawn = None
  if module.is_initializing() and mixing.has_leaves((params, state)):
    # One draw, since both may share it.
    drawn = init(module.make_rng("params"))
  if mixing.has_leaves(params):
    params = module.param(
      "method", lambda rng: init(rng)[0] if drawn is None else drawn[0]
    )
  if mixing.has_leaves(state):
    state = module.variable(
      "attention",
      "state",
      lambda: (init(module.make_rng("params")) if drawn is None else drawn)[1],
    ).value
  return params, state


class Projection(nn.Module, kw_only=True):
  """A linear map of the last axes, with logical axis names.

  As `nn.DenseGeneral`, whose initialisation fails for kernels of three axes
  with logical names under a mesh and rules.

  Attributes:
    features: sizes of the new last axes.
    names: logical names of the kernel's axes.
    contract: how many last axes of the input are mapped.
    use_bias: whether to add a bias.
    dtype: of the computation; None means that of inputs and parameters.
    param_dtype: of the parameters.
    kernel_init: initializer of the kernel, as a matrix `[inputs, outputs]`.
    bias_init: initializer of the bias.

  Example:
    >>> from jaxattn.nn import linen as attn
    >>> layer = attn.Projection(features=(2, 4), names=("embed", "heads", "h"))
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((3, 8)))[0].shape
    (3, 2, 4)

  Source: `flax.linen.DenseGeneral`.
  """

  features: tuple[int, ...]
  names: tuple[str | None, ...]
  contract: int = 1
  use_bias: bool = False
  dtype: Any = None
  param_dtype: Any = jnp.float32
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., *inputs]` to `[..., *features]`."""
    inputs = x.shape[x.ndim - self.contract :]

    def matrix(rng: jax.Array, shape: Any, dtype: Any) -> jax.Array:
      flat = (math.prod(inputs), math.prod(self.features))
      return self.kernel_init(rng, flat, dtype).reshape(shape)

    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(matrix, self.names),
      (*inputs, *self.features),
      self.param_dtype,
    )
    bias = None
    if self.use_bias:
      bias = self.param(
        "bias",
        nn.with_logical_partitioning(
          self.bias_init, self.names[self.contract :]
        ),
        self.features,
        self.param_dtype,
      )
    x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    out = jnp.tensordot(x, kernel, axes=self.contract)
    if bias is not None:
      out = out + jax.lax.broadcast_to_rank(bias, out.ndim)
    return out
