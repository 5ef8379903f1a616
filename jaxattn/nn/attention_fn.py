"""Any attention of this library as the `attention_fn` of Flax's own layers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxattn._src import base
from jaxattn._src import masks


def as_attention_fn(
  method_or_op: base.AttentionMethod | Callable[..., jax.Array],
  *,
  mask: masks.Mask = masks.FULL,
  params: base.Params = (),
  state: base.State = (),
) -> Callable[..., jax.Array]:
  """Adapts a method or an op to `attention_fn` of Flax's multi-head layers.

  Linen drops the keyword arguments that an `attention_fn` does not name, and
  NNX passes all of them. The function returned names each one and refuses what
  it cannot honour, so that no mask is lost in silence.

  Args:
    method_or_op: an `AttentionMethod`, or a function `op(query, key, value, *,
      mask) -> out` such as `functools.partial(jaxattn.block_sparse,
      pattern=...)`.
    mask: what may attend to what; the `is_causal` of Flax's call is added.
    params: the method's parameters, `()` when it has none. Gradients do not
      reach them: a method with parameters belongs in
      `jaxattn.nn.linen.Attention`.
    state: the method's state, used unchanged; `()` when it has none.

  Returns:
    A function for `flax.linen.MultiHeadDotProductAttention` and
    `flax.nnx.MultiHeadAttention`. It raises NotImplementedError for dense
    masks, biases, dropout, sown weights and a precision.

  Raises:
    ValueError: if `params` or `state` are given with an op, which has none.
      The function returned raises it if they are not those of the method.

  Example:
    >>> from flax import linen as nn
    >>> layer = nn.MultiHeadDotProductAttention(
    ...     num_heads=2,
    ...     attention_fn=as_attention_fn(
    ...         jaxattn.sliding_window(left=7), mask=jaxattn.CAUSAL))
    >>> x = jnp.ones((1, 16, 8))
    >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
    (1, 16, 8)

  Source: `dot_product_attention` of flax.linen and flax.nnx.
  """
  structured = mask
  is_method = isinstance(method_or_op, base.AttentionMethod)
  if not is_method and (params != () or state != ()):
    raise ValueError(
      "params and state belong to a method; an op takes arrays through "
      f"functools.partial. method_or_op is {method_or_op!r}."
    )

  def attention_fn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: Any = None,
    mask: Any = None,
    *,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = True,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    is_causal: bool = False,
    force_fp32_for_softmax: bool = False,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
  ) -> jax.Array:
    # The softmax is in float32 always; without dropout its rng is of no use.
    del broadcast_dropout, dropout_rng, force_fp32_for_softmax
    _refuse(
      dense_mask=mask is not None,
      bias=bias is not None,
      dropout=dropout_rate > 0.0 and not deterministic,
      precision=precision is not None,
      sow_weights=module is not None,
      einsum=qk_attn_weights_einsum is not None
      or attn_weights_value_einsum is not None,
    )
    if dtype is not None:
      query, key, value = (x.astype(dtype) for x in (query, key, value))
    both = dataclasses.replace(
      structured, causal=structured.causal or is_causal
    )
    if is_method:
      _check_variables(method_or_op, params, state, query, key, value)
      return method_or_op.apply(params, state, query, key, value, mask=both)[0]
    return method_or_op(query, key, value, mask=both)

  return attention_fn


def _refuse(**given: bool) -> None:
  """Raises NotImplementedError for the first that is given."""
  for name, is_given in given.items():
    if is_given:
      raise NotImplementedError(
        f"as_attention_fn cannot honour {name.replace('_', ' ')}; give masks "
        "as a jaxattn.Mask, as_attention_fn(..., mask=...), and leave the rest "
        "at its default."
      )


def _check_variables(
  method: base.AttentionMethod,
  params: base.Params,
  state: base.State,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
) -> None:
  """Raises ValueError if the method has variables that were not given."""
  shapes = base.AttentionShapes(
    num_heads=query.shape[-2],
    num_kv_heads=key.shape[-2],
    head_dim=query.shape[-1],
    value_dim=value.shape[-1],
  )
  wanted = jax.eval_shape(
    lambda rng: method.init(rng, shapes), jax.random.key(0)
  )
  for name, want, found in zip(
    ("params", "state"), wanted, (params, state), strict=True
  ):
    if jax.tree.structure(want) != jax.tree.structure(found):
      raise ValueError(
        f"{name} of {method} must have the structure "
        f"{jax.tree.structure(want)}, got {jax.tree.structure(found)}; make "
        "them with its init, or use the Attention layer."
      )
