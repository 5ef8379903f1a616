"""Where a Synthesizer's logits come from: one class for each source.

A part makes the logits of all keys for a block of queries. What it needs of its
parameters is split in tables, which have an axis of query rows, and the rest,
which serves every row. An attribute `reads` names the inputs that it looks at.
"""

import dataclasses
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import dispatch

QUERY, KEY = "query", "key"


class Part(Protocol):
  """A source of logits, as a value."""

  @property
  def reads(self) -> tuple[str, ...]:
    """Which of `query` and `key` the logits depend on."""
    ...

  def init(self, rng: jax.Array, shapes: base.AttentionShapes) -> Any:
    """Draws the parameters, a dict or `()`."""
    ...

  def split(self, params: Any, k_len: int) -> tuple[Any, Any]:
    """Tables `[N, max_length, ...]` and the rest, cut to S keys."""
    ...

  def logits(
    self, tables: Any, rest: Any, query: jax.Array, key: jax.Array
  ) -> jax.Array:
    """`[N, r, S]` or `[*B, N, r, S]` float32, for r rows."""
    ...


def product(equation: str, a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
  """An einsum of operands in `dtype`, summed in float32."""
  return jnp.einsum(
    equation,
    a.astype(dtype),
    b.astype(dtype),
    preferred_element_type=jnp.float32,
    precision=dispatch.precision(dtype),
  )


def factorized_dense_logits(
  inner: jax.Array, outer: jax.Array, length: int
) -> jax.Array:
  """Logits as an outer product: all pairs of two short vectors.

  Logit `j` is `inner[j % a] * outer[j // a]`: one vector is tiled, the other
  one repeated blockwise. Tiling both would give only `lcm(a, b)` of the `a b`
  pairs.

  Args:
    inner: `[..., a]` floats.
    outer: `[..., b]` floats, with the same leading axes.
    length: S, how many logits to make; at most `a * b`.

  Returns:
    `[..., S]`.

  Raises:
    ValueError: if the leading axes differ or S is larger than `a * b`.

  Example:
    >>> a, b = jnp.array([1.0, 10.0]), jnp.array([1.0, 2.0, 3.0])
    >>> factorized_dense_logits(a, b, 5).tolist()
    [1.0, 10.0, 2.0, 20.0, 3.0]

  Source: Tay et al., 2021, https://arxiv.org/abs/2005.00743, the factorized
  dense Synthesizer.
  """
  if inner.shape[:-1] != outer.shape[:-1]:
    raise ValueError(
      "inner and outer must share their leading axes, got "
      f"{inner.shape} and {outer.shape}."
    )
  pairs = inner.shape[-1] * outer.shape[-1]
  if not 0 <= length <= pairs:
    raise ValueError(
      f"length must be at most a * b = {pairs}, got {length} from inner "
      f"{inner.shape} and outer {outer.shape}."
    )
  found = outer[..., :, None] * inner[..., None, :]
  return found.reshape(*inner.shape[:-1], pairs)[..., :length]


@dataclasses.dataclass(frozen=True)
class Random:
  """A matrix of logits for each head, whatever the input."""

  max_length: int
  stddev: float
  reads = ()

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> dict[str, jax.Array]:
    """Draws the matrices `table [N, L, L]`."""
    shape = (shapes.num_heads, self.max_length, self.max_length)
    return {"table": _normal(rng, shape, self.stddev, shapes.dtype)}

  def split(self, params: Any, k_len: int) -> tuple[Any, Any]:
    """All of it goes with rows."""
    return {"table": params["table"][..., :k_len]}, {}

  def logits(
    self, tables: Any, rest: Any, query: jax.Array, key: jax.Array
  ) -> jax.Array:
    """The rows themselves."""
    return tables["table"].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class FactorizedRandom:
  """A matrix of logits of low rank for each head: `rows columns^T`."""

  max_length: int
  rank: int
  stddev: float
  reads = ()

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> dict[str, jax.Array]:
    """Draws `rows` and `columns`, `[N, L, rank]`."""
    # So that the logits, sums of `rank` products, have the wanted deviation.
    stddev = self.stddev**0.5 * self.rank**-0.25
    shape = (shapes.num_heads, self.max_length, self.rank)
    return {
      name: _normal(r, shape, stddev, shapes.dtype)
      for name, r in zip(
        ("rows", "columns"), jax.random.split(rng), strict=True
      )
    }

  def split(self, params: Any, k_len: int) -> tuple[Any, Any]:
    """`rows` goes with rows."""
    columns = params["columns"][..., :k_len, :]
    return {"rows": params["rows"]}, {"columns": columns}

  def logits(
    self, tables: Any, rest: Any, query: jax.Array, key: jax.Array
  ) -> jax.Array:
    """Their products."""
    return product(
      "...nrk,nsk->...nrs", tables["rows"], rest["columns"], jnp.float32
    )


@dataclasses.dataclass(frozen=True)
class Dense:
  """Two layers that turn a token in its logits of all keys."""

  max_length: int
  share_heads: bool
  reads = (QUERY,)

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> dict[str, jax.Array]:
    """Draws the second layer; biases are zero."""
    return {
      "hidden_bias": _hidden_bias(shapes),
      **_layer(rng, "", self.max_length, self.share_heads, shapes),
    }

  def split(self, params: Any, k_len: int) -> tuple[Any, Any]:
    """All serves every row."""
    return {}, {**params, **_cut_layer(params, "", k_len)}

  def logits(
    self, tables: Any, rest: Any, query: jax.Array, key: jax.Array
  ) -> jax.Array:
    """`relu(query + hidden_bias) kernel + bias`."""
    hidden = _hidden(query, rest["hidden_bias"])
    return _apply_layer(hidden, rest, "", query.dtype)


@dataclasses.dataclass(frozen=True)
class FactorizedDense:
  """Two layers that turn a token in two vectors; logits are their pairs."""

  factors: tuple[int, int]
  share_heads: bool
  reads = (QUERY,)

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> dict[str, jax.Array]:
    """Draws both second layers; biases are zero."""
    params = {"hidden_bias": _hidden_bias(shapes)}
    for name, size, r in zip(
      ("inner_", "outer_"), self.factors, jax.random.split(rng), strict=True
    ):
      params |= _layer(r, name, size, self.share_heads, shapes)
    return params

  def split(self, params: Any, k_len: int) -> tuple[Any, Any]:
    """All serves every row."""
    blocks = -(-k_len // self.factors[0])
    return {}, {**params, **_cut_layer(params, "outer_", blocks)}

  def logits(
    self, tables: Any, rest: Any, query: jax.Array, key: jax.Array
  ) -> jax.Array:
    """The pairs of both vectors."""
    hidden = _hidden(query, rest["hidden_bias"])
    inner, outer = (
      _apply_layer(hidden, rest, name, query.dtype)
      for name in ("inner_", "outer_")
    )
    return factorized_dense_logits(inner, outer, key.shape[-3])


@dataclasses.dataclass(frozen=True)
class DotProduct:
  """Scaled products of queries and keys, as in the Transformer."""

  reads = (QUERY, KEY)

  def init(self, rng: jax.Array, shapes: base.AttentionShapes) -> tuple[()]:
    """No parameters."""
    del rng, shapes
    return ()

  def split(self, params: Any, k_len: int) -> tuple[Any, Any]:
    """Nothing."""
    del params, k_len
    return {}, {}

  def logits(
    self, tables: Any, rest: Any, query: jax.Array, key: jax.Array
  ) -> jax.Array:
    """`query key^T / sqrt(H)`."""
    *batch, rows, heads, depth = query.shape
    k_len, kv_heads = key.shape[-3:-1]
    grouped = query.reshape(*batch, rows, kv_heads, heads // kv_heads, depth)
    found = product("...rkgh,...skh->...kgrs", grouped, key, query.dtype)
    found = found * jnp.float32(depth**-0.5)
    return found.reshape(*batch, heads, rows, k_len)


def _normal(
  rng: jax.Array, shape: tuple[int, ...], stddev: float, dtype: Any
) -> jax.Array:
  return jnp.asarray(stddev, dtype) * jax.random.normal(rng, shape, dtype)


def _hidden_bias(shapes: base.AttentionShapes) -> jax.Array:
  return jnp.zeros((shapes.num_heads, shapes.head_dim), shapes.dtype)


def _hidden(query: jax.Array, bias: jax.Array) -> jax.Array:
  """The hidden layer `[*B, r, N, H]`; `query` is its product without a bias."""
  bias = jax.lax.broadcast_to_rank(bias.astype(jnp.float32), query.ndim)
  return jax.nn.relu(query.astype(jnp.float32) + bias)


def _layer(
  rng: jax.Array,
  name: str,
  size: int,
  share_heads: bool,
  shapes: base.AttentionShapes,
) -> dict[str, jax.Array]:
  """Kernel `[N, size, H]` and bias `[N, size]`, without N where shared.

  The kernel has a row for each result, as keys have one for each token.
  """
  lead = () if share_heads else (shapes.num_heads,)
  depth = shapes.head_dim
  kernel = _normal(rng, (*lead, size, depth), depth**-0.5, shapes.dtype)
  bias = jnp.zeros((*lead, size), shapes.dtype)
  return {f"{name}kernel": kernel, f"{name}bias": bias}


def _cut_layer(params: Any, name: str, size: int) -> dict[str, jax.Array]:
  """The layer's first `size` results."""
  return {
    f"{name}kernel": params[f"{name}kernel"][..., :size, :],
    f"{name}bias": params[f"{name}bias"][..., :size],
  }


def _apply_layer(
  hidden: jax.Array, params: Any, name: str, dtype: Any
) -> jax.Array:
  """`[*B, r, N, H]` -> `[*B, N, r, size]` float32."""
  kernel = params[f"{name}kernel"]
  bias = params[f"{name}bias"].astype(jnp.float32)[..., None, :]
  equation = "...rnh,sh->...nrs" if kernel.ndim == 2 else "...rnh,nsh->...nrs"
  found = product(equation, hidden, kernel, dtype)
  return found + jax.lax.broadcast_to_rank(bias, found.ndim)
