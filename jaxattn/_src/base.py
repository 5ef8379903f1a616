"""The interface that every attention method implements, and argument checks."""

import dataclasses
from typing import Any
from typing import Literal
from typing import Protocol
from typing import runtime_checkable

import jax
import jax.numpy as jnp

from jaxattn._src import masks

Params = Any  # Trained: a pytree of arrays, `()` when the method has none.
State = Any  # Carried and never differentiated; `()` when empty.
Cache = Any  # What decoding keeps: a pytree of arrays with leading axes `*B`.
Causality = Literal["none", "values", "strict"]
STRICT: Causality = "strict"
NONE: Causality = "none"
Implementation = Literal["xla", "pallas"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionShapes:
  """What a method must know to make its variables. It holds no length.

  Attributes:
    num_heads: N, query heads.
    num_kv_heads: K, key and value heads; None means N. K divides N.
    head_dim: H, size of a query or key.
    value_dim: V, size of a value; None means H.
    dtype: dtype of the parameters.

  Example:
    >>> AttentionShapes(num_heads=8, head_dim=64).kv_heads
    8

  Source: the shape letters of `jax.nn.dot_product_attention`.
  """

  num_heads: int
  head_dim: int
  num_kv_heads: int | None = None
  value_dim: int | None = None
  dtype: Any = jnp.float32

  @property
  def kv_heads(self) -> int:
    """K, with its default filled in."""
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  @property
  def value_size(self) -> int:
    """V, with its default filled in."""
    return self.head_dim if self.value_dim is None else self.value_dim


@runtime_checkable
class AttentionMethod(Protocol):
  """A way of attending, as a value: hashable, equal by its options.

  Methods are frozen dataclasses, so that they serve as static arguments of
  `jit` and as fields of Flax modules without retracing.

  Attributes:
    honours: names of the `Mask` fields that `apply` honours.
    causality: under a causal mask, `none`: not served; `values`: no value
      leaks from the future but selection looks ahead; `strict`: nothing does.
    time_exponent: growth of time with length (1 is linear).
    memory_exponent: growth of temporary memory with length.

  A method may also have `shared_params`, True if the layers of a model have its
  parameters and state together; `max_length`, the most tokens of a row;
  `shares_query_key`, True if it attends with its queries as keys, so that
  layers make no keys and pass the queries twice; and

      select(params, state, query, key, *, mask, rng, train) -> selection

  which gives what it would choose by the data, as integer arrays, for the
  keyword `selection` of `apply`: what is computed a second time, as in
  reversible layers, then rests on the same choice.

  Example:
    >>> import jaxattn
    >>> isinstance(jaxattn.sliding_window(left=8), AttentionMethod)
    True

  Source: the pair of pure functions of optax's GradientTransformation.
  """

  @property
  def honours(self) -> frozenset[str]:
    """Names of the mask fields that `apply` honours."""
    ...

  @property
  def causality(self) -> Causality:
    """What a causal mask guarantees."""
    ...

  @property
  def time_exponent(self) -> float:
    """Growth of time with length."""
    ...

  @property
  def memory_exponent(self) -> float:
    """Growth of temporary memory with length."""
    ...

  def init(
    self, rng: jax.Array, shapes: AttentionShapes
  ) -> tuple[Params, State]:
    """Makes the trained parameters and the carried state."""
    ...

  def apply(
    self,
    params: Params,
    state: State,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: masks.Mask = masks.FULL,
    rng: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, State]:
    """Attends: `[*B,T,N,H] [*B,S,K,H] [*B,S,K,V] -> [*B,T,N,V]`, and state."""
    ...

  def init_cache(
    self,
    params: Params,
    state: State,
    *,
    batch_shape: tuple[int, ...],
    max_length: int,
    shapes: AttentionShapes,
  ) -> Cache:
    """Makes an empty decoding cache; its dtype is `shapes.dtype`."""
    ...

  def extend(
    self,
    params: Params,
    state: State,
    cache: Cache,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    key_valid: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Appends new tokens and attends from them, causally.

    `query [*B,n,N,H]`, `key [*B,n,K,H]`, `value [*B,n,K,V]` are the new tokens
    of every row; `key_valid [*B,n]` marks the real ones, which must be a prefix
    of the row (shorter prompts are padded at the right), so that rows may have
    different lengths.
    """
    ...


def take(cache: Cache, rows: jax.Array) -> Cache:
  """Selects rows of a decoding cache, as beam search does.

  Args:
    cache: any method's cache, whose arrays have one leading batch axis.
    rows: `[B']` ints, which row each new row continues.

  Returns:
    The cache of the chosen rows.

  Raises:
    ValueError: if `rows` is not a vector of integers.

  Example:
    >>> cache = {"length": jnp.array([3, 5])}
    >>> take(cache, jnp.array([1, 1]))["length"].tolist()
    [5, 5]

  Source: beam search with a cache, as in Flax's lm1b example.
  """
  if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
    raise ValueError(
      f"rows must be a vector of integers, got {rows.dtype}{rows.shape}."
    )
  return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), cache)


def check_qkv(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
  """Checks the shapes of query, key and value.

  Args:
    query: `[*B, T, N, H]`.
    key: `[*B, S, K, H]`, K divides N.
    value: `[*B, S, K, V]`.

  Raises:
    ValueError: naming what disagrees, with all three shapes.
  """
  shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
  if not query.ndim == key.ndim == value.ndim or query.ndim < 3:
    raise ValueError(
      "query, key and value must have one rank, at least 3: [*B, T, N, H], "
      f"[*B, S, K, H], [*B, S, K, V]; got {shapes}."
    )
  if query.shape[:-3] != key.shape[:-3] or key.shape[:-1] != value.shape[:-1]:
    raise ValueError(
      "query, key and value must share the leading axes, and key and value "
      f"their length and heads; got {shapes}."
    )
  if query.shape[-1] != key.shape[-1]:
    raise ValueError(f"query and key must share their last axis; got {shapes}.")
  if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
    raise ValueError(
      "key/value heads must divide the query heads (grouped-query attention); "
      f"got {shapes}."
    )
  for name, x in (("query", query), ("key", key), ("value", value)):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} must be floating point, got {x.dtype}.")
