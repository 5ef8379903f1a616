"""Linformer: attention to few tokens that are made of all keys and values."""

import dataclasses
from typing import get_args
from typing import Literal
from typing import NoReturn

import jax

from jaxattn._src import base
from jaxattn._src import masks
from jaxattn._src import patterns
from jaxattn._src import token_projections as tokens
from jaxattn._src.engines import block_sparse as engine

Sharing = Literal["none", "headwise", "key_value", "layerwise"]
Projection = Literal["linear", "convolution", "mean", "max"]

_HONOURS = ("key_valid", "query_valid")
_MIXES = "Linformer, whose projections mix keys of all places into each,"


def linformer_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  key_projection: jax.Array,
  value_projection: jax.Array,
  *,
  mask: masks.Mask = masks.FULL,
  implementation: base.Implementation = None,
) -> jax.Array:
  """Softmax attention to `k` mixtures of the keys and values.

  `softmax(q (E k)^T / sqrt(H)) (F v)` with `E`, `F` of shape `[k, n]`: time and
  memory `O(T k)`. Masked keys and values are zeroed before they are projected;
  the softmax is over all `k` mixtures in any case.

  Args:
    query: `[*B, T, N, H]` floats.
    key: `[*B, S, K, H]` floats; K divides N.
    value: `[*B, S, K, V]` floats.
    key_projection: E, `[k, n]` for all heads, or `[G, k, n]`, each for `K / G`
      key heads that follow each other. Columns from S on are not used.
    value_projection: F, `[k, n]` or `[G', k, n]`.
    mask: honours `key_valid` and `query_valid`.
    implementation: as of `block_sparse`.

  Returns:
    `[*B, T, N, V]` in query's dtype; sums are float32. A row of the batch
    without valid keys, and an invalid query, give exactly zero.

  Raises:
    ValueError: if shapes disagree, or S exceeds n.
    NotImplementedError: if `mask` sets another field: every mixture holds keys
      of all places, so that nothing can be masked after it.

  Example:
    >>> x = jnp.ones((1, 10, 2, 8))
    >>> e = jaxattn.draw_token_projection(jax.random.key(0), (4, 12))
    >>> linformer_attention(x, x, x, e, e).shape
    (1, 10, 2, 8)

  Source: Wang et al., 2020, https://arxiv.org/abs/2006.04768.
  """
  _check(query, key, value, mask)
  length, heads = key.shape[-3:-1]
  for name, matrix in (
    ("key_projection", key_projection),
    ("value_projection", value_projection),
  ):
    tokens.check_projection(name, matrix, length, heads)
  if key_projection.shape[-2] != value_projection.shape[-2]:
    raise ValueError(
      "key_projection and value_projection must make equally many tokens; got "
      f"{key_projection.shape} and {value_projection.shape}."
    )
  key, value = (
    tokens.project_tokens(x, matrix, valid=mask.key_valid)
    for x, matrix in ((key, key_projection), (value, value_projection))
  )
  return _attend(query, key, value, mask, None, implementation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linformer:
  """Softmax attention to few tokens that are made of all keys and values.

  The projections are tied to places, so they have a longest input. A shorter
  one takes their first columns. Parameters are `key` and `value`, or
  `key_value` where these are one: matrices `[k, max_length]`, kernels `[w]`,
  or with `sharing="none"` one for each key head. With `trainable=False` they
  are state.

  Attributes:
    max_length: most keys.
    k: tokens made of them; pooling and convolution make one of each
      `w = ceil(max_length / k)`, which may be fewer than `k`.
    sharing: which parameters are one. `none`: each key head has its own, for
      keys and for values; `headwise`: one for keys and one for values;
      `key_value`: one for both; `layerwise`: one for both, in all layers of a
      model that has shared parameters (`jaxattn.models.encoder`).
    projection: `linear`, a matrix; `convolution`, a kernel of width and stride
      `w` for all channels of a head; `mean` or `max`, pooling of `w` tokens,
      without parameters.
    init_projection: how they are drawn; see `draw_token_projection`.
    trainable: whether the projections are trained or stay as drawn.
    implementation: as of `block_sparse`.

  Example:
    >>> method = linformer(max_length=16, k=4)
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=8)
    >>> params, state = method.init(jax.random.key(0), shapes)
    >>> x = jnp.ones((1, 9, 2, 8))
    >>> method.apply(params, state, x, x, x)[0].shape
    (1, 9, 2, 8)

  Source: Wang et al., 2020, https://arxiv.org/abs/2006.04768.
  """

  max_length: int
  k: int
  sharing: Sharing = "headwise"
  projection: Projection = "linear"
  init_projection: tokens.Init = "scaled"
  trainable: bool = True
  implementation: base.Implementation = None

  honours = frozenset(_HONOURS)
  causality = base.NONE
  memory_exponent = 1.0

  def __post_init__(self) -> None:
    for name in ("max_length", "k"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
    for name, given, kinds in (
      ("sharing", self.sharing, Sharing),
      ("projection", self.projection, Projection),
      ("init", self.init_projection, tokens.Init),
    ):
      if given not in get_args(kinds):
        raise ValueError(
          f"{name} must be one of {get_args(kinds)}, got {given!r}."
        )
    options = (self.sharing, self.init_projection, self.trainable)
    if self._pools and options != ("headwise", "scaled", True):
      raise ValueError(
        f"projection={self.projection!r} has no parameters: leave sharing, "
        "init and trainable at their defaults."
      )

  @property
  def time_exponent(self) -> float:
    """1, or 2 where a window makes the more tokens the longer the input.

    Such time is `L^2 / w` of an input of L tokens, at most `L k`.
    """
    return 1.0 if self.projection == "linear" else 2.0

  @property
  def window(self) -> int:
    """Tokens that pooling and convolution make one of."""
    return -(-self.max_length // self.k)

  @property
  def shared_params(self) -> bool:
    """Whether the layers of a model have one set of variables together."""
    return self.sharing == "layerwise"

  @property
  def _pools(self) -> bool:
    return self.projection in get_args(tokens.Pooling)

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Draws the projections: parameters, or state if not trained."""
    if self._pools:
      return (), ()
    one = (self.k, self.max_length)
    if self.projection == "convolution":
      one = (1, self.window)
    lead = (shapes.kv_heads,) if self.sharing == "none" else ()
    names = ("key", "value")
    if self.sharing in ("key_value", "layerwise"):
      names = ("key_value",)
    drawn = {
      name: tokens.draw_token_projection(
        each, (*lead, *one), init=self.init_projection, dtype=shapes.dtype
      )
      for name, each in zip(
        names, jax.random.split(rng, len(names)), strict=True
      )
    }
    if self.projection == "convolution":
      drawn = {name: kernel[..., 0, :] for name, kernel in drawn.items()}
    return (drawn, ()) if self.trainable else ((), drawn)

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
    """Attends to the projected keys; see `AttentionMethod`."""
    del rng, train
    _check(query, key, value, mask)
    if key.shape[-3] > self.max_length:
      raise ValueError(
        f"{key.shape[-3]} keys exceed max_length {self.max_length} of "
        "Linformer, whose projections know no further place; make it with a "
        "larger max_length."
      )
    made, valid = self._make(params, state, "key", key, mask.key_valid)
    mixed, _ = self._make(params, state, "value", value, mask.key_valid)
    out = _attend(query, made, mixed, mask, valid, self.implementation)
    return out, state

  def _make(
    self,
    params: base.Params,
    state: base.State,
    name: str,
    x: jax.Array,
    valid: jax.Array | None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """The tokens made of `x`, and which count; None for all."""
    if self.projection == "mean" or self.projection == "max":
      return tokens.pool_tokens(
        x, self.window, kind=self.projection, valid=valid
      )
    drawn = params if self.trainable else jax.lax.stop_gradient(state)
    matrix = drawn["key_value"] if "key_value" in drawn else drawn[name]
    if self.projection == "convolution":
      return tokens.convolve_tokens(x, matrix, valid=valid)
    return tokens.project_tokens(x, matrix, valid=valid), None

  def init_cache(
    self,
    params: base.Params,
    state: base.State,
    *,
    batch_shape: tuple[int, ...],
    max_length: int,
    shapes: base.AttentionShapes,
  ) -> base.Cache:
    """Raises NotImplementedError."""
    del params, state, batch_shape, max_length, shapes
    _refuse_decoding()

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
    """Raises NotImplementedError."""
    del params, state, cache, query, key, value, key_valid
    _refuse_decoding()


def _check(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: masks.Mask
) -> None:
  base.check_qkv(query, key, value)
  mask.only(*_HONOURS, by=_MIXES)
  mask.check(query.shape[:-3], query.shape[-3], key.shape[-3])


def _attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: masks.Mask,
  valid: jax.Array | None,
  implementation: base.Implementation,
) -> jax.Array:
  """Softmax attention to the tokens made, of which `valid` count."""
  return engine.block_sparse(
    query,
    key,
    value,
    pattern=patterns.Full(),
    mask=masks.Mask(key_valid=valid, query_valid=mask.query_valid),
    implementation=implementation,
  )


def _refuse_decoding() -> NoReturn:
  raise NotImplementedError(
    f"{_MIXES} serves no causal mask and does not decode; take a method whose "
    "causality is 'strict'."
  )


def linformer(
  *,
  max_length: int,
  k: int,
  sharing: Sharing = "headwise",
  projection: Projection = "linear",
  init: tokens.Init = "scaled",
  trainable: bool = True,
  implementation: base.Implementation = None,
) -> Linformer:
  """Returns Linformer's attention as a method.

  A `k` that falls with depth is a tuple of methods, one for each layer of a
  model. For projections of your own use `linformer_attention`.

  Args:
    max_length: most keys; longer inputs are refused.
    k: tokens made of the keys and values; the paper takes 128 and 256 for 512
      and 1024 keys, and finds that it need not grow with the length.
    sharing: `none`, `headwise`, `key_value` or `layerwise`: which projections
      are one; see `Linformer`.
    projection: `linear`, `convolution`, `mean` or `max`.
    init: `scaled`, `xavier`, `uniform` or `normal`; see
      `draw_token_projection`.
    trainable: whether the projections are trained or stay as drawn.
    implementation: as of `block_sparse`.

  Returns:
    A `Linformer` method. It serves no causal mask: every token it makes holds
    the future.

  Raises:
    ValueError: if a size is not positive, a choice is unknown, or a pooling,
      which has no parameters, is told how to share or draw them.

  Example:
    >>> linformer(max_length=512, k=128, sharing="layerwise").k
    128

  Source: Wang et al., 2020, https://arxiv.org/abs/2006.04768. Differs: masks
  are honoured before projecting, and the default draws keep the size of scores.
  """
  return Linformer(
    max_length=max_length,
    k=k,
    sharing=sharing,
    projection=projection,
    init_projection=init,
    trainable=trainable,
    implementation=implementation,
  )
