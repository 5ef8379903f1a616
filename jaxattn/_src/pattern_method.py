"""What methods that are a static pattern share: attending and decoding."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import base
from jaxattn._src import kv_cache
from jaxattn._src import masks
from jaxattn._src import patterns
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import block_sparse as engine
from jaxattn._src.engines import dense as oracle

_ANY = 1 << 30  # A length beyond all.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatternMethod:
  """Softmax attention over the edges of a pattern.

  Subclasses say which pattern. Decoding keeps every key and value, and reads
  those that the pattern names.

  Attributes:
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Example:
    >>> isinstance(jaxattn.longformer(window=8), PatternMethod)
    True

  Source: the shared part of the methods that name their own.
  """

  relative: Any = None
  implementation: base.Implementation = None

  honours = masks.ALL_FIELDS
  causality = base.STRICT

  def pattern(
    self, num_heads: int, q_len: int, k_len: int, *, causal: bool
  ) -> patterns.Pattern | tuple[patterns.Pattern, ...]:
    """The edges: one pattern, or one for each head.

    Args:
      num_heads: N.
      q_len: T.
      k_len: S.
      causal: whether edges to later indices will be left out anyway.
    """
    raise NotImplementedError

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Makes the parameters of the relative scheme; there is no state."""
    return relative_lib.init_scheme(self.relative, rng, shapes), ()

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
    """Attends over the pattern; see `AttentionMethod`."""
    del rng, train
    base.check_qkv(query, key, value)
    mask.only(*sorted(self.honours), by=type(self).__name__)
    pattern = self.pattern(
      query.shape[-2],
      query.shape[-3],
      key.shape[-3],
      causal=mask.causal and not mask.dynamic_causal,
    )
    out = engine.block_sparse(
      query,
      key,
      value,
      pattern=pattern,
      mask=mask,
      relative=relative_lib.of_scheme(self.relative, params, query),
      implementation=self.implementation,
    )
    return out, state

  def kept(self) -> tuple[int, int] | None:
    """How many leading and how many last tokens decoding needs; None: all."""
    return None

  def init_cache(
    self,
    params: base.Params,
    state: base.State,
    *,
    batch_shape: tuple[int, ...],
    max_length: int,
    shapes: base.AttentionShapes,
  ) -> base.Cache:
    """Makes an empty cache of the tokens that the pattern may still need."""
    del params, state
    self._check_decodes()
    size, kept = max_length, self.kept()
    if kept is not None:
      size = kept[0] + min(kept[1], max(1, max_length - kept[0]))
    return kv_cache.init(batch_shape, size, shapes)

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

    A token reads the keys of its row of the pattern. A prompt into an empty
    cache attends as `apply` does, tile by tile; several tokens into a filled
    one follow each other one by one.
    """
    del state
    self._check_decodes()
    new, leading = query.shape[-3], (self.kept() or (0, 0))[0]
    relative = relative_lib.of_scheme(self.relative, params, query)

    def append(cache: base.Cache, token: Any) -> tuple[base.Cache, jax.Array]:
      query, key, value, valid, logits = token
      grown = kv_cache.write(cache, key, value, valid, leading=leading)
      return grown, self._read(grown, query, cache["length"], logits)

    logits = None
    if relative is not None:
      logits = relative.logits
      shape = (*logits.shape[:-3], new, *logits.shape[-2:])
      logits = jnp.broadcast_to(logits, shape)
    tokens = (query, key, value, key_valid, logits)
    if new == 1:
      grown, out = append(cache, tokens)
      return _zero_invalid(out, key_valid), grown

    def one_by_one() -> tuple[base.Cache, jax.Array]:
      grown, outs = jax.lax.scan(append, cache, _split(tokens, query.ndim - 3))
      return grown, jnp.moveaxis(outs[..., 0, :, :], 0, -3)

    def at_once() -> tuple[base.Cache, jax.Array]:
      out = engine.block_sparse(
        query,
        key,
        value,
        pattern=self.pattern(query.shape[-2], new, new, causal=True),
        mask=masks.Mask(causal=True, key_valid=key_valid),
        relative=relative,
        implementation=self.implementation,
      )
      grown = kv_cache.write(cache, key, value, key_valid, leading=leading)
      return grown, out

    filled = jnp.any(cache["length"] > 0)
    grown, out = jax.lax.cond(filled, one_by_one, at_once)
    return _zero_invalid(out, key_valid), grown

  def _check_decodes(self) -> None:
    if self.causality != base.STRICT:
      raise NotImplementedError(
        f"{type(self).__name__} serves no causal mask and does not decode; "
        "take a method whose causality is 'strict'."
      )

  def _read(
    self,
    cache: base.Cache,
    query: jax.Array,
    position: jax.Array,
    logits: jax.Array | None,
  ) -> jax.Array:
    """Attends from one token of every row, at `position [*B]`, to the cache."""
    heads, size = query.shape[-2], cache["key"].shape[-3]
    # A ring stands for any length; all else is as long as the cache.
    length = size if self.kept() is None else _ANY
    found = self.pattern(heads, length, length, causal=True)
    per_head = found if isinstance(found, tuple) else (found,) * heads
    alike: dict[patterns.Pattern, list[int]] = {}
    for head, pattern in enumerate(per_head):
      alike.setdefault(pattern, []).append(head)
    group = heads // cache["key"].shape[-2]
    outs, order = [], []
    for pattern, members in alike.items():
      pattern = (pattern & patterns.Causal()).resolve(length, length)
      at = np.asarray(members)
      # Heads of a pattern of their own read their own copy of the keys.
      kv = slice(None) if len(alike) == 1 else at // group
      index, valid, key, value = self._gather(
        pattern, cache, position, kv, length
      )
      term = None
      if logits is not None:
        term = relative_lib.Relative(
          logits=logits[..., at, :], label=relative_lib.OfScheme(self.relative)
        )
        term = relative_lib.with_positions(term, position[..., None], index)
      outs.append(
        oracle.dense_attention(
          query[..., at, :],
          key.astype(query.dtype),
          value.astype(query.dtype),
          mask=masks.Mask(key_valid=valid),
          relative=term,
        )
      )
      order += members
    return jnp.concatenate(outs, axis=-2)[..., np.argsort(order), :]

  def _gather(
    self,
    pattern: patterns.Pattern,
    cache: base.Cache,
    position: jax.Array,
    heads: Any,
    length: int,
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Positions `[*B, m]` of the keys of a token, which are, and they."""
    key, value = cache["key"][..., heads, :], cache["value"][..., heads, :]
    found = pattern.keys(position, length)
    if found is None:
      index = jnp.arange(length, dtype=jnp.int32)
      shape = (*position.shape, length)
      index = jnp.broadcast_to(
        jax.lax.broadcast_to_rank(index, len(shape)), shape
      )
      return index, pattern.mask(position[..., None], index), key, value
    index, valid = found
    leading = (self.kept() or (0, 0))[0]
    at = kv_cache.slots(index, key.shape[-3], leading)[..., None, None]
    key, value = (jnp.take_along_axis(x, at, axis=-3) for x in (key, value))
    return index, valid, key, value


def _zero_invalid(out: jax.Array, valid: jax.Array | None) -> jax.Array:
  if valid is None:
    return out
  return jnp.where(valid[..., None, None], out, jnp.zeros((), out.dtype))


def _split(tokens: Any, axis: int) -> Any:
  """Moves the token axis of all arrays to the front, keeping one of size 1."""
  return jax.tree.map(
    lambda x: jnp.moveaxis(jnp.expand_dims(x, axis + 1), axis, 0), tokens
  )
