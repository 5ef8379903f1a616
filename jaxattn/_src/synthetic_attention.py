"""Attention by logits that are given or made block by block of query rows."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import dispatch
from jaxattn._src import masks
from jaxattn._src import synthetic_logits as sources

# Rows of queries in a block: enough for a product, and never all of many.
_MIN_ROWS, _MAX_ROWS = 64, 1024
# Where the rows stand in what is cut in blocks.
_ROW_AXIS = {"query": -3, "tables": -2, "mask": -1}

Rows = dict[str, Any]  # Arrays of the kinds of `_ROW_AXIS`.
LogitsOf = Callable[[Rows], jax.Array]  # `[N, r, S]` or `[*B or 1s, N, r, S]`.


def synthetic_attention(
  logits: jax.Array, value: jax.Array, *, mask: masks.Mask = masks.FULL
) -> jax.Array:
  """Attends by logits that are given: `softmax(logits) value`, masked.

  Logits with leading axes of size 1 serve all rows of a batch and are not
  copied for each. Rows are taken in blocks whose weights are computed again in
  the backward pass, so that beyond the logits memory grows with the length.

  Args:
    logits: `[*B or 1s, N, T, S]` floats, unscaled: no factor is applied.
    value: `[*B, S, K, V]` floats; K divides N.
    mask: every field is honoured.

  Returns:
    `[*B, T, N, V]` in value's dtype. A row that sees no key is zero, with zero
    gradient.

  Raises:
    ValueError: if shapes disagree.

  Example:
    >>> logits = jnp.zeros((1, 2, 3, 3))
    >>> value = jnp.arange(3.0).reshape(1, 3, 1, 1)
    >>> out = synthetic_attention(logits, value, mask=jaxattn.CAUSAL)
    >>> out[0, :, 0, 0].tolist()  # A running mean.
    [0.0, 0.5, 1.0]

  Source: Tay et al., 2021, https://arxiv.org/abs/2005.00743.
  """
  _check_logits(logits, value)
  q_len = logits.shape[-2]
  mask.check(value.shape[:-3], q_len, value.shape[-3])
  rows = {"tables": logits, "mask": row_fields(mask, q_len)}
  sizes = (logits.shape[-3], q_len)
  out = attend_rows(
    lambda rows: rows["tables"], rows, value, mask, sizes, value.dtype
  )
  return out.astype(value.dtype)


def attend_rows(
  logits_of: LogitsOf,
  rows: Rows,
  value: jax.Array,
  mask: masks.Mask,
  sizes: tuple[int, int],
  dtype: Any,
) -> jax.Array:
  """Attends block by block of query rows.

  Args:
    logits_of: the logits of a block.
    rows: what goes with rows of queries.
    value: `[*B, S, K, V]`.
    mask: of all queries.
    sizes: N and T.
    dtype: of the operands of products.

  Returns:
    `[*B, T, N, V]` float32.
  """
  (heads, q_len), k_len = sizes, value.shape[-3]
  scores = max(1, math.prod(value.shape[:-3]) * heads * k_len)
  most = min(max(dispatch.score_budget() // scores, _MIN_ROWS), _MAX_ROWS)
  blocks = max(1, -(-q_len // most))
  size = -(-q_len // blocks)
  value = value.astype(jnp.float32)  # Gradients of all blocks add up in it.

  # Without this every block would leave its weights for the backward pass.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def attend(rows: Rows) -> jax.Array:
    block_mask = dataclasses.replace(mask, **rows["mask"])
    allowed = block_mask.dense(size, k_len)
    return _softmax_product(logits_of(rows), allowed, value, dtype)

  split = {
    kind: jax.tree.map(
      functools.partial(_split, axis=_ROW_AXIS[kind], blocks=blocks), arrays
    )
    for kind, arrays in rows.items()
  }
  out = jnp.moveaxis(jax.lax.map(attend, split), 0, -4)
  out = out.reshape(*out.shape[:-4], blocks * size, *out.shape[-2:])
  return out[..., :q_len, :, :]


def _split(x: jax.Array, *, axis: int, blocks: int) -> jax.Array:
  """Cuts an axis in blocks, padded by zeros, and puts these in front."""
  axis += x.ndim
  size = -(-x.shape[axis] // blocks)
  pad = [(0, 0)] * x.ndim
  pad[axis] = (0, blocks * size - x.shape[axis])
  x = jnp.pad(x, pad)
  x = x.reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :])
  return jnp.moveaxis(x, axis, 0)


def _softmax_product(
  logits: jax.Array, allowed: jax.Array, value: jax.Array, dtype: Any
) -> jax.Array:
  """`[*B or 1s, N, r, S]`, `[*B, S, K, V]` -> `[*B, r, N, V]` float32."""
  rank = value.ndim
  logits = jnp.where(
    jax.lax.broadcast_to_rank(allowed, rank),
    jax.lax.broadcast_to_rank(logits.astype(jnp.float32), rank),
    -jnp.inf,
  )
  top = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
  top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0.0, top))
  weights = jnp.exp(logits - top)
  total = jnp.swapaxes(jnp.sum(weights, axis=-1, keepdims=True), -2, -3)
  lead, (heads, size, k_len) = weights.shape[:-3], weights.shape[-3:]
  kv_heads = value.shape[-2]
  weights = weights.reshape(*lead, kv_heads, heads // kv_heads, size, k_len)
  # An axis of size 1 is left out of the product, not copied over the batch.
  out = sources.product("...kgrs,...skv->...rkgv", weights, value, dtype)
  out = out.reshape(*out.shape[:-3], heads, out.shape[-1])
  return out / jnp.where(total > 0, total, 1.0)


def row_fields(mask: masks.Mask, q_len: int) -> dict[str, jax.Array]:
  """The fields of a mask that have one entry for each query."""
  fields = {n: getattr(mask, n) for n in mask.fields_set if n[:5] == "query"}
  if mask.causal and mask.query_positions is None:
    fields["query_positions"] = jnp.arange(q_len)
  return {name: jnp.asarray(x) for name, x in fields.items()}


def _check_logits(logits: jax.Array, value: jax.Array) -> None:
  shapes = f"logits {logits.shape}, value {value.shape}"
  if logits.ndim != value.ndim or value.ndim < 3:
    raise ValueError(
      "logits and value must have one rank, at least 3: [*B or 1s, N, T, S] "
      f"and [*B, S, K, V]; got {shapes}."
    )
  lead = zip(logits.shape[:-3], value.shape[:-3], strict=True)
  if any(n not in (1, b) for n, b in lead):
    raise ValueError(
      f"logits must have value's leading axes, or axes of size 1; got {shapes}."
    )
  if logits.shape[-1] != value.shape[-3]:
    raise ValueError(
      f"logits and value must have one number of keys S; got {shapes}."
    )
  if value.shape[-2] == 0 or logits.shape[-3] % value.shape[-2]:
    raise ValueError(
      f"value's heads must divide those of logits; got {shapes}."
    )
  for name, x in (("logits", logits), ("value", value)):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} must be floating point, got {x.dtype}.")
