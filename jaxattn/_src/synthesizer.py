"""Synthesizer: attention whose logits are learned instead of compared."""

import dataclasses
import functools
import math
from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import kv_cache
from jaxattn._src import masks
from jaxattn._src import synthetic_attention
from jaxattn._src import synthetic_logits as sources

PartName = Literal[
  "random",
  "fixed_random",
  "factorized_random",
  "dense",
  "factorized_dense",
  "dot_product",
]
# In this order parts draw their parameters, wherever they stand in a mixture.
_NAMES: tuple[PartName, ...] = get_args(PartName)
_FIXED = "fixed_random"
_RANDOM = ("random", _FIXED, "factorized_random")
_DENSE = ("dense", "factorized_dense")
_MIXINGS = ("softmax", "sum")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesizer:
  """Softmax attention whose logits come from learned parts, or their mixture.

  With `alpha = softmax(mixing)`, learned and uniform at the start,

      out_i = sum_j softmax_j(sum_m alpha_m B_m[i, j]) v_j

  over the keys `j` that the mask allows. The parts of head n, with L for
  `max_length`, are

  - `random`: `B = R`, a trained matrix `[L, L]`; `fixed_random`: as drawn,
    kept in the state.
  - `factorized_random`: `B = R_1 R_2^T`, of rank `rank`.
  - `dense`: `B_i = relu(q_i + b_1) W_2 + b_2`, with `W_2 [H, L]`.
  - `factorized_dense`: `B_i` is the outer product of two vectors of a and b
    numbers, each made as in `dense`; a b is at least L.
  - `dot_product`: `B_ij = q_i . k_j / sqrt(H)`.

  What a part does not read has no influence, which is what defines it: without
  `dot_product` the numbers in `key` do not matter, only its shape, and with
  random parts alone those in `query` do not either. `q_i`, the product of a
  token and a layer's query kernel, is the first layer of the dense parts.

  Rows and columns of random parts go by the index in the array, as do columns
  of dense ones; positions in the mask serve `causal` only.

  Attributes:
    max_length: L, the longest row of queries or keys.
    parts: names of one or more parts.
    mixing: `softmax` for weights that sum to one, `sum` for weights of one.
    rank: of `factorized_random`; 8 if None.
    factors: `(a, b)` of `factorized_dense`; nearly equal if None.
    share_heads: whether dense parts have one second layer for all heads.
    stddev: of the logits of random parts when drawn; `L ** -0.5` if None.

  Example:
    >>> method = synthesizer(max_length=16, parts=("random", "dot_product"))
    >>> params, state = method.init(
    ...     jax.random.key(0), jaxattn.AttentionShapes(num_heads=2, head_dim=8))
    >>> x = jnp.ones((1, 9, 2, 8))
    >>> method.apply(params, state, x, x, x, mask=jaxattn.CAUSAL)[0].shape
    (1, 9, 2, 8)

  Source: Tay et al., 2021, https://arxiv.org/abs/2005.00743.
  """

  max_length: int
  parts: tuple[PartName, ...] = ("random",)
  mixing: Literal["softmax", "sum"] = "softmax"
  rank: int | None = None
  factors: tuple[int, int] | None = None
  share_heads: bool = False
  stddev: float | None = None

  honours = masks.ALL_FIELDS
  causality = base.STRICT
  time_exponent = 2.0

  def __post_init__(self) -> None:
    parts, length = self.parts, self.max_length
    if isinstance(parts, list):
      object.__setattr__(self, "parts", parts := tuple(parts))
    if length < 1:
      raise ValueError(f"max_length must be at least 1, got {length}.")
    if (
      not isinstance(parts, tuple)
      or not parts
      or len(set(parts)) < len(parts)
      or not set(parts) <= set(_NAMES)
    ):
      raise ValueError(
        f"parts must be a tuple of different names out of {_NAMES}, got "
        f"{parts!r}."
      )
    if self.mixing not in _MIXINGS:
      raise ValueError(f"mixing must be in {_MIXINGS}, got {self.mixing!r}.")
    self._fill("rank", 8, "factorized_random")
    side = math.isqrt(length - 1) + 1
    near = (side, -(-length // side))
    self._fill("factors", near, "factorized_dense")
    self._fill("stddev", length**-0.5, *_RANDOM)
    if self.share_heads and not set(_DENSE) & set(parts):
      raise ValueError(f"share_heads serves dense parts, none in {parts}.")
    if self.rank is not None and self.rank < 1:
      raise ValueError(f"rank must be at least 1, got {self.rank}.")
    if self.stddev is not None and self.stddev < 0:
      raise ValueError(f"stddev must not be negative, got {self.stddev}.")
    if self.factors is not None:
      object.__setattr__(self, "factors", tuple(self.factors))
      if len(self.factors) != 2 or min(self.factors) < 1:
        raise ValueError(f"factors must be two sizes, got {self.factors}.")
      if math.prod(self.factors) < length:
        raise ValueError(
          f"factors must make max_length = {length} pairs or more, got "
          f"{self.factors}."
        )

  def _fill(self, name: str, default: Any, *serves: str) -> None:
    """Sets the default of an option, or refuses it if it serves no part."""
    if not set(serves) & set(self.parts):
      if getattr(self, name) is not None:
        raise ValueError(
          f"{name} serves {', '.join(serves)}, none of which is in parts "
          f"{self.parts}; leave it out."
        )
    elif getattr(self, name) is None:
      object.__setattr__(self, name, default)

  @property
  def memory_exponent(self) -> float:
    """Two where a part has a matrix for parameters, else one."""
    return 2.0 if {"random", _FIXED} & set(self.parts) else 1.0

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Draws the parameters of the parts; those of `fixed_random` are state."""
    drawn = {
      name: part.init(jax.random.fold_in(rng, _NAMES.index(name)), shapes)
      for name, part in self._parts().items()
    }
    state = {_FIXED: drawn.pop(_FIXED)} if _FIXED in drawn else ()
    params: dict[str, Any] = {n: p for n, p in drawn.items() if p}
    if self._mixes:
      params["mixing"] = jnp.zeros(len(self.parts), shapes.dtype)
    return params or (), state

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
    """Attends by the mixture of all parts; see `AttentionMethod`.

    Raises ValueError if query or key is longer than `max_length`.
    """
    del rng, train
    base.check_qkv(query, key, value)
    mask.check(query.shape[:-3], query.shape[-3], key.shape[-3])
    self._check_length("query", query.shape[-3])
    self._check_length("key", key.shape[-3])
    return self._mix(params, state, query, key, value, mask), state

  def init_cache(
    self,
    params: base.Params,
    state: base.State,
    *,
    batch_shape: tuple[int, ...],
    max_length: int,
    shapes: base.AttentionShapes,
  ) -> base.Cache:
    """Makes an empty cache of values, and of keys with `dot_product`.

    Raises ValueError if the cache would be longer than the method's rows.
    """
    del params, state
    self._check_length("the cache", max_length)
    cache = kv_cache.init(batch_shape, max_length, shapes)
    if not self._reads(sources.KEY):
      del cache["key"]
    return cache

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

    Tokens of a row that has outgrown the cache come out as NaN.
    """
    base.check_qkv(query, key, value)
    grown = _write(cache, key, value, key_valid)
    length = cache["length"][..., None]
    index = jnp.arange(query.shape[-3], dtype=jnp.int32)
    index = length + jax.lax.broadcast_to_rank(index, length.ndim)
    # Slot j holds token j, so causality hides the slots that are still empty.
    mask = masks.Mask(causal=True, query_positions=index, query_valid=key_valid)
    values = grown["value"]
    keys = grown.get("key", values)
    out = self._mix(params, state, query, keys, values, mask, by_position=True)
    spilled = grown["length"] > values.shape[-3]
    if key_valid is not None:
      spilled = spilled[..., None] & key_valid
    spilled = spilled.reshape(*spilled.shape, *(1,) * (out.ndim - spilled.ndim))
    return jnp.where(spilled, jnp.nan, out), grown

  def _parts(self) -> dict[str, sources.Part]:
    """The parts by name, in the order given."""
    rank, stddev, length = self.rank or 0, self.stddev or 0.0, self.max_length
    shared, factors = self.share_heads, self.factors or (0, 0)
    known: dict[str, sources.Part] = {
      "random": sources.Random(length, stddev),
      _FIXED: sources.Random(length, stddev),
      "factorized_random": sources.FactorizedRandom(length, rank, stddev),
      "dense": sources.Dense(length, shared),
      "factorized_dense": sources.FactorizedDense(factors, shared),
      "dot_product": sources.DotProduct(),
    }
    return {name: known[name] for name in self.parts}

  @property
  def _mixes(self) -> bool:
    return self.mixing == "softmax" and len(self.parts) > 1

  def _reads(self, what: str) -> bool:
    return any(what in part.reads for part in self._parts().values())

  def _check_length(self, what: str, length: int) -> None:
    if length > self.max_length:
      raise ValueError(
        f"{what} has {length} tokens, more than max_length = "
        f"{self.max_length} of this Synthesizer, which has no logits for them; "
        "make it with a larger max_length, or cut the input."
      )

  def _mix(
    self,
    params: base.Params,
    state: base.State,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: masks.Mask,
    *,
    by_position: bool = False,
  ) -> jax.Array:
    """Attends; rows of tables go by index, or by `mask.query_positions`."""
    parts, tables, rest = self._parts(), {}, {}
    held = {**(params or {}), **jax.lax.stop_gradient(state or {})}
    for name, part in parts.items():
      tables[name], other = part.split(held.get(name), key.shape[-3])
      rest[name] = _float32(other)
    weights = None
    if self._mixes:
      weights = jax.nn.softmax(held["mixing"].astype(jnp.float32))
    key = key.astype(jnp.float32)

    def logits_of(rows: synthetic_attention.Rows) -> jax.Array:
      index = rows["mask"]["query_positions"] if by_position else None
      at = tables if by_position else rows["tables"]
      return _mixture(
        [
          part.logits(_take(at[n], index), rest[n], rows["query"], key)
          for n, part in parts.items()
        ],
        weights,
      )

    q_len, heads = query.shape[-3:-1]
    rows: synthetic_attention.Rows = {
      "mask": synthetic_attention.row_fields(mask, q_len)
    }
    rows["query"] = query if self._reads(sources.QUERY) else None
    if not by_position:
      rows["tables"] = jax.tree.map(lambda x: x[:, :q_len], tables)
    out = synthetic_attention.attend_rows(
      logits_of, rows, value, mask, (heads, q_len), query.dtype
    )
    return out.astype(query.dtype)


def synthesizer(
  *,
  max_length: int,
  parts: tuple[PartName, ...] = ("random",),
  mixing: Literal["softmax", "sum"] = "softmax",
  rank: int | None = None,
  factors: tuple[int, int] | None = None,
  share_heads: bool = False,
  stddev: float | None = None,
) -> Synthesizer:
  """Returns a Synthesizer: attention by logits that are learned.

  Args:
    max_length: L, the longest row of queries or keys; shorter ones use the
      first rows and columns.
    parts: one or more of `random`, `fixed_random`, `factorized_random`,
      `dense`, `factorized_dense`, `dot_product`; several are mixed.
    mixing: `softmax` gives the parts learned weights that sum to one, uniform
      at the start; `sum` adds the parts.
    rank: of `factorized_random`, default 8.
    factors: `(a, b)` of `factorized_dense`, a b at least L; by default nearly
      equal.
    share_heads: whether dense parts have one second layer for all heads.
    stddev: of the logits of random parts when drawn, default `L ** -0.5`,
      which starts near a uniform average.

  Returns:
    A `Synthesizer` method; `strict` under a causal mask.

  Raises:
    ValueError: if an option is out of range or serves none of the parts.

  Example:
    >>> method = synthesizer(max_length=512, parts=("dense", "dot_product"))
    >>> method.parts
    ('dense', 'dot_product')

  Source: Tay et al., 2021, https://arxiv.org/abs/2005.00743. Differs: the first
  layer of the dense parts is the layer's query projection, so that a mixture
  with `dot_product` shares it, as in the authors' code. That code has one
  second layer for all heads (`share_heads`) and no biases; its weights of two
  parts by a sigmoid are the same map as the softmax here.
  """
  return Synthesizer(
    max_length=max_length,
    parts=parts,
    mixing=mixing,
    rank=rank,
    factors=factors,
    share_heads=share_heads,
    stddev=stddev,
  )


def _write(
  cache: base.Cache,
  key: jax.Array,
  value: jax.Array,
  key_valid: jax.Array | None,
) -> base.Cache:
  """Appends new tokens to a cache with or without keys."""
  # Values take the place of keys that are not kept; the copy is dropped.
  whole = {"key": cache["value"], **cache}
  kept = key if "key" in cache else value
  grown = kv_cache.write(whole, kept, value, key_valid)
  return {name: grown[name] for name in cache}


def _mixture(logits: list[jax.Array], weights: jax.Array | None) -> jax.Array:
  """The sum of all parts, weighted if there are weights."""
  rank = max(x.ndim for x in logits)
  if weights is not None:
    logits = [x * w for x, w in zip(logits, weights, strict=True)]
  return functools.reduce(
    jnp.add, [jax.lax.broadcast_to_rank(x, rank) for x in logits]
  )


def _take(tables: Any, index: jax.Array | None) -> Any:
  """Rows of tables `[N, L, ...]` at `index [*B, r]`, as `[*B, N, r, ...]`."""
  if index is None:
    return tables
  return jax.tree.map(
    lambda x: jnp.moveaxis(
      jnp.take(x, index, axis=1, mode="clip"), 0, index.ndim - 1
    ),
    tables,
  )


def _float32(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
