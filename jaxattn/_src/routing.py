"""Routing Transformer's attention: inside clusters found by k-means."""

import dataclasses
from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import group_cache
from jaxattn._src import kmeans
from jaxattn._src import lsh
from jaxattn._src import masks
from jaxattn._src.engines import bucketed
from jaxattn._src.engines import gathered

Mode = Literal["balanced", "nearest", "random"]
_GENERATOR = "threefry2x32"


def routing_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_index: jax.Array,
  key_index: jax.Array,
  *,
  mask: masks.Mask = masks.FULL,
  scale: float | None = None,
  implementation: base.Implementation = None,
) -> jax.Array:
  """Attention inside clusters, put back in the order of the tokens.

  A token that stands in several clusters gets the mean of what it sees there;
  clusters where it sees nothing do not count.

  Args:
    query: `[*B, T, N, H]` floats.
    key: `[*B, S, K, H]` floats; K divides N (grouped-query attention).
    value: `[*B, S, K, V]` floats.
    query_index: `[*B, N, C, w]` ints, the queries of every cluster, -1 for an
      empty slot.
    key_index: `[*B, N, C, u]` ints, the keys of every cluster.
    mask: every field is honoured, by the tokens' own positions.
    scale: factor of the scores, default `1 / sqrt(H)`.
    implementation: as of `gathered_attention`.

  Returns:
    `[*B, T, N, V]` in query's dtype. A token in no cluster, or that sees no key
    in any, is exactly zero.

  Raises:
    ValueError: if shapes disagree.
    NotImplementedError: if the named implementation cannot serve the call.

  Example:
    >>> x = jnp.ones((1, 6, 1, 8))
    >>> index = jnp.array([[0, 2, 4], [1, 3, -1]])[None, None]
    >>> out = routing_attention(x, x, x, index, index)
    >>> out[0, :, 0, 0].tolist()  # Token 5 is in no cluster.
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]

  Source: Roy et al., 2021, https://arxiv.org/abs/2003.05997, section 4.
  """
  slots = gathered.gathered_attention(
    query,
    key,
    value,
    query_index,
    key_index,
    mask=mask,
    scale=scale,
    implementation=implementation,
  )
  heads, length = slots.lse.shape[-3], query.shape[-3]
  seen = slots.lse > -jnp.inf
  lines = seen.size // (seen.shape[-2] * seen.shape[-1])
  at = jnp.where(seen, query_index, 0).reshape(lines, -1)
  line = jnp.arange(lines, dtype=jnp.int32)[:, None] * length
  at = (at + line).reshape(-1)

  def add_up(x: jax.Array) -> jax.Array:
    total = jnp.zeros((lines * length, x.shape[-1]), jnp.float32)
    x = x.reshape(-1, x.shape[-1])
    return total.at[at].add(x, mode="promise_in_bounds")

  count = add_up(seen.astype(jnp.float32)[..., None])
  out = add_up(slots.out) / jnp.maximum(count, 1.0)
  out = out.reshape(*query.shape[:-3], heads, length, -1)
  return jnp.swapaxes(out, -2, -3).astype(query.dtype)


