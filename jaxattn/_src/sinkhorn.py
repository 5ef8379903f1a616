"""Sparse Sinkhorn attention: the own block, and one that is sorted to it."""

import dataclasses
from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import kv_cache
from jaxattn._src import masks
from jaxattn._src import merge
from jaxattn._src import patterns
from jaxattn._src import sinkhorn_blocks as blocks_lib
from jaxattn._src import sinkhorn_sorting as sorting
from jaxattn._src.engines import block_sparse as engine

SortNetworks = Literal["shared", "per_head"]


@dataclasses.dataclass(frozen=True)
class Sinkhorn:
  """Attention to the own block and a sorted one; see `sinkhorn`.

  Parameters are those of the sorting networks: `in [G, F, W]`, `in_bias`,
  `out [G, W, blocks]`, `out_bias`; G is 1 if heads share one, else N.

  Attributes:
    max_length: most tokens of a row.
    block: tokens in a block.
    iterations: of the balancing.
    temperature: of the balancing.
    networks: whether heads share one sorting network, or have one each.
    hidden: width of the networks; None means that of the heads they serve.
    cut: blocks that are kept of the sorted ones (SortCut), or None.
    mixture: whether the mean with full attention is taken.
    noise: whether Gumbel noise is added in training.
    implementation: as of `block_sparse`.

  Example:
    >>> import jaxattn
    >>> method = Sinkhorn(max_length=32, block=8)
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=8)
    >>> params, state = method.init(jax.random.key(0), shapes)
    >>> x = jax.random.normal(jax.random.key(1), (1, 30, 2, 8))
    >>> method.apply(params, state, x, x, x, mask=jaxattn.CAUSAL)[0].shape
    (1, 30, 2, 8)

  Source: Tay et al., 2020, https://arxiv.org/abs/2002.11296.
  """

  max_length: int
  block: int = 64
  iterations: int = 7
  temperature: float = 0.75
  networks: SortNetworks = "shared"
  hidden: int | None = None
  cut: int | None = None
  mixture: bool = False
  noise: bool = True
  implementation: base.Implementation = dataclasses.field(
    default=None, kw_only=True
  )

  def __post_init__(self) -> None:
    for name, least in (("max_length", 1), ("block", 1), ("iterations", 0)):
      if getattr(self, name) < least:
        raise ValueError(
          f"{name} must be at least {least}, got {getattr(self, name)}."
        )
    if self.temperature <= 0:
      raise ValueError(f"temperature must be positive, got {self.temperature}.")
    if self.networks not in get_args(SortNetworks):
      raise ValueError(
        f"networks must be one of {get_args(SortNetworks)}, got "
        f"{self.networks!r}."
      )
    for name in ("hidden", "cut"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name} must be positive or None, got {value}.")
    if self.cut is not None and self.mixture:
      raise ValueError("cut and mixture exclude each other; leave one out.")

  @property
  def honours(self) -> frozenset[str]:
    """Padding; and causal masks without `cut`."""
    fields = {"key_valid", "query_valid"}
    return frozenset(fields if self.cut else fields | {"causal"})

  @property
  def causality(self) -> base.Causality:
    """Strict; with `cut`, none."""
    return base.NONE if self.cut else base.STRICT

  @property
  def time_exponent(self) -> float:
    """2: sorting moves `T / block` blocks to as many places, or full scores.

    With `cut` it is 1 as long as `(T / block)^2` shares cost little.
    """
    return 1.0 if self.cut else 2.0

  @property
  def memory_exponent(self) -> float:
    """1, the `(T / block)^2` shares aside."""
    return 1.0

  @property
  def num_blocks(self) -> int:
    """Blocks of a row of `max_length` tokens."""
    return -(-self.max_length // self.block)

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Draws the sorting networks; there is no state."""
    nets = 1 if self.networks == "shared" else shapes.num_heads
    width = shapes.num_heads * shapes.head_dim // nets
    params = sorting.init_network(
      rng,
      nets=nets,
      inputs=2 * width,
      hidden=self.hidden or width,
      blocks=self.num_blocks,
      dtype=shapes.dtype,
    )
    return params, ()

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
  ) -> tuple[jax.Array, base.State]:
    """Attends to the own and the sorted block; see `AttentionMethod`."""
    base.check_qkv(query, key, value)
    self._check_lengths(query.shape[-3], key.shape[-3])
    mask.only(*self.honours, by=f"sinkhorn with cut={self.cut}")
    mask.check(query.shape[:-3], query.shape[-3], key.shape[-3])
    found = self._blocks(query, key, value, mask)
    noise = rng if train and self.noise else None
    causal = mask.causal
    embedding = self._embed(found, causal)
    shares = self._shares(params, embedding, found, causal, noise)
    if self.cut:
      partial = found.first(shares, self.cut)
    else:
      partial = merge.merge(found.local(causal), found.sorted(shares, causal))
    out = partial.out[..., : query.shape[-3], :, :]
    if self.mixture:
      out = 0.5 * (out + self._full(query, key, value, mask))
    return out.astype(query.dtype), state

  def init_cache(
    self,
    params: base.Params,
    state: base.State,
    *,
    batch_shape: tuple[int, ...],
    max_length: int,
    shapes: base.AttentionShapes,
  ) -> base.Cache:
    """Makes an empty cache of `max_length` tokens a row.

    It holds keys and values, the sum of all tokens so far, and what the sorting
    network knows of every block.
    """
    del state
    self._check_decodes()
    if max_length > self.max_length:
      raise ValueError(
        f"max_length of the cache must be at most {self.max_length}, that of "
        f"the method; got {max_length}."
      )
    cache = kv_cache.init(batch_shape, max_length, shapes)
    nets, inputs = params["in"].shape[:2]
    blocks = -(-max_length // self.block)
    return cache | {
      "total": jnp.zeros((*batch_shape, nets, inputs), jnp.float32),
      "embedding": jnp.zeros((*batch_shape, blocks, nets, inputs), jnp.float32),
    }

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

    A token reads all keys and values once, since the block that is sorted to
    its own is a mixture of all before. Tokens beyond the cache's `max_length`
    wrap around: keep count outside.
    """
    del state
    self._check_decodes()
    start = cache["length"]
    grown = kv_cache.write(
      {n: cache[n] for n in ("key", "value", "length")}, key, value, key_valid
    )
    grown |= self._extend_embedding(cache, query, key, key_valid)
    size, new = cache["key"].shape[-3], query.shape[-3]
    place = jnp.arange(size, dtype=jnp.int32)
    place = jax.lax.broadcast_to_rank(place, start.ndim + 1)
    offset = place - start[..., None]
    at = jnp.clip(offset, 0, new - 1)[..., None, None]
    mask = masks.Mask(causal=True, key_valid=place < grown["length"][..., None])
    found = self._blocks(
      jnp.take_along_axis(query, at, axis=-3),
      grown["key"].astype(query.dtype),
      grown["value"].astype(query.dtype),
      mask,
    )
    shares = self._shares(params, grown["embedding"], found, True, None)
    offset = jnp.arange(new, dtype=jnp.int32)
    position = start[..., None] + jax.lax.broadcast_to_rank(
      offset, start.ndim + 1
    )
    position = jnp.minimum(position, size - 1)
    if new == 1:
      out = found.one(query, shares, position)
    else:
      whole = merge.merge(found.local(True), found.sorted(shares, True))
      out = jnp.take_along_axis(whole.out, position[..., None, None], axis=-3)
    if self.mixture:
      seen = dataclasses.replace(
        mask, query_positions=position, key_positions=place
      )
      keys, values = (grown[n].astype(query.dtype) for n in ("key", "value"))
      out = 0.5 * (out + self._full(query, keys, values, seen))
    if key_valid is not None:
      out = jnp.where(key_valid[..., None, None], out, 0.0)
    return out.astype(query.dtype), grown

  def _blocks(
    self, query: jax.Array, key: jax.Array, value: jax.Array, mask: masks.Mask
  ) -> blocks_lib.Blocks:
    if self.networks == "per_head":
      key, value = (_wide(x, query.shape[-2]) for x in (key, value))
    return blocks_lib.fill(
      query,
      key,
      value,
      mask,
      block=self.block,
      implementation=self.implementation,
    )

  def _features(self, query: jax.Array, key: jax.Array) -> jax.Array:
    """What is summed for the sorting networks, `[*B, T, G, F]` float32."""
    parts = [
      x.astype(jnp.float32) for x in (query, _wide(key, query.shape[-2]))
    ]
    if self.networks == "shared":
      parts = [x.reshape(*x.shape[:-2], 1, -1) for x in parts]
    return jnp.concatenate(parts, axis=-1)

  def _embed(self, found: blocks_lib.Blocks, causal: bool) -> jax.Array:
    """Embeddings of blocks, `[*B, n, G, F]`."""
    query = blocks_lib.zero_where(found.query, found.query_valid)
    x = self._features(query, found.key)
    flat = x.reshape(*x.shape[:-2], -1)
    sums = sorting.block_sums(flat, None, block=self.block, causal=causal)
    return sums.reshape(*sums.shape[:-1], *x.shape[-2:])

  def _extend_embedding(
    self, cache: Any, query: jax.Array, key: jax.Array, key_valid: Any
  ) -> dict[str, jax.Array]:
    """The embeddings of blocks that begin among the new tokens."""
    x = self._features(query, key)  # [*B, n, G, F]
    if key_valid is not None:
      x = jnp.where(key_valid[..., None, None], x, 0.0)
    start, count = cache["length"], cache["embedding"].shape[-3]
    total = cache["total"][..., None, :, :] + jnp.cumsum(x, axis=-3)
    first = jnp.arange(count, dtype=jnp.int32) * self.block
    first = jax.lax.broadcast_to_rank(first, start.ndim + 1)
    offset = first - start[..., None]
    new = query.shape[-3]
    begins = (offset >= 0) & (offset < new)
    if key_valid is not None:
      begins &= first < (start + jnp.sum(key_valid, axis=-1))[..., None]
    at = jnp.clip(offset, 0, new - 1)[..., None, None]
    found = jnp.take_along_axis(total, at, axis=-3)
    embedding = jnp.where(begins[..., None, None], found, cache["embedding"])
    return {"total": total[..., -1, :, :], "embedding": embedding}

  def _shares(
    self,
    params: base.Params,
    embedding: jax.Array,
    found: blocks_lib.Blocks,
    causal: bool,
    rng: jax.Array | None,
  ) -> jax.Array:
    """How blocks are sorted, `[*B, G, n, n]`."""
    logits = sorting.sort_logits(params, embedding)
    if rng is not None:
      logits = sorting.gumbel_noise(rng, logits)
    valid = found.present()
    return sorting.sinkhorn_balance(
      logits,
      iterations=self.iterations,
      temperature=self.temperature,
      causal=causal,
      valid=None if valid is None else valid[..., None, :],
    )

  def _full(
    self, query: Any, key: Any, value: Any, mask: masks.Mask
  ) -> jax.Array:
    return engine.block_sparse(
      query,
      key,
      value,
      pattern=patterns.Full(),
      mask=mask,
      return_lse=True,
      implementation=self.implementation,
    ).out

  def _check_lengths(self, q_len: int, k_len: int) -> None:
    if q_len != k_len:
      raise ValueError(
        "sinkhorn sorts the blocks of one sequence: query has length "
        f"{q_len}, key {k_len}."
      )
    if q_len > self.max_length:
      raise ValueError(
        f"length {q_len} exceeds max_length {self.max_length} of sinkhorn."
      )

  def _check_decodes(self) -> None:
    if self.cut:
      raise NotImplementedError(
        "sinkhorn with cut is for encoders and not strict: every query sees "
        "blocks sorted from the whole row. Leave cut out to decode."
      )


def sinkhorn(
  *,
  max_length: int,
  block: int = 64,
  iterations: int = 7,
  temperature: float = 0.75,
  networks: SortNetworks = "shared",
  hidden: int | None = None,
  cut: int | None = None,
  mixture: bool = False,
  noise: bool = True,
  implementation: base.Implementation = None,
) -> Sinkhorn:
  """Returns Sparse Sinkhorn attention: the own block, and one sorted to it.

  A small network scores for every block which others it wants, and Sinkhorn
  balancing makes of the scores a soft permutation. Keys and values are sorted
  by it, block by block, and a query attends in one softmax to its own block and
  to the block that is sorted to the same place.

  Args:
    max_length: most tokens of a row; the networks have one output for each of
      its blocks.
    block: tokens in a block.
    iterations: of the balancing, 5 to 10; few are a feature, see
      `sinkhorn_balance`.
    temperature: of the balancing; lower is nearer to a permutation.
    networks: `shared`: one network of all heads' queries and keys sorts for all
      heads; `per_head`: each query head has its own.
    hidden: width of the networks; None means that of the heads they serve.
    cut: SortCut, for encoders: all queries attend to the first `cut` sorted
      blocks, and to nothing else.
    mixture: whether the mean of it and of full attention is taken; quadratic.
    noise: whether Gumbel noise is added to the scores in training, where an
      `rng` is given.
    implementation: as of `block_sparse`.

  Returns:
    A `Sinkhorn` method. Under a causal mask a block is sorted from earlier ones
    only, by what precedes its second token: nothing leaks, and it decodes. Time
    is `T block` for attention and `T^2 / block` for sorting.

  Raises:
    ValueError: if an option is out of range.

  Example:
    >>> sinkhorn(max_length=1024).num_blocks
    16

  Source: Tay et al., 2020, https://arxiv.org/abs/2002.11296.
  """
  return Sinkhorn(
    max_length=max_length,
    block=block,
    iterations=iterations,
    temperature=temperature,
    networks=networks,
    hidden=hidden,
    cut=cut,
    mixture=mixture,
    noise=noise,
    implementation=implementation,
  )


def _wide(x: jax.Array, heads: int) -> jax.Array:
  """Keys or values of every query head."""
  return jnp.repeat(x, heads // x.shape[-2], axis=-2)
