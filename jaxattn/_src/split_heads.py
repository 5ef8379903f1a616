"""Some heads of a layer by one method, some by another."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import masks

_ORDER: tuple[base.Causality, ...] = ("none", "values", "strict")


@dataclasses.dataclass(frozen=True)
class SplitHeads:
  """A method for each group of heads; see `split_heads`.

  Parameters, state, selections and caches are tuples, one entry for each part.

  Attributes:
    parts: methods and how many query heads each has, in the order of the heads.

  Example:
    >>> import jaxattn
    >>> method = SplitHeads(
    ...     ((jaxattn.dense(), 1), (jaxattn.sliding_window(left=3), 3)))
    >>> shapes = jaxattn.AttentionShapes(num_heads=4, head_dim=8)
    >>> params, state = method.init(jax.random.key(0), shapes)
    >>> x = jax.random.normal(jax.random.key(1), (1, 10, 4, 8))
    >>> method.apply(params, state, x, x, x)[0].shape
    (1, 10, 4, 8)

  Source: the local and routing heads of Roy et al., 2021,
  https://arxiv.org/abs/2003.05997, section 4.
  """

  parts: tuple[tuple[base.AttentionMethod, int], ...]

  def __post_init__(self) -> None:
    if not self.parts:
      raise ValueError("split_heads needs at least one part.")
    for method, heads in self.parts:
      if heads < 1:
        raise ValueError(f"heads of {method} must be positive, got {heads}.")
      if getattr(method, "shared_params", False):
        raise ValueError(
          f"{method} shares its parameters over layers, which a part cannot."
        )

  @property
  def honours(self) -> frozenset[str]:
    """What all parts honour."""
    return frozenset.intersection(*(m.honours for m, _ in self.parts))

  @property
  def causality(self) -> base.Causality:
    """The weakest of the parts."""
    return min((m.causality for m, _ in self.parts), key=_ORDER.index)

  @property
  def time_exponent(self) -> float:
    """That of the slowest part."""
    return max(m.time_exponent for m, _ in self.parts)

  @property
  def memory_exponent(self) -> float:
    """That of the largest part."""
    return max(m.memory_exponent for m, _ in self.parts)

  @property
  def shares_query_key(self) -> bool:
    """Whether no part reads keys."""
    return all(getattr(m, "shares_query_key", False) for m, _ in self.parts)

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Makes parameters and state of every part."""
    rngs = jax.random.split(rng, len(self.parts))
    made = [
      method.init(r, own)
      for (method, _), r, own in zip(
        self.parts, rngs, self._shapes(shapes), strict=True
      )
    ]
    return tuple(p for p, _ in made), tuple(s for _, s in made)

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
    """What every part selects; None for those that select nothing."""
    found = []
    heads = zip(self._cut(query, query), self._cut(query, key), strict=True)
    for i, (q, k) in enumerate(heads):
      method = self.parts[i][0]
      select = getattr(method, "select", None)
      one = None
      if select is not None:
        one = select(params[i], state[i], q, k, mask=mask, rng=rng, train=train)
      found.append(one)
    return tuple(found)

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
    """Attends with every part; see `AttentionMethod`."""
    base.check_qkv(query, key, value)
    mask.only(*self.honours, by=f"split_heads of {len(self.parts)} methods")
    rngs = [None] * len(self.parts)
    if rng is not None:
      rngs = list(jax.random.split(rng, len(self.parts)))
    outs, states = [], []
    heads = zip(
      *(self._cut(query, x) for x in (query, key, value)), strict=True
    )
    for i, qkv in enumerate(heads):
      options: dict[str, Any] = {}
      if selection is not None and selection[i] is not None:
        options["selection"] = selection[i]
      out, new = self.parts[i][0].apply(
        params[i],
        state[i],
        *qkv,
        mask=mask,
        rng=rngs[i],
        train=train,
        **options,
      )
      outs.append(out)
      states.append(new)
    return jnp.concatenate(outs, axis=-2), tuple(states)

  def init_cache(
    self,
    params: base.Params,
    state: base.State,
    *,
    batch_shape: tuple[int, ...],
    max_length: int,
    shapes: base.AttentionShapes,
  ) -> base.Cache:
    """Makes an empty cache of every part."""
    parts = tuple(
      method.init_cache(
        params[i],
        state[i],
        batch_shape=batch_shape,
        max_length=max_length,
        shapes=own,
      )
      for i, ((method, _), own) in enumerate(
        zip(self.parts, self._shapes(shapes), strict=True)
      )
    )
    return {"parts": parts, "length": jnp.zeros(batch_shape, jnp.int32)}

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
    """Appends new tokens to every part; see `AttentionMethod`."""
    outs, caches = [], []
    heads = zip(
      *(self._cut(query, x) for x in (query, key, value)), strict=True
    )
    for i, qkv in enumerate(heads):
      out, grown = self.parts[i][0].extend(
        params[i], state[i], cache["parts"][i], *qkv, key_valid=key_valid
      )
      outs.append(out)
      caches.append(grown)
    grown = {"parts": tuple(caches), "length": caches[0]["length"]}
    return jnp.concatenate(outs, axis=-2), grown

  def _counts(self, heads: int, kv_heads: int) -> list[tuple[int, int]]:
    """Query heads and key heads of every part."""
    own = [n for _, n in self.parts]
    if sum(own) != heads:
      raise ValueError(
        f"split_heads has parts of {own} heads, {sum(own)} in all; the layer "
        f"has {heads}."
      )
    group = heads // kv_heads
    if any(n % group for n in own):
      raise ValueError(
        f"{kv_heads} key heads serve {group} query heads each, which parts of "
        f"{own} heads would cut apart; make them multiples of {group}."
      )
    return [(n, n // group) for n in own]

  def _shapes(self, shapes: base.AttentionShapes) -> list[base.AttentionShapes]:
    return [
      dataclasses.replace(shapes, num_heads=n, num_kv_heads=k)
      for n, k in self._counts(shapes.num_heads, shapes.kv_heads)
    ]

  def _cut(self, query: jax.Array, x: jax.Array) -> list[jax.Array]:
    """The heads of `x` that belong to every part."""
    found, start = [], 0
    heads, own = query.shape[-2], x.shape[-2]
    for n, _ in self._counts(heads, own):
      size = n * own // heads
      found.append(x[..., start : start + size, :])
      start += size
    return found


def split_heads(
  *parts: tuple[base.AttentionMethod, int],
) -> SplitHeads:
  """Returns a method that gives some heads to one method, some to another.

  Args:
    *parts: pairs of a method and a number of query heads, in the order of the
      heads. With grouped keys each number is a multiple of the group.

  Returns:
    A `SplitHeads` method. It honours what all parts honour, is as causal as the
    weakest, costs what the slowest does, and decodes if all do.

  Raises:
    ValueError: if there is no part, a number is not positive, or a method
      shares its parameters over layers.

  Example:
    >>> import jaxattn
    >>> local = jaxattn.sliding_window(left=15)
    >>> split_heads((jaxattn.routing(num_clusters=4), 2), (local, 2)).causality
    'values'

  Source: Roy et al., 2021, https://arxiv.org/abs/2003.05997, section 4.
  """
  return SplitHeads(tuple(parts))
