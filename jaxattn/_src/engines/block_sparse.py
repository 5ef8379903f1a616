"""Block-sparse softmax attention: time and memory follow the tiles attended."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import base
from jaxattn._src import dispatch
from jaxattn._src import layout as layout_lib
from jaxattn._src import masks
from jaxattn._src import merge
from jaxattn._src import patterns
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import backends
from jaxattn._src.engines import head_loop
from jaxattn._src.engines import piece_passes
from jaxattn._src.engines import tile_passes


def block_sparse(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  pattern: Any,
  mask: masks.Mask = masks.FULL,
  relative: relative_lib.Relative | None = None,
  scale: float | None = None,
  return_lse: bool = False,
  implementation: base.Implementation = None,
  tile: int | None = None,
) -> Any:
  """Softmax attention over a static pattern, at the cost of its tiles.

  `softmax(scale * q k^T + relative) v` over the edges that `pattern` and `mask`
  allow. The pattern is compiled at trace time to tiles of queries and keys;
  only tiles with edges are computed, a few at a time, and the backward pass
  recomputes the weights from the log-sum-exp. No array of T x S elements is
  ever made.

  Args:
    query: `[*B, T, N, H]` floats.
    key: `[*B, S, K, H]` floats; K divides N (grouped-query attention).
    value: `[*B, S, K, V]` floats.
    pattern: a `jaxattn.patterns.Pattern`, or a tuple of N, one for each head.
    mask: every field is honoured; a static `causal` prunes tiles.
    relative: a relative-position score term.
    scale: factor of the scores, default `1 / sqrt(H)`.
    return_lse: whether to return a `Partial` (float32) to be merged with
      others, instead of the output.
    implementation: None picks the best that serves the call; "xla" or "pallas"
      asks for one.
    tile: tokens in a tile, a multiple of 8; None chooses by a cost model.

  Returns:
    `[*B, T, N, V]` in query's dtype, or a `Partial`. A row that sees no key is
    exactly zero, with zero gradient and lse `-inf`. Scores and sums are float32
    (products of bfloat16 operands accumulate in float32): 1e-5 relative to the
    float32 oracle for float32 inputs, 2e-2 for bfloat16. Reverse-mode
    differentiation only: the backward pass is written by hand.

  Raises:
    ValueError: if shapes disagree or `pattern` is not one.
    NotImplementedError: if the named implementation cannot serve the call.

  Example:
    >>> from jaxattn import patterns
    >>> x = jnp.ones((1, 100, 2, 16))
    >>> pattern = patterns.Window(8, 8) | patterns.Global(4)
    >>> block_sparse(x, x, x, pattern=pattern).shape
    (1, 100, 2, 16)

  Source: Dao et al., 2022, https://arxiv.org/abs/2205.14135 (tiles and
  recomputation); Child et al., 2019, https://arxiv.org/abs/1904.10509.
  """
  base.check_qkv(query, key, value)
  batch, (q_len, heads, depth) = query.shape[:-3], query.shape[-3:]
  k_len = key.shape[-3]
  mask.check(batch, q_len, k_len)
  if relative is not None:
    relative.check(batch, q_len, k_len, heads)
  if tile is not None and (tile < 8 or tile % 8):
    raise ValueError(f"tile must be a positive multiple of 8, got {tile}.")
  scale = depth**-0.5 if scale is None else float(scale)
  choice = dispatch.choose(
    "block_sparse",
    implementation,
    backends.obstacles(
      query, key, value, relative=relative is not None, scale=scale, tile=tile
    ),
  )
  per_head = _per_head(
    pattern, heads, causal=mask.causal and not mask.dynamic_causal
  )
  call = _Call(
    q_len=q_len,
    k_len=k_len,
    tile=tile,
    scale=scale,
    choice=choice,
    label=None if relative is None else relative.label,
    budget=dispatch.score_budget(),
    precision=dispatch.precision(query.dtype),
  )
  arrays = _flatten(query, key, value, mask, relative)
  partial = _by_head(call, per_head, *arrays)
  partial = jax.tree.map(
    lambda x: x.reshape(*batch, *x.shape[1:]), merge.Partial(*partial)
  )
  return partial if return_lse else partial.out.astype(query.dtype)


@dataclasses.dataclass(frozen=True)
class _Call:
  """Static facts of one call."""

  q_len: int
  k_len: int
  tile: int | None
  scale: float
  label: relative_lib.Label | None
  budget: int
  precision: Any
  choice: dispatch.Choice

  shared: bool = False  # Whether all queries share the relative logits.

  def place(self, piece: layout_lib.Piece, stacked: bool) -> piece_passes.Task:
    plan = tile_passes.Plan(
      piece, self.scale, self.budget, self.label, self.shared, self.precision
    )
    return piece_passes.Task(
      plan, self.q_len, self.k_len, stacked, self.choice.interpret
    )

  def compile(self, pattern: patterns.Pattern) -> tuple[layout_lib.Piece, ...]:
    """Compiles a pattern to the tiles that the backend takes."""
    tile = backends.tile(self.choice.name, pattern, self.q_len, self.k_len)
    return layout_lib.compile_pattern(
      pattern,
      self.q_len,
      self.k_len,
      tile or self.tile,
      whole=tile is not None,
    )


def _per_head(
  pattern: Any, heads: int, *, causal: bool
) -> tuple[patterns.Pattern, ...]:
  """One pattern, or one for each head, with a static causal mask folded in."""
  given = tuple(pattern) if isinstance(pattern, tuple | list) else (pattern,)
  for one in given:
    if not isinstance(one, patterns.Pattern):
      raise ValueError(
        f"pattern must be a jaxattn.patterns.Pattern, got {type(one).__name__}."
      )
  if len(given) not in (1, heads):
    raise ValueError(
      f"pattern must be one, or one for each of {heads} heads; "
      f"got {len(given)}."
    )
  if len(set(given)) == 1:
    given = given[:1]
  return tuple(p & patterns.Causal() for p in given) if causal else given


def _flatten(query, key, value, mask: masks.Mask, relative):
  """Arrays with one batch axis, ids `[B or 1, length]`."""
  batch = query.shape[:-3]
  rows = int(np.prod(batch))

  def one(x: jax.Array, tail: int) -> jax.Array:
    lead, rest = x.shape[: x.ndim - tail], x.shape[x.ndim - tail :]
    if int(np.prod(lead)) != 1:
      x = jnp.broadcast_to(x, (*batch, *rest))
      return x.reshape(rows, *rest)
    return x.reshape(1, *rest)

  ids: dict[str, dict[str, Any]] = {"query": {}, "key": {}}
  names = {"valid": "valid", "segment": "segment_ids"}
  for side, found in ids.items():
    for short, name in names.items():
      found[short] = getattr(mask, f"{side}_{name}")
  if mask.dynamic_causal:
    q_pos, k_pos = mask.positions(query.shape[-3], key.shape[-3])
    ids["query"]["position"], ids["key"]["position"] = q_pos, k_pos
  logits = None
  if relative is not None:
    ids["query"]["label"] = relative.query_ids
    ids["key"]["label"] = relative.key_ids
    logits = one(relative.logits, 3)
  made = [
    tile_passes.Ids(
      **{
        k: None if v is None else one(jnp.asarray(v), 1)
        for k, v in found.items()
      }
    )
    for found in ids.values()
  ]
  qkv = (x.reshape(rows, *x.shape[-3:]) for x in (query, key, value))
  return (*qkv, *made, logits)


def _by_head(call, per_head, query, key, value, query_ids, key_ids, logits):
  """Runs heads of equal structure together, and puts them in order."""
  if len(per_head) == 1:
    pieces = call.compile(per_head[0])
    return _run(
      call, pieces, False, query, key, value, query_ids, key_ids, logits
    )
  group = query.shape[-2] // key.shape[-2]
  key, value = (jnp.repeat(x, group, axis=-2) for x in (key, value))
  alike: dict[Any, list[int]] = {}
  compiled = [call.compile(p) for p in per_head]
  for head, pieces in enumerate(compiled):
    alike.setdefault(tuple((p.query, p.key) for p in pieces), []).append(head)
  outs, order = [], []
  for heads in alike.values():
    at = np.asarray(heads)
    chosen = [compiled[h] for h in heads]
    stacked = any(c != chosen[0] for c in chosen)
    pieces = chosen[0]
    if stacked:
      pieces = tuple(
        dataclasses.replace(
          p[0], layout=layout_lib.stack(tuple(x.layout for x in p))
        )
        for p in zip(*chosen, strict=True)
      )
    if len(alike) == 1:
      return _run(
        call, pieces, stacked, query, key, value, query_ids, key_ids, logits
      )
    outs.append(
      _run(
        call,
        pieces,
        stacked,
        query[:, :, at],
        key[:, :, at],
        value[:, :, at],
        query_ids,
        key_ids,
        None if logits is None else logits[:, :, at],
      )
    )
    order += heads
  back = np.argsort(order)
  return tuple(
    jnp.concatenate(x, axis=2)[:, :, back] for x in zip(*outs, strict=True)
  )


def _run(call, pieces, stacked, query, key, value, query_ids, key_ids, logits):
  """Attention over the union of pieces, `[B, T, N, V]` and `[B, T, N]`."""
  rows, length, heads, _ = query.shape
  if not pieces or rows == 0:
    shape = (rows, length, heads, value.shape[-1])
    return (
      jnp.zeros(shape, jnp.float32),
      jnp.full(shape[:-1], -jnp.inf, jnp.float32),
    )
  if logits is not None:
    plain = not stacked and query_ids.label is None
    call = dataclasses.replace(call, shared=plain and logits.shape[1] == 1)
    if not call.shared:
      logits = jnp.broadcast_to(
        logits, (logits.shape[0], length, *logits.shape[2:])
      )
  return _attend(
    call, pieces, stacked, query, key, value, query_ids, key_ids, logits
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(
  call, pieces, stacked, query, key, value, query_ids, key_ids, logits
):
  """Merges the pieces' attention; its backward hands each the merged lse."""
  inputs = piece_passes.Inputs(query, key, value, query_ids, key_ids, logits)
  forward = backends.passes(call.choice.name).forward

  def merged(query, key, value, logits):
    some = inputs._replace(query=query, key=key, value=value, logits=logits)
    partials = [forward(call.place(piece, stacked), some) for piece in pieces]
    return tuple(merge.merge(*partials))

  return _over_heads(call, stacked, merged, key, [query, key, value, logits])


