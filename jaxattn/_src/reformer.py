"""Reformer: locality-sensitive hashing with shared queries and keys."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import group_cache
from jaxattn._src import lsh
from jaxattn._src import masks

_GENERATOR = "threefry2x32"


@dataclasses.dataclass(frozen=True)
class Reformer:
  """LSH attention; see `reformer`.

  The key of a token is its query over its length: `key` is not read, and layers
  make no projection for it. The rotations are state: `key`, the bits that they
  are drawn from, and `steps`, how often they were drawn anew.

  Attributes:
    rounds: R, how often tokens are hashed.
    chunk: tokens in a chunk of the sorted order.
    num_buckets: buckets, or their even factors; None means `2 T / chunk`.
    before: chunks seen before the own one.
    after: chunks seen behind it; None means 0 if the mask is causal, else 1.
    within: whether only tokens of the own bucket are seen.
    strict: whether a token sees the last `chunk` members of its bucket in place
      of chunks.
    redraw: whether every training step draws new rotations.
    implementation: as of `bucketed_attention`.

  Example:
    >>> import jaxattn
    >>> method = Reformer(chunk=8)
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=8)
    >>> params, state = method.init(jax.random.key(0), shapes)
    >>> x = jax.random.normal(jax.random.key(1), (1, 30, 2, 8))
    >>> method.apply(params, state, x, x, x, mask=jaxattn.CAUSAL)[0].shape
    (1, 30, 2, 8)

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 2.
  """

  rounds: int = 2
  chunk: int = 64
  num_buckets: int | tuple[int, ...] | None = None
  before: int = 1
  after: int | None = None
  within: bool = False
  strict: bool = False
  redraw: bool = True
  implementation: base.Implementation = dataclasses.field(
    default=None, kw_only=True
  )

  honours = masks.ALL_FIELDS
  memory_exponent = 1.0
  shares_query_key = True

  def __post_init__(self) -> None:
    for name, least in (("rounds", 1), ("chunk", 1), ("before", 0)):
      if getattr(self, name) < least:
        raise ValueError(
          f"{name} must be at least {least}, got {getattr(self, name)}."
        )
    if self.after is not None and self.after < 0:
      raise ValueError(f"after must not be negative, got {self.after}.")
    lsh.bucket_factors(self.num_buckets, length=1, chunk=self.chunk)
    if self.strict and self.num_buckets is None:
      raise ValueError(
        "strict=True needs num_buckets: a number that follows the length would "
        "change what a token sees as tokens come."
      )
    if self.strict and (self.within or self.before != 1 or self.after):
      raise ValueError(
        "strict=True sees the last `chunk` members of the own bucket; leave "
        "out before, after and within."
      )

  @property
  def causality(self) -> base.Causality:
    """`strict` in the strict form, else `values`."""
    return base.STRICT if self.strict else "values"

  @property
  def time_exponent(self) -> float:
    """1 for a given number of buckets, else 1.5: that of hashing."""
    return 1.0 if self.num_buckets is not None else 1.5

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Draws the bits that rotations are drawn from; there are no parameters."""
    del shapes
    key = jax.random.bits(rng, (2,), jnp.uint32)
    return (), {"key": key, "steps": jnp.zeros((), jnp.int32)}

  def select(
    self,
    params: base.Params,
    state: base.State,
    query: jax.Array,
    key: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    rng: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Hashes the queries.

    Args:
      params: none.
      state: as of `init`.
      query: `[*B, T, N, H]`.
      key: not read.
      mask: not read.
      rng: not read; the state holds what rotations are drawn from.
      train: whether rotations are those of the next step.

    Returns:
      Buckets `[R, *B, T, N]` int32, which `apply` takes as `selection`.
    """
    del params, key, mask, rng
    return self._buckets(self._next(state) if train else state, query)

  def apply(
    self,
    params: base.Params,
    state: base.State,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    rng: jax.Array | None = None,
    train: bool = False,
    selection: jax.Array | None = None,
  ) -> tuple[jax.Array, base.State]:
    """Attends among tokens that hash alike; see `AttentionMethod`."""
    del params, rng
    base.check_qkv(query, key, value)
    if key.shape[-3] != query.shape[-3]:
      raise ValueError(
        "LSH attention is among the tokens of one sequence: query has length "
        f"{query.shape[-3]}, key {key.shape[-3]}."
      )
    mask.check(query.shape[:-3], query.shape[-3], query.shape[-3])
    if train:
      state = self._next(state)
    if selection is None:
      selection = self._buckets(state, query)
    out = lsh.lsh_attention(
      query,
      value,
      selection,
      chunk=self.chunk,
      before=self.before,
      after=self.after,
      within=self.within,
      window=self.chunk if self.strict else None,
      mask=mask,
      implementation=self.implementation,
    )
    return out, state

  def init_cache(
    self,
    params: base.Params,
    state: base.State,
    *,
    batch_shape: tuple[int, ...],
    max_length: int,
    shapes: base.AttentionShapes,
  ) -> base.Cache:
    """Makes an empty cache of `max_length` tokens a row; strict form only."""
    del params, state
    self._check_decodes()
    return group_cache.init(
      batch_shape,
      max_length,
      shapes,
      rounds=self.rounds,
      key_heads=shapes.num_heads,
    )

  def extend(
    self,
    params: base.Params,
    state: base.State,
    cache: base.Cache,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    key_valid: jax.Array | None = None,
  ) -> tuple[jax.Array, base.Cache]:
    """Appends new tokens and attends causally; see `AttentionMethod`.

    Tokens beyond the cache's `max_length` wrap around: keep count outside.
    """
    del params, key
    self._check_decodes()
    among = group_cache.Among(
      window=self.chunk,
      exclude_self=True,
      scale=1.0,
      implementation=self.implementation,
    )
    unit = lsh.unit_vectors(query)
    buckets = self._buckets(state, query)
    found, cache = among.extend(cache, query, unit, value, buckets, key_valid)
    there = None if key_valid is None else key_valid[..., None]
    wide = jnp.repeat(value, query.shape[-2] // value.shape[-2], axis=-2)
    out = lsh.or_self(found.out, found.lse, wide, there)
    return out.astype(query.dtype), cache

  def _check_decodes(self) -> None:
    if not self.strict:
      raise NotImplementedError(
        "reformer decodes in its strict form only, since the chunks of a token "
        "change as later tokens come; take strict=True and num_buckets."
      )

  def _next(self, state: base.State) -> base.State:
    return state | {"steps": state["steps"] + 1} if self.redraw else state

  def _buckets(self, state: base.State, query: jax.Array) -> jax.Array:
    """Buckets `[R, *B, T, N]` by the rotations of a state."""
    rng = jax.random.wrap_key_data(state["key"], impl=_GENERATOR)
    heads, depth = query.shape[-2:]
    rotations = lsh.draw_rotations(
      jax.random.fold_in(rng, state["steps"]),
      rounds=self.rounds,
      num_heads=heads,
      head_dim=depth,
      factors=lsh.bucket_factors(
        self.num_buckets, length=query.shape[-3], chunk=self.chunk
      ),
    )
    return lsh.hash_buckets(query, rotations)


def reformer(
  *,
  rounds: int = 2,
  chunk: int = 64,
  num_buckets: int | tuple[int, ...] | None = None,
  before: int = 1,
  after: int | None = None,
  within: bool = False,
  strict: bool = False,
  redraw: bool = True,
  implementation: base.Implementation = None,
) -> Reformer:
  """Returns Reformer's method: attention among tokens that hash alike.

  Queries are keys, so that tokens of one bucket are near each other; see
  `lsh_attention`. With `T <= chunk` it is dense attention with shared queries
  and keys, whatever the hash.

  Args:
    rounds: R, how often tokens are hashed: more miss fewer neighbours, at a
      cost that grows in proportion. It may be another for evaluation than for
      training: there are no parameters.
    chunk: tokens in a chunk of the sorted order.
    num_buckets: an even number, or a tuple of even factors that are hashed
      apart; None means `2 T / chunk`. A number that follows T is counted with
      padding: give it if rows are padded to different lengths.
    before: chunks seen before the own one.
    after: chunks seen behind it; None means 0 if the mask is causal, else 1.
    within: whether only tokens of the own bucket are seen.
    strict: whether a token sees the last `chunk` members of its bucket in place
      of chunks. Nothing then depends on later tokens, and the method decodes.
    redraw: whether every training step draws new rotations; those of the state
      serve otherwise, in evaluation always.
    implementation: as of `bucketed_attention`.

  Returns:
    A `Reformer` method. Under a causal mask its `causality` is `values`: no
    value or gradient of a later token arrives, but where later tokens are
    sorted may change which earlier ones share a chunk.

  Raises:
    ValueError: if an option is out of range.

  Example:
    >>> reformer(rounds=4).causality
    'values'
    >>> reformer(num_buckets=(8, 8), strict=True).causality
    'strict'

  Source: Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 2.
  """
  return Reformer(
    rounds=rounds,
    chunk=chunk,
    num_buckets=tuple(num_buckets)
    if isinstance(num_buckets, list)
    else num_buckets,
    before=before,
    after=after,
    within=within,
    strict=strict,
    redraw=redraw,
    implementation=implementation,
  )