@dataclasses.dataclass(frozen=True)
class Routing:
  """Attention inside clusters; see `routing`.

  State: `centroids [N, C, H]` float32, or the bits `key` of random members.

  Attributes:
    num_clusters: C.
    window: w, tokens of a cluster; None means `ceil(T / C)`.
    mode: how members are chosen: `balanced`, `nearest`, `random`.
    decay: of the centroids' moving average.
    scale: factor of the scores; None means `1 / sqrt(H)`.
    axis_name: as of the update of the centroids.
    implementation: as of the engines.

  Example:
    >>> import jaxattn
    >>> method = Routing(num_clusters=4, window=8)
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=8)
    >>> params, state = method.init(jax.random.key(0), shapes)
    >>> x = jax.random.normal(jax.random.key(1), (1, 30, 2, 8))
    >>> method.apply(params, state, x, x, x, mask=jaxattn.CAUSAL)[0].shape
    (1, 30, 2, 8)

  Source: Roy et al., 2021, https://arxiv.org/abs/2003.05997.
  """

  num_clusters: int
  window: int | None = None
  mode: Mode = "balanced"
  decay: float = 0.999
  scale: float | None = None
  axis_name: Any = None
  implementation: base.Implementation = dataclasses.field(
    default=None, kw_only=True
  )

  honours = masks.ALL_FIELDS

  def __post_init__(self) -> None:
    if self.mode not in get_args(Mode):
      raise ValueError(
        f"mode must be one of {get_args(Mode)}, got {self.mode!r}."
      )
    if self.num_clusters < 1:
      raise ValueError(
        f"num_clusters must be positive, got {self.num_clusters}."
      )
    if self.window is not None and self.window < 1:
      raise ValueError(f"window must be positive, got {self.window}.")
    if self.mode == "nearest" and self.window is None:
      raise ValueError(
        "mode='nearest' needs window: one that follows the length would change "
        "what a token sees as tokens come."
      )
    if not 0 <= self.decay <= 1:
      raise ValueError(f"decay must be in [0, 1], got {self.decay}.")

  @property
  def causality(self) -> base.Causality:
    """`strict` by the nearest centroid, else `values`."""
    return base.STRICT if self.mode == "nearest" else "values"

  @property
  def shares_query_key(self) -> bool:
    """Whether queries are keys: so that one nearest centroid serves both."""
    return self.mode == "nearest"

  @property
  def time_exponent(self) -> float:
    """1 for a given window, else 2: `C w^2` with `w = T / C`."""
    return 1.0 if self.window is not None else 2.0

  @property
  def memory_exponent(self) -> float:
    """That of the scores of one cluster."""
    return self.time_exponent

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Draws the centroids; there are no parameters."""
    if self.mode == "random":
      return (), {"key": jax.random.bits(rng, (2,), jnp.uint32)}
    centroids = kmeans.draw_centroids(
      rng,
      num_heads=shapes.num_heads,
      num_clusters=self.num_clusters,
      head_dim=shapes.head_dim,
    )
    return (), {"centroids": centroids}

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
  ) -> Any:
    """Chooses the members of the clusters.

    Args:
      params: none.
      state: as of `init`.
      query: `[*B, T, N, H]`.
      key: `[*B, S, K, H]`; not read by the nearest centroid.
      mask: says which tokens are padding.
      rng: not read.
      train: not read: members are those of the centroids before the step.

    Returns:
      Queries `[*B, N, C, w]` and keys `[*B, N, C, u]` of every cluster; or by
      the nearest centroid the cluster of every token, `[1, *B, T, N]`.
    """
    del params, rng, train
    query = kmeans.plain_layer_norm(query)
    if self.mode == "nearest":
      return kmeans.nearest(query, state["centroids"])[None]
    return self._members(state, query, self._keys(query, key), mask)

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
    selection: Any = None,
  ) -> tuple[jax.Array, base.State]:
    """Attends inside clusters; see `AttentionMethod`."""
    del params, rng
    base.check_qkv(query, key, value)
    q_len, k_len = query.shape[-3], key.shape[-3]
    mask.check(query.shape[:-3], q_len, k_len)
    self._check_heads(state, query)
    dtype, query = query.dtype, kmeans.plain_layer_norm(query)
    if self.mode == "nearest":
      if q_len != k_len:
        raise ValueError(
          "mode='nearest' is among the tokens of one sequence: query has "
          f"length {q_len}, key {k_len}."
        )
      return self._nearest(state, query, value, mask, train, selection)
    keys = kmeans.plain_layer_norm(key)
    if selection is None:
      wide = self._wide(keys, query.shape[-2])
      selection = self._members(state, query, wide, mask)
    out = routing_attention(
      query.astype(dtype),
      keys.astype(dtype),
      value,
      *selection,
      mask=mask,
      scale=self.scale,
      implementation=self.implementation,
    )
    if train:
      sides = (query, self._wide(keys, query.shape[-2]))
      state = self._moved(state, sides, (mask.query_valid, mask.key_valid))
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
    """Makes an empty cache of `max_length` tokens; nearest centroids only."""
    del params, state
    self._check_decodes()
    return group_cache.init(
      batch_shape, max_length, shapes, rounds=1, key_heads=shapes.num_heads
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
    query = kmeans.plain_layer_norm(query)
    groups = kmeans.nearest(query, state["centroids"])[None]
    assert self.window is not None
    among = group_cache.Among(
      window=self.window,
      exclude_self=True,
      scale=self.scale,
      implementation=self.implementation,
    )
    low = query.astype(value.dtype)
    found, cache = among.extend(cache, low, low, value, groups, key_valid)
    there = None if key_valid is None else key_valid[..., None]
    wide = self._wide(value, query.shape[-2])
    out = lsh.or_self(found.out, found.lse, wide, there)
    return out.astype(value.dtype), cache

  def _nearest(
    self,
    state: base.State,
    query: jax.Array,
    value: jax.Array,
    mask: masks.Mask,
    train: bool,
    selection: Any,
  ) -> tuple[jax.Array, base.State]:
    """Attention to the last members of the own cluster, queries being keys."""
    if selection is None:
      selection = kmeans.nearest(query, state["centroids"])[None]
    assert self.window is not None
    wide = self._wide(value, query.shape[-2])
    low = query.astype(value.dtype)
    found = bucketed.bucketed_attention(
      low,
      low,
      wide,
      selection,
      reach=bucketed.Reach(chunk=self.window, window=self.window),
      mask=mask,
      exclude_self=True,
      scale=self.scale,
      implementation=self.implementation,
    )
    there = lsh.there(mask, found.lse.ndim)
    out = lsh.or_self(found.out, found.lse, wide, there).astype(value.dtype)
    if train:
      valid = None if there is None else there[..., 0]
      state = self._moved(state, (query,), (valid,))
    return out, state

  def _members(
    self, state: base.State, query: jax.Array, key: jax.Array, mask: masks.Mask
  ) -> tuple[jax.Array, jax.Array]:
    """Queries and keys of every cluster, of normalised vectors."""
    valid = (mask.query_valid, mask.key_valid)
    if self.mode == "random":
      sides = [self._random_scores(state, x) for x in (query, key)]
    else:
      sides = [kmeans.scores(x, state["centroids"]) for x in (query, key)]
    sides = [jax.lax.stop_gradient(x) for x in sides]
    found = [
      kmeans.top_members(
        x, there, size=self.window or -(-x.shape[-1] // self.num_clusters)
      )
      for x, there in zip(sides, valid, strict=True)
    ]
    return found[0], found[1]

  def _random_scores(self, state: base.State, x: jax.Array) -> jax.Array:
    """`[*B, N, C, T]`, the same for queries and keys of one length."""
    rng = jax.random.wrap_key_data(state["key"], impl=_GENERATOR)
    length, heads = x.shape[-3:-1]
    drawn = jax.random.uniform(rng, (heads, self.num_clusters, length))
    return jnp.broadcast_to(drawn, (*x.shape[:-3], *drawn.shape))

  def _moved(self, state: base.State, sides: Any, valid: Any) -> base.State:
    if self.mode == "random":
      return state
    centroids = kmeans.update(
      state["centroids"],
      sides,
      valid,
      decay=self.decay,
      axis_name=self.axis_name,
    )
    return {"centroids": jax.lax.stop_gradient(centroids)}

  def _keys(self, query: jax.Array, key: jax.Array) -> jax.Array:
    return self._wide(kmeans.plain_layer_norm(key), query.shape[-2])

  def _wide(self, x: jax.Array, heads: int) -> jax.Array:
    """Keys or values of every query head."""
    return jnp.repeat(x, heads // x.shape[-2], axis=-2)

  def _check_heads(self, state: base.State, query: jax.Array) -> None:
    if self.mode == "random":
      return
    wanted = (query.shape[-2], self.num_clusters, query.shape[-1])
    if state["centroids"].shape != wanted:
      raise ValueError(
        f"state: centroids must be [N, C, H] = {wanted}, got "
        f"{state['centroids'].shape}."
      )

  def _check_decodes(self) -> None:
    if self.mode != "nearest":
      raise NotImplementedError(
        f"routing with mode={self.mode!r} is not strict: which tokens a "
        "cluster keeps changes as later ones come. Take mode='nearest' to "
        "decode."
      )


def routing(
  *,
  num_clusters: int,
  window: int | None = None,
  mode: Mode = "balanced",
  decay: float = 0.999,
  scale: float | None = None,
  axis_name: Any = None,
  implementation: base.Implementation = None,
) -> Routing:
  """Returns Routing Transformer's method: attention inside k-means clusters.

  Queries and keys are normalised without parameters. In the mode `balanced`
  every cluster takes the `window` queries and the `window` keys that are
  nearest to its centroid, and a query attends to the keys of its clusters.
  Centroids are state: under `train=True` they move to the means of what is
  nearest to them, and are never differentiated.

  Args:
    num_clusters: C; near the root of the length it costs least.
    window: w, queries and keys of a cluster; None means `ceil(T / C)`, the
      length counted with padding.
    mode: `balanced`; `nearest`: a token is in the cluster of its nearest
      centroid only, and sees its last `window` members, itself if there are no
      others; queries are keys in it; `random`: as balanced, with members drawn
      at random, for comparison.
    decay: of the centroids' moving average, in [0, 1].
    scale: factor of the scores; None means `1 / sqrt(H)`. The authors' code has
      1, so that scores reach H.
    axis_name: of the devices over which the batch is split inside `shard_map`;
      under plain `jit` leave it out.
    implementation: as of the engines.

  Returns:
    A `Routing` method. Under a causal mask its `causality` is `values`: no
    value or gradient of a later token arrives, but later tokens may take the
    place of earlier ones in a cluster. `nearest` is strict, and decodes.

  Raises:
    ValueError: if an option is out of range.

  Example:
    >>> routing(num_clusters=8).causality
    'values'
    >>> routing(num_clusters=8, window=64, mode="nearest").causality
    'strict'

  Source: Roy et al., 2021, https://arxiv.org/abs/2003.05997.
  """
  return Routing(
    num_clusters=num_clusters,
    window=window,
    mode=mode,
    decay=decay,
    scale=scale,
    axis_name=axis_name,
    implementation=implementation,
  )
