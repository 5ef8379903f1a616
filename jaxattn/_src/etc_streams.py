"""ETC attention: a long and a global stream that see each other."""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import base
from jaxattn._src import dispatch
from jaxattn._src import etc_labels
from jaxattn._src import merge
from jaxattn._src import patterns
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import block_sparse as engine


class EtcHeads(NamedTuple):
  """Queries, keys and values of one stream, of L tokens.

  Attributes:
    query: `[*B, L, N, H]` floats, with which the stream looks at both.
    key: `[*B, L, K, H]`, that the stream itself sees; K divides N.
    value: `[*B, L, K, V]`.
    cross_key: `[*B, L, K, H]`, that the other stream sees; None takes `key`.
    cross_value: `[*B, L, K, V]`; None takes `value`.

  Example:
    >>> x = jnp.ones((1, 6, 2, 4))
    >>> EtcHeads(x, x, x).cross_key is None
    True

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.2.
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  cross_key: jax.Array | None = None
  cross_value: jax.Array | None = None


class EtcTable(NamedTuple):
  """Relative labels as vectors and numbers, for the queries of one stream.

  The labels are, for `max_distance` k: 0 the token itself, `1 ... k` at the
  right, `k + 1 ... 2 k` at the left, `2 k + 1` not a member, `2 k + 2` a
  member, `2 k + 3` of another context.

  Attributes:
    vectors: `[R, N, H]` floats, with R at least `2 k + 4`.
    bias: `[R, N]` floats.

  Example:
    >>> EtcTable(jnp.zeros((10, 2, 4)), jnp.zeros((10, 2))).bias.shape
    (10, 2)

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.1.
  """

  vectors: jax.Array
  bias: jax.Array


def etc_attention(
  long: EtcHeads,
  global_: EtcHeads,
  *,
  radius: int,
  structure: etc_labels.EtcStructure | None = None,
  max_distance: int | None = None,
  long_table: EtcTable | None = None,
  global_table: EtcTable | None = None,
  scale: float | None = None,
  implementation: base.Implementation = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends from a long and a global stream to both, in one softmax each.

  A long token sees the long tokens at most `radius` away and all global tokens;
  a global token sees every token. The score of query i and key j is

      (q_i . k_j + q_i . a[label(i, j)] + b[label(i, j)]) * scale

  Time and memory are `O(T (radius + G) + G^2)` for T long and G global tokens;
  no array of T x T elements is made. The scores between the streams are
  computed at once, and again in the backward pass.

  Args:
    long: queries, keys and values of the T long tokens.
    global_: those of the G global tokens.
    radius: how far long tokens see to each side.
    structure: masks, packing and members; None for none.
    max_distance: k, the distance from which on labels are equal; given together
      with the tables.
    long_table: a and b for the queries of long tokens; None for none.
    global_table: a and b for the queries of global tokens.
    scale: factor of the scores, default `1 / sqrt(H)`.
    implementation: as of `block_sparse`.

  Returns:
    `[*B, T, N, V]` and `[*B, G, N, V]`, in the dtype of the queries. A row that
    sees no key, or is padding, is zero with zero gradient.

  Raises:
    ValueError: if shapes disagree, or something given would have no effect.

  Example:
    >>> x, g = jnp.ones((1, 20, 2, 4)), jnp.ones((1, 3, 2, 4))
    >>> outs = etc_attention(EtcHeads(x, x, x), EtcHeads(g, g, g), radius=2)
    >>> [out.shape for out in outs]
    [(1, 20, 2, 4), (1, 3, 2, 4)]

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483. Differs:
  padding neither sees nor is seen; no dropout of the weights.
  """
  if structure is None:
    structure = etc_labels.EtcStructure()
  _check(long, global_, radius, structure)
  num_global = global_.query.shape[-3]
  depth = long.query.shape[-1]
  scale = depth**-0.5 if scale is None else float(scale)
  terms = _terms(
    structure, max_distance, scale, (long, long_table), (global_, global_table)
  )
  options: dict[str, Any] = {
    "scale": scale,
    "return_lse": True,
    "implementation": implementation,
  }
  near = engine.block_sparse(
    *long[:3],
    pattern=patterns.Window(radius, radius),
    mask=structure.long_mask(),
    relative=terms.long,
    **options,
  )
  among = engine.block_sparse(
    *global_[:3],
    pattern=patterns.Full(),
    mask=structure.global_mask(),
    relative=terms.global_,
    **options,
  )
  # Scores between the streams are made again in the backward pass rather than
  # kept: T x G of them for every head.
  across = jax.checkpoint(functools.partial(_across, scale=scale))
  members = terms.members
  up = across(
    long.query,
    *_seen_by_other(global_),
    terms.long_across,
    None if members is None else jnp.swapaxes(members, -1, -2),
    structure.long_to_global_mask(num_global),
  )
  down = across(
    global_.query,
    *_seen_by_other(long),
    terms.global_across,
    members,
    structure.global_to_long_mask(num_global),
  )
  return (
    merge.merge(near, up).out.astype(long.query.dtype),
    merge.merge(among, down).out.astype(global_.query.dtype),
  )


