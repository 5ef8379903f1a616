"""A naive oracle of bucketed attention: edges found one at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn


def order(groups: np.ndarray, there, segments, positions) -> np.ndarray:
  """The rank of every token of one row and head, `[T]`."""
  length = len(groups)
  key = [
    (
      not there[i],
      *((segments[i], groups[i]) if there[i] else ()),
      positions[i],
    )
    for i in range(length)
  ]
  rank = np.empty(length, int)
  rank[sorted(range(length), key=lambda i: (*key[i], i))] = np.arange(length)
  return rank


def reached(reach: Any, groups, rank, causal: bool) -> np.ndarray:
  """What each token sees of the sorted order, `[T, T]`."""
  step = rank[None, :] - rank[:, None]
  same = groups[None, :] == groups[:, None]
  if reach.window is not None:
    ahead = 0 if causal else reach.window - 1
    return (step > -reach.window) & (step <= ahead) & same
  chunk = rank // min(reach.chunk, len(rank))
  step = chunk[None, :] - chunk[:, None]
  near = (step >= -reach.before) & (step <= reach.after)
  return near & same if reach.within else near


def edges(
  groups: Any, reach: Any, mask: Any = jaxattn.FULL, exclude_self: bool = False
) -> np.ndarray:
  """The union of the edges of all rounds, `[B, N, T, T]`."""
  groups = np.asarray(groups)
  _, batch, length, heads = groups.shape

  def field(name: str, default: Any) -> np.ndarray:
    x = getattr(mask, name)
    x = default if x is None else np.asarray(x)
    return np.broadcast_to(x, (batch, length))

  index = np.arange(length)
  there = field("key_valid", True) & field("query_valid", True)
  segments = field("key_segment_ids", 0)
  q_pos, k_pos = (field(f"{s}_positions", index) for s in ("query", "key"))
  found = np.zeros((batch, heads, length, length), bool)
  for b in range(batch):
    allowed = there[b][:, None] & there[b][None]
    allowed &= field("query_segment_ids", 0)[b][:, None] == segments[b][None]
    if mask.causal:
      allowed &= q_pos[b][:, None] >= k_pos[b][None]
    if exclude_self:
      allowed &= ~np.eye(length, dtype=bool)
    for n in range(heads):
      for own in groups[:, b, :, n]:
        rank = order(own, there[b], segments[b], k_pos[b])
        found[b, n] |= reached(reach, own, rank, mask.causal) & allowed
  return found


@functools.partial(jax.jit, static_argnames=("scale",))
def attend(query, key, value, allowed, scale=None):
  """Softmax attention over edges `[B, N, T, S]`: output and lse."""
  group = query.shape[2] // key.shape[2]
  key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
  scores = jnp.einsum("btnh,bsnh->bnts", query, key, precision="highest")
  scores = scores * jnp.float32(scale or query.shape[-1] ** -0.5)
  scores = jnp.where(allowed, scores, -1e30)
  seen = jnp.any(allowed, axis=-1)
  lse = jax.nn.logsumexp(scores, axis=-1)
  weights = jnp.where(allowed, jnp.exp(scores - lse[..., None]), 0.0)
  out = jnp.einsum("bnts,bsnv->btnv", weights, value, precision="highest")
  lse = jnp.where(seen, lse, -jnp.inf)
  return out, jnp.swapaxes(lse, 1, 2)
