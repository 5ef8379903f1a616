"""Locality-sensitive hashing, and attention among tokens that hash alike."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import masks
from jaxattn._src.engines import bucketed

_MOST_BUCKETS = 128  # Of one factor, where the number is chosen by itself.
_SMALLEST = 1e-30  # A shorter vector counts as zero: its gradient is too large.


def bucket_factors(
  num_buckets: int | Sequence[int] | None, *, length: int, chunk: int
) -> tuple[int, ...]:
  """The factors of a number of buckets, each of them even.

  A vector is hashed by each factor on its own, and its bucket counts in mixed
  radix: with two factors near the root, hashing costs `2 sqrt(buckets)` in
  place of `buckets`.

  Args:
    num_buckets: a number; its factors; or None for `2 length / chunk`, which
      makes a bucket half a chunk, in two factors above 128.
    length: T.
    chunk: tokens in a chunk of the sorted order.

  Returns:
    The factors.

  Raises:
    ValueError: if a factor is not even and positive.

  Example:
    >>> bucket_factors(None, length=1024, chunk=64)
    (32,)
    >>> bucket_factors(None, length=65536, chunk=64)
    (64, 32)

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 2, and
  `factorize_hash` of the authors' code in Trax.
  """
  if num_buckets is None:
    wanted = 2 * max(1, -(-length // chunk))
    if wanted <= _MOST_BUCKETS:
      return (wanted,)
    first = 1 << math.ceil(math.log2(math.sqrt(wanted)))
    return first, 2 * -(-wanted // (2 * first))
  one = isinstance(num_buckets, int)
  factors = (num_buckets,) if one else tuple(num_buckets)
  if not factors or any(f < 2 or f % 2 for f in factors):
    raise ValueError(
      "num_buckets must be even, or a tuple of even factors: a hash takes the "
      f"largest of x and -x; got {num_buckets}."
    )
  return factors


def draw_rotations(
  rng: jax.Array,
  *,
  rounds: int,
  num_heads: int,
  head_dim: int,
  factors: Sequence[int],
) -> tuple[jax.Array, ...]:
  """Random rotations for `hash_buckets`, other ones in each round and head.

  Args:
    rng: a PRNG key.
    rounds: R.
    num_heads: N.
    head_dim: H.
    factors: of the number of buckets, each even; see `bucket_factors`.

  Returns:
    For every factor `[R, N, H, factor / 2]` float32, normal.

  Raises:
    ValueError: if a factor is odd.

  Example:
    >>> made = draw_rotations(
    ...     jax.random.key(0), rounds=2, num_heads=4, head_dim=8, factors=(6,))
    >>> made[0].shape
    (2, 4, 8, 3)

  Source: Andoni et al., 2015, https://arxiv.org/abs/1509.02897.
  """
  factors = bucket_factors(tuple(factors), length=1, chunk=1)
  rngs = jax.random.split(rng, len(factors))
  return tuple(
    jax.random.normal(r, (rounds, num_heads, head_dim, f // 2))
    for r, f in zip(rngs, factors, strict=True)
  )


def hash_buckets(
  vectors: jax.Array, rotations: Sequence[jax.Array]
) -> jax.Array:
  """Buckets of vectors: near ones by angle fall into the same one, often.

  For every factor the bucket is `argmax([x R; -x R])`. It does not depend on
  the length of a vector, so that queries and unit keys hash alike.

  Args:
    vectors: `[*B, T, N, H]` floats.
    rotations: from `draw_rotations`; the axis of heads may be 1, to share one
      rotation.

  Returns:
    `[R, *B, T, N]` int32, below the product of the factors; without gradient.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
    >>> rotations = draw_rotations(
    ...     jax.random.key(1), rounds=3, num_heads=2, head_dim=8, factors=(4,))
    >>> buckets = hash_buckets(x, rotations)
    >>> bool((buckets == hash_buckets(7 * x, rotations)).all()), buckets.shape
    (True, (3, 1, 5, 2))

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 2.
  """
  x = jax.lax.stop_gradient(vectors).astype(jnp.float32)
  heads, depth = x.shape[-2:]
  buckets, radix = None, 1
  for rotation in rotations:
    if rotation.shape[1] not in (1, heads) or rotation.shape[2] != depth:
      raise ValueError(
        f"rotations must be [R, 1 or {heads}, {depth}, factor / 2] for vectors "
        f"{vectors.shape}, got {rotation.shape}."
      )
    size = rotation.shape[-1]
    rotation = jnp.broadcast_to(
      rotation, (rotation.shape[0], heads, depth, size)
    )
    turned = jnp.einsum(
      "...nh,rnhf->r...nf",
      x,
      rotation,
      precision=jax.lax.Precision.HIGHEST,
    )
    # The largest of [y; -y], without joining them.
    at = jnp.argmax(jnp.abs(turned), axis=-1, keepdims=True)
    negative = jnp.take_along_axis(turned, at, axis=-1) < 0
    one = (at + jnp.where(negative, size, 0))[..., 0].astype(jnp.int32)
    buckets = one if buckets is None else buckets + radix * one
    radix *= 2 * size
  if buckets is None:
    raise ValueError("rotations must hold at least one array.")
  return buckets


def unit_vectors(x: jax.Array) -> jax.Array:
  """Vectors over their length; zero stays zero, with a finite gradient."""
  wide = x.astype(jnp.float32)
  # Squares of large or small numbers would leave the range of float32.
  top = jnp.max(jnp.abs(wide), axis=-1, keepdims=True, initial=0.0)
  some = jax.lax.stop_gradient(top > _SMALLEST)
  near = wide / jax.lax.stop_gradient(jnp.where(some, top, 1.0))
  square = jnp.sum(near * near, axis=-1, keepdims=True)
  return (near * jax.lax.rsqrt(jnp.where(some, square, 1.0))).astype(x.dtype)


def lsh_attention(
  query_key: jax.Array,
  value: jax.Array,
  buckets: jax.Array,
  *,
  chunk: int = 64,
  before: int = 1,
  after: int | None = None,
  within: bool = False,
  window: int | None = None,
  mask: masks.Mask = masks.FULL,
  scale: float = 1.0,
  implementation: base.Implementation = None,
) -> jax.Array:
  """Attention with shared queries and keys among tokens that hash alike.

  The key of a token is its query over its length, and scores are
  `scale q_i . k_j`, with no root of the head size. Tokens are sorted by bucket
  and position in each round; a token sees its chunk of the sorted order and
  those around it, itself only if it sees nothing else, and the result is the
  softmax over the union of all rounds.

  Args:
    query_key: `[*B, T, N, H]` floats, queries and keys in one.
    value: `[*B, T, K, V]` floats; K divides N (grouped-query attention).
    buckets: `[R, *B, T, N]` ints, from `hash_buckets`.
    chunk: tokens in a chunk of the sorted order.
    before: chunks seen before the own one.
    after: chunks seen behind the own one; None means 0 if the mask is causal,
      else 1.
    within: whether only tokens of the own bucket are seen.
    window: if given, the last `window` members of the own bucket are seen in
      place of chunks: under a causal mask nothing then depends on later tokens.
    mask: every field is honoured. A token that is not valid as a key or as a
      query is not there at all: it takes no place in the order, and its row is
      zero.
    scale: factor of the scores.
    implementation: as of `bucketed_attention`.

  Returns:
    `[*B, T, N, V]` in the dtype of `query_key`.

  Raises:
    ValueError: if shapes disagree.
    NotImplementedError: if the named implementation cannot serve the call.

  Example:
    >>> x = jax.random.normal(jax.random.key(0), (1, 40, 2, 8))
    >>> rotations = draw_rotations(
    ...     jax.random.key(1), rounds=2, num_heads=2, head_dim=8, factors=(8,))
    >>> out = lsh_attention(
    ...     x, x, hash_buckets(x, rotations), chunk=10, mask=masks.CAUSAL)
    >>> bool(jnp.allclose(out[:, 0], x[:, 0]))  # The first one has but itself.
    True

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 2 and
  appendix A.
  """
  if after is None:
    after = 0 if mask.causal else 1
  key = unit_vectors(query_key)
  kv_heads = value.shape[-2] if value.ndim == query_key.ndim else 0
  grouped = bool(kv_heads) and query_key.shape[-2] % kv_heads == 0
  wide = value
  if grouped:
    wide = jnp.repeat(value, query_key.shape[-2] // kv_heads, axis=-2)
  found = bucketed.bucketed_attention(
    query_key,
    key,
    wide,
    buckets,
    reach=bucketed.Reach(
      chunk=chunk, before=before, after=after, within=within, window=window
    ),
    mask=mask,
    exclude_self=True,
    scale=scale,
    implementation=implementation,
  )
  present = there(mask, found.lse.ndim)
  return or_self(found.out, found.lse, wide, present).astype(query_key.dtype)


def or_self(
  out: jax.Array, lse: jax.Array, value: jax.Array, present: jax.Array | None
) -> jax.Array:
  """The own value in rows that see nothing else and are there."""
  alone = jnp.isneginf(lse)
  if present is not None:
    alone = alone & present
  return jnp.where(alone[..., None], value.astype(out.dtype), out)


def there(mask: masks.Mask, ndim: int) -> jax.Array | None:
  """Whether tokens are there, `[*B, T, 1]`; None if all are."""
  valid = [x for x in (mask.key_valid, mask.query_valid) if x is not None]
  if not valid:
    return None
  both = valid[0] if len(valid) == 1 else valid[0] & valid[1]
  return jax.lax.broadcast_to_rank(both, ndim - 1)[..., None]