class _Terms(NamedTuple):
  """Relative terms of the four pieces; None without tables.

  Attributes:
    long: of long tokens among themselves.
    global_: of global tokens among themselves.
    long_across: `[*B, T, N, 2]`, of "not a member" and "member".
    global_across: `[*B, G, N, 2]`.
    members: `[*B, G, T]` bool; None where no token is a member.
  """

  long: relative_lib.Relative | None = None
  global_: relative_lib.Relative | None = None
  long_across: jax.Array | None = None
  global_across: jax.Array | None = None
  members: jax.Array | None = None


def _terms(
  structure: etc_labels.EtcStructure,
  max_distance: int | None,
  scale: float,
  long: tuple[EtcHeads, EtcTable | None],
  global_: tuple[EtcHeads, EtcTable | None],
) -> _Terms:
  given = [
    max_distance is not None,
    long[1] is not None,
    global_[1] is not None,
  ]
  if any(given) and not all(given):
    raise ValueError(
      "max_distance, long_table and global_table go together, got them "
      f"{given}: give all three or none."
    )
  structure.check_labels(tables=all(given))
  if max_distance is None or long[1] is None or global_[1] is None:
    return _Terms()
  distance = etc_labels.EtcDistance(max_distance)
  first = distance.num_labels
  near, across = np.arange(first), np.arange(first, first + 2)
  for name, (heads, table) in (("long_table", long), ("global_table", global_)):
    check_table(name, table, heads.query, first)
  label, ids, rows = distance, None, near
  if structure.context_ids is not None:
    length = global_[0].query.shape[-3]
    label = etc_labels.OfContext(distance, length)
    ids = label.ids(structure.context_ids)
    rows = np.append(near, first + 2)
  return _Terms(
    long=relative_lib.Relative(
      logits=relative_logits(long[0].query, long[1], near, scale),
      label=distance,
    ),
    global_=relative_lib.Relative(
      logits=relative_logits(global_[0].query, global_[1], rows, scale),
      label=label,
      query_ids=ids,
      key_ids=ids,
    ),
    long_across=relative_logits(long[0].query, long[1], across, scale),
    global_across=relative_logits(global_[0].query, global_[1], across, scale),
    members=structure.members(global_[0].query.shape[-3]),
  )


