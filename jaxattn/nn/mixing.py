"""What the Linen and the NNX layer share: checks, and what mixes the heads."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import masks
from jaxattn._src import positions as positions_lib


def head_size(width: int, num_heads: int, head_dim: int | None) -> int:
  """`head_dim`, or its default `width / num_heads`."""
  if head_dim is not None:
    return head_dim
  if width % num_heads:
    raise ValueError(
      f"num_heads must divide the width {width}, got {num_heads}; or give "
      "head_dim."
    )
  return width // num_heads


def axis_names(
  num_heads: int, num_kv_heads: int | None
) -> dict[str, tuple[str, ...]]:
  """Logical axis names of the kernels, for sharding rules.

  Grouped key/value heads get a name of their own: they are few, and a mesh axis
  that divides the query heads need not divide them.
  """
  grouped = num_kv_heads is not None and num_kv_heads != num_heads
  kv = ("embed", "kv_heads" if grouped else "heads", "head_dim")
  return {
    "query": ("embed", "heads", "head_dim"),
    "key": kv,
    "value": kv,
    "out": ("heads", "head_dim", "embed"),
  }


def shares(method: base.AttentionMethod) -> bool:
  """Whether the layers of a model have the method's variables together.

  Methods say so by `shared_params`; one without the attribute does not.
  """
  return getattr(method, "shared_params", False)


def shares_query_key(method: base.AttentionMethod) -> bool:
  """Whether the method attends with its queries as keys."""
  return getattr(method, "shares_query_key", False)


def check_shared(
  method: base.AttentionMethod, num_heads: int, num_kv_heads: int | None
) -> None:
  """Raises ValueError for key heads that such a method cannot have."""
  if shares_query_key(method) and num_kv_heads not in (None, num_heads):
    raise ValueError(
      f"{type(method).__name__} attends with its queries as keys: num_kv_heads "
      f"must be None or num_heads {num_heads}, got {num_kv_heads}."
    )


def selects(method: base.AttentionMethod) -> bool:
  """Whether the method chooses by the data, and can be told the choice."""
  return hasattr(method, "select")


def has_leaves(tree: Any) -> bool:
  """Whether a pytree holds any array."""
  return bool(jax.tree.leaves(tree))


def check_call(
  *,
  mask: masks.Mask,
  context: Any,
  positions: Any,
  context_positions: Any,
  rotary: float | None,
  train: bool,
  decode: bool,
) -> None:
  """Raises ValueError for arguments that would be ignored."""
  if rotary is None and (
    positions is not None or context_positions is not None
  ):
    raise ValueError(
      "positions and context_positions serve the rotary embedding only; set "
      "rotary (for example to 10_000.0) or leave them out."
    )
  if context is None and context_positions is not None:
    raise ValueError("context_positions needs context.")
  if not decode:
    return
  if context is not None:
    raise ValueError(
      "decode=True is for self-attention; call cross-attention to a context "
      "with decode=False in every step."
    )
  if train:
    raise ValueError("decode=True and train=True exclude each other.")
  if not mask.causal:
    raise ValueError(
      "decoding is causal: pass mask=jaxattn.CAUSAL, or a Mask with "
      "causal=True and key_valid [*B, T] for right-padded tokens."
    )
  mask.only("causal", "key_valid", by="decode=True")


def mix(
  method: base.AttentionMethod,
  params: base.Params,
  state: base.State,
  cache: base.Cache | None,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  mask: masks.Mask,
  positions: jax.Array | None,
  context_positions: jax.Array | None,
  rotary: float | None,
  is_cross: bool,
  rng: jax.Array | None,
  train: bool,
  selection: Any = None,
  keep_selection: bool = False,
) -> tuple[jax.Array, base.State, base.Cache | None, Any]:
  """Turns the heads by their positions, and attends or extends the cache.

  Args:
    method: the attention method.
    params: its parameters.
    state: its state.
    cache: its decoding cache, or None when all tokens are given at once.
    query: `[*B, T, N, H]`.
    key: `[*B, S, K, H]`.
    value: `[*B, S, K, H]`.
    mask: as of the layer.
    positions: `[*B, T]` or None: counted from the cache's length or from 0.
    context_positions: `[*B, S]` or None: from 0.
    rotary: base of the rotary embedding, or None.
    is_cross: whether keys come from another sequence.
    rng: key of the method's noise, or None.
    train: whether the state moves.
    selection: what the method chose before, or None to choose now.
    keep_selection: whether a choice is returned.

  Returns:
    `[*B, T, N, H]`, the state, the cache, and the choice or None.
  """
  if rotary is not None:
    if positions is None:
      start = None if cache is None else cache["length"]
      positions = count(query, start)
    query = positions_lib.apply_rotary(query, positions, base=rotary)
    if is_cross:
      positions = (
        count(key, None) if context_positions is None else context_positions
      )
    key = positions_lib.apply_rotary(key, positions, base=rotary)
  if cache is not None:
    out, cache = method.extend(
      params, state, cache, query, key, value, key_valid=mask.key_valid
    )
    return out, state, cache, None
  options: dict[str, Any] = {}
  if selects(method):
    if selection is None and keep_selection:
      # pyrefly: ignore
      selection = method.select(
        params, state, query, key, mask=mask, rng=rng, train=train
      )
    if selection is not None:
      options["selection"] = selection
  out, state = method.apply(
    params, state, query, key, value, mask=mask, rng=rng, train=train, **options
  )
  return out, state, None, selection


def count(heads: jax.Array, start: jax.Array | None) -> jax.Array:
  """Positions `[*B or 1s, T]` of `[*B, T, N, H]`, counted from `start`."""
  steps = jnp.arange(heads.shape[-3], dtype=jnp.int32)
  steps = jax.lax.broadcast_to_rank(steps, heads.ndim - 2)
  return steps if start is None else start[..., None] + steps
