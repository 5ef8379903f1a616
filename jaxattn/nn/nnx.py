"""The attention layer for Flax NNX: one for every method."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxattn._src import base
from jaxattn._src import masks
from jaxattn.nn import mixing

Initializer = Callable[..., jax.Array]

_LECUN = nnx.initializers.lecun_normal()
_ZEROS = nnx.initializers.zeros_init()


class AttentionState(nnx.Variable):
  """State of an attention method: moves in training, never differentiated."""


class Attention(nnx.Module):
  """Multi-head attention whose mixing is any `AttentionMethod`.

  The same layer as `jaxattn.nn.linen.Attention`, with the same names of
  parameters: `query`, `key`, `value`, `out`, `query_norm`, `key_norm` (no keys
  for a method that attends with its queries as keys), and
  `method_params`, an `nnx.Param` that holds the pytree of the method, if any.
  The method's state is the `AttentionState` `method_state`, and the decoding
  cache the `nnx.Cache` `cache`. Works in graph mode and in tree mode; under
  `jax.value_and_grad`, merge with `nnx.merge(..., copy=True)` inside the
  differentiated function.

  Args:
    in_features: D, width of `x`.
    method: how to attend, for example `jaxattn.sliding_window(left=255)`.
    num_heads: N, query heads.
    num_kv_heads: K, key and value heads; None means N. K divides N.
    head_dim: H; None means D over N.
    out_features: width of the result; None means D.
    context_features: C, width of `context`; None means D.
    use_bias: whether the four projections have biases.
    dtype: of the computation; None means that of inputs and parameters.
    param_dtype: of the parameters.
    rotary: base of rotary positions, for example 10_000.0; None for none.
    qk_norm: whether to normalise queries and keys, before rotary.
    share_method_with: a layer of the same method, whose `method_params` and
      `method_state` are this one's too; in graph mode, where a module may hold
      a variable twice. None for variables of its own.
    kernel_init: initializer of the kernels, as matrices `[inputs, outputs]`.
    out_kernel_init: initializer of `out`; None means `kernel_init`.
    bias_init: initializer of the biases.
    rngs: where the parameters are drawn from.

  Example:
    >>> from flax import nnx
    >>> from jaxattn.nn import nnx as attn
    >>> layer = attn.Attention(
    ...     8, method=jaxattn.dense(), num_heads=2, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 5, 8)), mask=jaxattn.CAUSAL).shape
    (1, 5, 8)

  Source: as of `jaxattn.nn.linen.Attention`.
  """

  def __init__(
    self,
    in_features: int,
    *,
    method: base.AttentionMethod,
    num_heads: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    out_features: int | None = None,
    context_features: int | None = None,
    use_bias: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rotary: float | None = None,
    qk_norm: bool = False,
    share_method_with: "Attention | None" = None,
    kernel_init: Initializer = _LECUN,
    out_kernel_init: Initializer | None = None,
    bias_init: Initializer = _ZEROS,
    rngs: nnx.Rngs,
  ):
    shapes = base.AttentionShapes(
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=mixing.head_size(in_features, num_heads, head_dim),
      dtype=param_dtype,
    )
    mixing.check_shared(method, num_heads, num_kv_heads)
    shared = mixing.shares_query_key(method)
    names = mixing.axis_names(num_heads, num_kv_heads)
    project = functools.partial(
      _project,
      use_bias=use_bias,
      dtype=dtype,
      param_dtype=param_dtype,
      bias_init=bias_init,
      rngs=rngs,
    )
    source = in_features if context_features is None else context_features
    heads = (num_heads, shapes.head_dim)
    kv_heads = (shapes.kv_heads, shapes.head_dim)
    self.query = project(names["query"], (in_features,), heads, kernel_init)
    self.key = (
      None
      if shared
      else project(names["key"], (source,), kv_heads, kernel_init)
    )
    self.value = project(names["value"], (source,), kv_heads, kernel_init)
    self.out = project(
      names["out"],
      heads,
      (in_features if out_features is None else out_features,),
      out_kernel_init or kernel_init,
    )
    norm = functools.partial(
      nnx.RMSNorm,
      shapes.head_dim,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
      scale_metadata=_named(("head_dim",)),
    )
    self.query_norm = norm() if qk_norm else None
    self.key_norm = norm() if qk_norm and not shared else None
    self.method_params, self.method_state = _method_variables(
      method, shapes, share_method_with, rngs
    )
    self.cache: nnx.Cache | None = nnx.data(None)
    self.method, self.shapes, self.rotary = method, shapes, rotary
    self.dtype = dtype

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
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
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
      rngs: its stream `attention`, if given, reaches the method.

    Returns:
      `[*B, T, out_features]`.

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
    cache = self.cache if decode else None
    if decode and cache is None:
      raise ValueError("decode=True needs a cache; make it with init_cache.")
    source = x if context is None else context
    if context is not None and self.key is None:
      raise ValueError(
        f"{type(self.method).__name__} attends with its queries as keys, to no "
        "context; leave context out."
      )
    query, value = self.query(x), self.value(source)
    if self.query_norm is not None:
      query = self.query_norm(query)
    key = query
    if self.key is not None:
      key = self.key(source)
      key = key if self.key_norm is None else self.key_norm(key)
    params, state = self._method_variables()
    out, state, grown, _ = mixing.mix(
      self.method,
      params,
      state,
      None if cache is None else cache.get_value(),
      query,
      key,
      value,
      mask=mask,
      positions=positions,
      context_positions=context_positions,
      rotary=self.rotary,
      is_cross=context is not None,
      train=train,
      rng=None if rngs is None else rngs.attention(),
    )
    if cache is not None:
      cache.set_value(grown)
    if train and self.method_state is not None:
      self.method_state.set_value(state)
    return self.out(out)

  def init_cache(self, batch_shape: tuple[int, ...], max_length: int) -> None:
    """Sets `cache` to an empty decoding cache.

    Args:
      batch_shape: `*B`.
      max_length: tokens that a row can hold; a method may keep fewer.
    """
    params, state = self._method_variables()
    shapes = self.shapes
    if self.dtype is not None:
      shapes = dataclasses.replace(shapes, dtype=self.dtype)
    self.cache = nnx.Cache(
      self.method.init_cache(
        params,
        state,
        batch_shape=batch_shape,
        max_length=max_length,
        shapes=shapes,
      )
    )

  def _method_variables(self) -> tuple[base.Params, base.State]:
    params, state = self.method_params, self.method_state
    return (
      () if params is None else params.get_value(),
      () if state is None else state.get_value(),
    )


def _method_variables(
  method: base.AttentionMethod,
  shapes: base.AttentionShapes,
  other: Attention | None,
  rngs: nnx.Rngs,
) -> tuple[nnx.Param | None, AttentionState | None]:
  """The method's parameters and state, new or those of another layer."""
  if other is not None:
    if (other.method, other.shapes) != (method, shapes):
      raise ValueError(
        "share_method_with must be a layer of the same method and heads: "
        f"{method} of {shapes}, got {other.method} of {other.shapes}."
      )
    return other.method_params, other.method_state
  params, state = method.init(rngs.params(), shapes)
  return (
    nnx.Param(params) if mixing.has_leaves(params) else None,
    AttentionState(state) if mixing.has_leaves(state) else None,
  )


def _project(
  names: tuple[str, ...],
  inputs: tuple[int, ...],
  features: tuple[int, ...],
  kernel_init: Initializer,
  **options: Any,
) -> nnx.LinearGeneral:
  """A linear map of the last axes, with logical axis names."""
  return nnx.LinearGeneral(
    inputs,
    features,
    axis=tuple(range(-len(inputs), 0)),
    kernel_init=kernel_init,
    kernel_metadata=_named(names),
    bias_metadata=_named(names[len(inputs) :]),
    **options,
  )


def _named(names: tuple[str, ...]) -> dict[str, Any]:
  """Metadata with logical axis names, which need no mesh at construction."""
  return {"out_sharding": names, "eager_sharding": False}