def relative_logits(
  query: jax.Array, table: EtcTable, rows: np.ndarray, scale: float
) -> jax.Array:
  """`scale * (q . a[rows] + b[rows])`, `[*B, T, N, len(rows)]` float32."""
  product = jnp.einsum(
    "...tnh,rnh->...tnr",
    query.astype(jnp.float32),
    table.vectors[rows].astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  bias = jnp.swapaxes(table.bias[rows].astype(jnp.float32), 0, 1)
  bias = jax.lax.broadcast_to_rank(bias, product.ndim)
  return jnp.float32(scale) * (product + bias)


def _seen_by_other(heads: EtcHeads) -> tuple[jax.Array, jax.Array]:
  return (
    heads.key if heads.cross_key is None else heads.cross_key,
    heads.value if heads.cross_value is None else heads.cross_value,
  )


def _across(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  logits: jax.Array | None,
  member: jax.Array | None,
  allowed: jax.Array | None,
  *,
  scale: float,
) -> merge.Partial:
  """Attention from one stream to the other; one of the lengths is small.

  Args:
    query: `[*B, L, N, H]`.
    key: `[*B, S, K, H]`.
    value: `[*B, S, K, V]`.
    logits: `[*B, L, N, 2]`, relative terms of other tokens and of members.
    member: `[*B, L, S]` bool; None for no members.
    allowed: `[*B, L, S]` bool; None for all.
    scale: factor of the products of query and key.

  Returns:
    The partial attention, float32.
  """
  batch, (length, num_heads, depth) = query.shape[:-3], query.shape[-3:]
  kv_heads = key.shape[-2]
  grouped = (*batch, length, kv_heads, num_heads // kv_heads)
  product = functools.partial(
    jnp.einsum,
    preferred_element_type=jnp.float32,
    precision=dispatch.precision(query.dtype),
  )
  scores = product(
    "...tkgh,...skh->...kgts", query.reshape(*grouped, depth), key
  )
  scores = scores * jnp.float32(scale)
  if logits is not None:
    term = jnp.moveaxis(logits.reshape(*grouped, 2), -4, -2)
    other = term[..., 0, None]
    if member is not None:
      member = member[..., None, None, :, :]
      other = jnp.where(member, term[..., 1, None], other)
    scores = scores + other
  if allowed is not None:
    scores = jnp.where(allowed[..., None, None, :, :], scores, -jnp.inf)
  top = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
  top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0.0, top))
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  seen = total > 0
  total = jnp.where(seen, total, 1.0)
  weights = (weights / total).astype(value.dtype)
  out = product("...kgts,...skv->...tkgv", weights, value)
  lse = jnp.where(seen, top + jnp.log(total), -jnp.inf)[..., 0]
  shape = (*batch, length, num_heads)
  return merge.Partial(
    out.reshape(*shape, value.shape[-1]),
    jnp.moveaxis(lse, -1, -3).reshape(shape),
  )


def _check(
  long: EtcHeads,
  global_: EtcHeads,
  radius: int,
  structure: etc_labels.EtcStructure,
) -> None:
  if radius < 0:
    raise ValueError(f"radius must not be negative, got {radius}.")
  for name, heads, other in (
    ("long", long, global_),
    ("global_", global_, long),
  ):
    base.check_qkv(*heads[:3])
    if heads.key.shape[-3] != heads.query.shape[-3]:
      raise ValueError(
        f"{name}: query and key must have one length, they are of the same "
        f"tokens; got {heads.query.shape}, {heads.key.shape}."
      )
    for field, like in (("cross_key", "key"), ("cross_value", "value")):
      found, want = getattr(heads, field), getattr(heads, like).shape
      if found is not None and found.shape != want:
        raise ValueError(
          f"{name}.{field} must have the shape of {like} {want}, got "
          f"{found.shape}."
        )
    for field in ("query", "key", "value"):
      mine, yours = (getattr(h, field).shape for h in (heads, other))
      if (*mine[:-3], *mine[-2:]) != (*yours[:-3], *yours[-2:]):
        raise ValueError(
          "long and global_ must differ in length only; their "
          f"{field} have shapes {long._asdict()[field].shape} and "
          f"{global_._asdict()[field].shape}."
        )
  batch = long.query.shape[:-3]
  structure.check(batch, long.query.shape[-3], global_.query.shape[-3])


def check_table(
  name: str, table: EtcTable | None, query: jax.Array, num_distances: int
) -> None:
  """Raises ValueError unless a table fits the heads and the labels."""
  if table is None:
    return
  heads, depth = query.shape[-2:]
  least = num_distances + etc_labels.NUM_STRUCTURE_LABELS
  rows = table.bias.shape[0] if table.bias.ndim else 0
  fits = rows >= least and table.bias.shape == (rows, heads)
  if not fits or table.vectors.shape != (rows, heads, depth):
    raise ValueError(
      f"{name} must have vectors [R, {heads}, {depth}] and bias [R, {heads}] "
      f"with R >= 2 max_distance + 4 = {least}; got {table.vectors.shape} and "
      f"{table.bias.shape}."
    )


def init_table(
  rng: jax.Array, rows: int, num_heads: int, head_dim: int, stddev: float
) -> EtcTable:
  """Draws a table: truncated normal vectors, biases of zero; float32."""
  shape = (rows, num_heads, head_dim)
  vectors = jnp.float32(stddev) * jax.random.truncated_normal(
    rng, -2.0, 2.0, shape, jnp.float32
  )
  return EtcTable(vectors, jnp.zeros((rows, num_heads), jnp.float32))