def _over_heads(call, stacked, function, key, arrays):
  """Runs a function of `[B, T, heads, ...]`, by heads where that pays."""
  batch, _, heads, _ = key.shape
  tokens = batch * call.q_len
  if stacked or call.choice.name != "xla" or not head_loop.pays(tokens, heads):
    return function(*arrays)
  return head_loop.run(function, heads, arrays)


def _attend_forward(call, pieces, stacked, *inputs):
  out, lse = _attend(call, pieces, stacked, *inputs)
  # Kernels round the output to the dtype of the queries: more is not worth
  # the memory.
  kept = out if call.choice.name == "xla" else out.astype(inputs[0].dtype)
  return (out, lse), (inputs, kept, lse)


def _attend_backward(call, pieces, stacked, saved, cotangents):
  inputs, out, lse = saved
  inputs = piece_passes.Inputs(*inputs)
  backward = backends.passes(call.choice.name).backward

  def pulled(query, key, value, logits, out, lse, dout, dlse):
    some = inputs._replace(query=query, key=key, value=value, logits=logits)
    delta = jnp.sum(out.astype(jnp.float32) * dout, axis=-1) - dlse
    # A row without edges has no weights: any finite lse gives it zeros.
    lse = jnp.where(jnp.isneginf(lse), 0.0, lse)
    rows = piece_passes.Rows(dout.astype(value.dtype), lse, delta)
    grads = [
      backward(call.place(piece, stacked), some, rows) for piece in pieces
    ]
    sums = [
      functools.reduce(jnp.add, same) for same in zip(*grads, strict=True)
    ]
    given = [query, key, value] + ([] if logits is None else [logits])
    return [g.astype(x.dtype) for g, x in zip(sums, given, strict=True)]

  arrays = [*inputs[:3], inputs.logits, out, lse, *cotangents]
  dq, dk, dv, *rest = _over_heads(call, stacked, pulled, inputs.key, arrays)
  return dq, dk, dv, None, None, rest[0] if rest else None


_attend.defvjp(_attend_forward, _attend_backward)
