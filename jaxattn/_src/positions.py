"""Positions: rotary and sinusoidal embeddings, and relative schemes."""

import dataclasses
import functools
import math
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import base as base_lib


class Scheme(Protocol):
  """A relative-position scheme: a static value that makes a score term.

  Frozen dataclasses, so that a method that holds one stays hashable. A method
  adds `logits(params, query)[..., label(j - i)]` to the scaled score of query
  `i` and key `j`.

  Attributes:
    num_labels: R, how many labels there are.

  Example:
    >>> jaxattn.positions.ALiBi(max_distance=4).num_labels
    5

  Source: the score term of `jaxattn.Relative`.
  """

  @property
  def num_labels(self) -> int:
    """R, how many labels there are."""
    ...

  def label(self, distance: Any) -> Any:
    """Labels in `[0, R)` of integer arrays of `j - i`, NumPy or JAX."""
    ...

  def init(self, rng: jax.Array, shapes: base_lib.AttentionShapes) -> Any:
    """Makes the trained parameters, `()` when there are none."""
    ...

  def logits(self, params: Any, query: jax.Array) -> jax.Array:
    """`[*B or 1s, T or 1, N, R]` float32 terms of `query [*B, T, N, H]`."""
    ...


def apply_rotary(
  x: jax.Array,
  positions: jax.Array,
  *,
  base: float = 10_000.0,
  fraction: float = 1.0,
) -> jax.Array:
  """Rotates pairs of features by angles that grow with the position.

  With `R = fraction * H`, features `i` and `i + R / 2` (half-split, as GPT-NeoX
  and Llama; not the interleaved pairs `2i, 2i + 1` of the paper, which are the
  same map after a permutation of features) turn by `position * base^(-2i/R)`.
  Applied to queries and keys, their product depends on distances only.

  Args:
    x: `[*B, T, N, H]` floats; computed in float32 inside.
    positions: `[*B, T]` ints; a leading axis of size 1 broadcasts.
    base: the longest wavelength is about `2 pi base` tokens.
    fraction: share of the features that is rotated, the first ones.

  Returns:
    `[*B, T, N, H]` in the dtype of `x`.

  Raises:
    ValueError: if shapes disagree, `positions` are not integers, or the number
      of rotated features is odd or not in `[2, H]`.

  Example:
    >>> x = jnp.ones((1, 3, 1, 4))
    >>> y = apply_rotary(x, jnp.arange(3)[None])
    >>> [bool(jnp.allclose(y[0, i], x[0, i])) for i in range(3)]
    [True, False, False]

  Source: Su et al., 2021, https://arxiv.org/abs/2104.09864.
  """
  want = x.shape[:-2]
  fits = positions.ndim == len(want) and all(
    f in (1, w) for f, w in zip(positions.shape[:-1], want[:-1], strict=True)
  )
  if x.ndim < 3 or not fits or positions.shape[-1] != want[-1]:
    raise ValueError(
      "positions must have the leading axes and the length of x [*B, T, N, "
      f"H], {want}, got {positions.shape}; add axes of size 1 with [None]."
    )
  if not jnp.issubdtype(positions.dtype, jnp.integer):
    raise ValueError(f"positions must be integers, got {positions.dtype}.")
  rotated = round(fraction * x.shape[-1])
  if rotated % 2 or not 2 <= rotated <= x.shape[-1]:
    raise ValueError(
      "fraction must rotate an even number of features from 2 to "
      f"{x.shape[-1]} (the last axis of x), got {fraction} * {x.shape[-1]} = "
      f"{rotated}."
    )
  half = rotated // 2
  rates = jnp.asarray(_rates(half, base))
  angles = positions.astype(jnp.float32)[..., None, None]
  angles = angles * jax.lax.broadcast_to_rank(rates, angles.ndim)
  sin, cos = jnp.sin(angles), jnp.cos(angles)  # [*B, T, 1, R / 2]
  first = x[..., :half].astype(jnp.float32)
  second = x[..., half:rotated].astype(jnp.float32)
  turned = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return jnp.concatenate([turned.astype(x.dtype), x[..., rotated:]], axis=-1)


def sinusoidal(
  positions: jax.Array, *, width: int, base: float = 10_000.0
) -> jax.Array:
  """Fixed embeddings: sines and cosines of the position.

  Feature `2i` is `sin(p * base^(-2i/width))`, feature `2i + 1` its cosine.

  Args:
    positions: `[*B, T]` ints.
    width: number of features, even.
    base: the longest wavelength is about `2 pi base` tokens.

  Returns:
    `[*B, T, width]` float32.

  Raises:
    ValueError: if `width` is odd or `positions` are not integers.

  Example:
    >>> sinusoidal(jnp.arange(2), width=2).round(2).tolist()[0]
    [0.0, 1.0]

  Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, section 3.5.
  """
  if width < 2 or width % 2:
    raise ValueError(f"width must be even and positive, got {width}.")
  if not jnp.issubdtype(positions.dtype, jnp.integer):
    raise ValueError(f"positions must be integers, got {positions.dtype}.")
  angles = positions.astype(jnp.float32)[..., None]
  rates = jnp.asarray(_rates(width // 2, base))
  angles = angles * jax.lax.broadcast_to_rank(rates, angles.ndim)
  table = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return table.reshape(*positions.shape, width)


def _rates(half: int, base: float) -> np.ndarray:
  """`base^(-i / half)` in float32."""
  return np.power(float(base), -np.arange(half) / half).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ClippedDistance:
  """Label of the distance `j - i`, clipped to `[-max_distance, max_distance]`.

  Attributes:
    max_distance: M; there are `2 M + 1` labels, and M is that of distance 0.

  Example:
    >>> ClippedDistance(2)(np.array([-9, -1, 0, 1, 9])).tolist()
    [0, 1, 2, 3, 4]

  Source: Shaw et al., 2018, https://arxiv.org/abs/1803.02155, section 3.2.
  """

  max_distance: int

  def __post_init__(self) -> None:
    _check_at_least("max_distance", self.max_distance, 0)

  @property
  def num_labels(self) -> int:
    """`2 M + 1`."""
    return 2 * self.max_distance + 1

  def __call__(self, distance: Any) -> Any:
    """Labels of integer arrays of `j - i`, NumPy or JAX."""
    far = self.max_distance
    return distance.clip(-far, far) + far


@dataclasses.dataclass(frozen=True)
class T5Buckets:
  """Label of the distance `j - i` in T5's buckets: exact near, logarithmic far.

  Of the E buckets of one direction, the first `E / 2` hold one distance each,
  and distance `d` beyond falls in `E/2 + floor(log(d / (E/2)) /
  log(max_distance / (E/2)) * E/2)`, at most `E - 1`. The bounds are computed in
  integers, so that NumPy and every backend agree at all distances.

  Attributes:
    num_buckets: how many labels there are.
    max_distance: from this distance on, all share the last bucket.
    bidirectional: whether keys after the query get the second half of the
      buckets; if not, they share bucket 0 with the query itself.

  Example:
    >>> label = T5Buckets(8, 16, bidirectional=False)
    >>> label(-np.array([0, 3, 5, 7, 99])).tolist()
    [0, 3, 4, 5, 7]

  Source: Raffel et al., 2020, https://arxiv.org/abs/1910.10683, section 2.1,
  and `_relative_position_bucket` of its code.
  """

  num_buckets: int = 32
  max_distance: int = 128
  bidirectional: bool = True

  def __post_init__(self) -> None:
    sides = 2 if self.bidirectional else 1
    if self.num_buckets % sides or self.num_buckets < 2 * sides:
      raise ValueError(
        f"num_buckets must be at least {2 * sides} and a multiple of {sides} "
        f"with bidirectional={self.bidirectional}, got {self.num_buckets}."
      )
    _check_at_least(
      "max_distance", self.max_distance, self.num_buckets // sides // 2 + 1
    )

  @property
  def num_labels(self) -> int:
    """The number of buckets."""
    return self.num_buckets

  def __call__(self, distance: Any) -> Any:
    """Labels of integer arrays of `j - i`, NumPy or JAX."""
    one_side = self.num_buckets // (2 if self.bidirectional else 1)
    exact = one_side // 2
    if self.bidirectional:
      label = (distance > 0).astype(distance.dtype) * one_side
      far = abs(distance)
    else:
      label = distance * 0
      far = (-distance).clip(0, None)
    label = label + far.clip(None, exact)
    for bound in _t5_bounds(one_side, self.max_distance):
      label = label + (far >= bound).astype(distance.dtype)
    return label


@functools.lru_cache(maxsize=64)
def _t5_bounds(num_buckets: int, max_distance: int) -> tuple[int, ...]:
  """The smallest distances of the buckets after the first logarithmic one."""
  exact = num_buckets // 2
  steps = num_buckets - exact

  def reached(distance: int, k: int) -> bool:
    # log(d / e) / log(m / e) * n >= k, without logarithms.
    left = distance**steps
    return left >= max_distance**k * exact ** (steps - k)

  bounds = []
  for k in range(1, steps):
    low, high = exact, max_distance
    while low < high:
      middle = (low + high) // 2
      low, high = (low, middle) if reached(middle, k) else (middle + 1, high)
    bounds.append(low)
  return tuple(bounds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Bias:
  """Scheme: a learned number per head and T5 bucket, added to the scores.

  The parameters are `{"table": [N, num_buckets]}`.

  Attributes:
    num_buckets: as of `T5Buckets`.
    max_distance: as of `T5Buckets`.
    bidirectional: as of `T5Buckets`; False suits a decoder.
    stddev: of the initial table.

  Example:
    >>> scheme = T5Bias(bidirectional=False)
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=8)
    >>> scheme.init(jax.random.key(0), shapes)["table"].shape
    (2, 32)

  Source: Raffel et al., 2020, https://arxiv.org/abs/1910.10683, section 2.1.
  Differs: T5 shares one table among all layers; here each method has its own,
  and the scores keep their factor `1 / sqrt(H)`.
  """

  num_buckets: int = 32
  max_distance: int = 128
  bidirectional: bool = True
  stddev: float = 0.02

  def __post_init__(self) -> None:
    self._buckets()  # Raises for options that do not fit.

  def _buckets(self) -> T5Buckets:
    return T5Buckets(self.num_buckets, self.max_distance, self.bidirectional)

  @property
  def num_labels(self) -> int:
    """The number of buckets."""
    return self.num_buckets

  def label(self, distance: Any) -> Any:
    """Buckets of integer arrays of `j - i`; see `T5Buckets`."""
    return self._buckets()(distance)

  def init(
    self, rng: jax.Array, shapes: base_lib.AttentionShapes
  ) -> dict[str, jax.Array]:
    """Draws the table."""
    shape = (shapes.num_heads, self.num_buckets)
    return {"table": _normal(rng, shape, self.stddev, shapes.dtype)}

  def logits(self, params: Any, query: jax.Array) -> jax.Array:
    """The table, `[1s, 1, N, R]` float32."""
    table = params["table"].astype(jnp.float32)
    _check_table("T5Bias", table, (query.shape[-2], self.num_buckets))
    return jax.lax.broadcast_to_rank(table, query.ndim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ALiBi:
  """Scheme: scores fall linearly with the distance, at a fixed slope per head.

  The term is `-slope[n] * min(|j - i|, max_distance)`: exact ALiBi wherever
  `|j - i| <= max_distance`, constant beyond. Give a sliding window its own
  reach, and dense attention the longest length less one. No parameters.

  Attributes:
    max_distance: the largest distance that is told apart; there are
      `max_distance + 1` labels.

  Example:
    >>> query = jnp.ones((1, 3, 8, 4))
    >>> ALiBi(max_distance=2).logits((), query)[0, 0, 0].tolist()
    [-0.0, -0.5, -1.0]

  Source: Press et al., 2022, https://arxiv.org/abs/2108.12409. Differs: keys
  after the query, which the paper masks, count by their absolute distance.
  """

  max_distance: int

  def __post_init__(self) -> None:
    _check_at_least("max_distance", self.max_distance, 0)

  @property
  def num_labels(self) -> int:
    """`max_distance + 1`."""
    return self.max_distance + 1

  def label(self, distance: Any) -> Any:
    """`min(|j - i|, max_distance)` of integer arrays, NumPy or JAX."""
    return abs(distance).clip(None, self.max_distance)

  def init(self, rng: jax.Array, shapes: base_lib.AttentionShapes) -> tuple[()]:
    """No parameters."""
    del rng, shapes
    return ()

  def logits(self, params: Any, query: jax.Array) -> jax.Array:
    """The falling lines, `[1s, 1, N, R]` float32."""
    del params
    slopes = alibi_slopes(query.shape[-2])
    lines = -slopes[:, None] * np.arange(self.num_labels, dtype=np.float32)
    return jax.lax.broadcast_to_rank(jnp.asarray(lines), query.ndim)


def alibi_slopes(num_heads: int) -> np.ndarray:
  """The slopes of ALiBi.

  For a power of two, `2^(-8 (n + 1) / N)` for head n. Otherwise those of the
  next lower power, then every second one of the next higher, as in the paper's
  code.

  Args:
    num_heads: N.

  Returns:
    `[N]` float32, a NumPy array.

  Raises:
    ValueError: if `num_heads` is not positive.

  Example:
    >>> alibi_slopes(8)[:3].tolist()
    [0.5, 0.25, 0.125]

  Source: Press et al., 2022, https://arxiv.org/abs/2108.12409, section 3.
  """
  _check_at_least("num_heads", num_heads, 1)
  low = 2 ** math.floor(math.log2(num_heads))

  def of_power(n: int) -> np.ndarray:
    return 2.0 ** (-8.0 * np.arange(1, n + 1) / n)

  extra = of_power(2 * low)[0::2][: num_heads - low]
  return np.concatenate([of_power(low), extra]).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShawRelative:
  """Scheme: queries meet a learned vector per head and clipped distance.

  The term is `scale * q . table[n, clip(j - i)]`; with the default scale this
  adds the vector to the key. The parameters are
  `{"table": [N, 2 * max_distance + 1, H]}`.

  Attributes:
    max_distance: distances beyond it share the vector of the last one.
    scale: factor of the product; None means `1 / sqrt(H)`, as of the scores.
    stddev: of the initial table.

  Example:
    >>> ShawRelative(max_distance=16).num_labels
    33

  Source: Shaw et al., 2018, https://arxiv.org/abs/1803.02155, equation 4.
  Differs: no vectors added to the values (equation 3), and one table per head,
  where the paper shares one among heads.
  """

  max_distance: int
  scale: float | None = None
  stddev: float = 0.02

  def __post_init__(self) -> None:
    _check_at_least("max_distance", self.max_distance, 0)

  @property
  def num_labels(self) -> int:
    """`2 * max_distance + 1`."""
    return 2 * self.max_distance + 1

  def label(self, distance: Any) -> Any:
    """Clipped distances; see `ClippedDistance`."""
    return ClippedDistance(self.max_distance)(distance)

  def init(
    self, rng: jax.Array, shapes: base_lib.AttentionShapes
  ) -> dict[str, jax.Array]:
    """Draws the table."""
    shape = (shapes.num_heads, self.num_labels, shapes.head_dim)
    return {"table": _normal(rng, shape, self.stddev, shapes.dtype)}

  def logits(self, params: Any, query: jax.Array) -> jax.Array:
    """`scale * q table^T`, `[*B, T, N, R]` float32."""
    heads, depth = query.shape[-2:]
    table = params["table"].astype(jnp.float32)
    _check_table("ShawRelative", table, (heads, self.num_labels, depth))
    scale = depth**-0.5 if self.scale is None else self.scale
    return jnp.float32(scale) * jnp.einsum(
      "...tnh,nrh->...tnr",
      query.astype(jnp.float32),
      table,
      precision=jax.lax.Precision.HIGHEST,
    )


def _normal(
  rng: jax.Array, shape: tuple[int, ...], stddev: float, dtype: Any
) -> jax.Array:
  return jnp.asarray(stddev, dtype) * jax.random.normal(rng, shape, dtype)


def _check_at_least(name: str, value: int, low: int) -> None:
  if value < low:
    raise ValueError(f"{name} must be at least {low}, got {value}.")


def _check_table(by: str, table: jax.Array, want: tuple[int, ...]) -> None:
  if table.shape != want:
    raise ValueError(
      f"params['table'] of {by} must have shape {want} for this query, got "
      f"{table.shape}; make it with init and the same AttentionShapes."
    )
