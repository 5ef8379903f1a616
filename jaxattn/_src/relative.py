"""Relative-position terms that the softmax engines add to the scores."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base

# Maps pairs of tokens to labels in `[0, R)`; hashable, equal by value. Called
# with integer arrays of one shape, NumPy or JAX: `distance = j - i` (key index
# minus query index), or the ids of query and key when the term has ids.
Label = Callable[..., Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Relative:
  """A score term `logits[..., t, n, label(t, s)]`, added after scaling.

  Attributes:
    logits: `[*B, T, N, R]` floats; `*B` and T may be 1 (a table shared by all
      queries, as in T5 and ALiBi). Gradients reach it.
    label: static function of `s - t`, or of two ids when ids are given.
    query_ids: `[*B, T]` ints or None.
    key_ids: `[*B, S]` ints or None; given together with `query_ids`.

  Example:
    >>> term = jaxattn.positions.ClippedDistance(4)
    >>> logits = jnp.zeros((1, 1, 2, term.num_labels))
    >>> Relative(logits=logits, label=term).logits.shape
    (1, 1, 2, 9)

  Source: Shaw et al., 2018, https://arxiv.org/abs/1803.02155; T5,
  https://arxiv.org/abs/1910.10683; ETC, https://arxiv.org/abs/2004.08483.
  """

  logits: jax.Array
  label: Label = dataclasses.field(metadata={"static": True})
  query_ids: jax.Array | None = None
  key_ids: jax.Array | None = None

  def check(
    self, batch: tuple[int, ...], q_len: int, k_len: int, heads: int
  ) -> "Relative":
    """Returns `self`, or raises ValueError for shapes that do not fit."""
    want = (*batch, q_len, heads)
    found = self.logits.shape
    fits = len(found) == len(want) + 1 and all(
      f in (1, w) for f, w in zip(found[:-1], want, strict=True)
    )
    if not fits or found[-2] != heads:
      raise ValueError(
        f"relative.logits must have shape {(*want, 'R')} (or 1 in the leading "
        f"axes and the length), got {found}."
      )
    if (self.query_ids is None) != (self.key_ids is None):
      raise ValueError("relative.query_ids and relative.key_ids go together.")
    for name, ids, length in (
      ("query_ids", self.query_ids, q_len),
      ("key_ids", self.key_ids, k_len),
    ):
      if ids is not None and ids.shape != (*batch, length):
        raise ValueError(
          f"relative.{name} must have shape {(*batch, length)}, got "
          f"{ids.shape}."
        )
    return self

  def labels(self, query_index: jax.Array, key_index: jax.Array) -> jax.Array:
    """Labels of all pairs of two index vectors without ids, `[T, S]` int32."""
    return jnp.asarray(
      self.label(key_index[None, :] - query_index[:, None]), jnp.int32
    )

  def scores(self, q_len: int, k_len: int) -> jax.Array:
    """The dense term, `[*B, N, T, S]` float32, for the oracle."""
    logits = jnp.moveaxis(self.logits.astype(jnp.float32), -2, -3)
    if self.query_ids is None or self.key_ids is None:
      labels = self.labels(jnp.arange(q_len), jnp.arange(k_len))
    else:
      labels = self.label(
        *jnp.broadcast_arrays(
          self.query_ids[..., :, None], self.key_ids[..., None, :]
        )
      )
      labels = jnp.asarray(labels, jnp.int32)[..., None, :, :]
    shape = jnp.broadcast_shapes(
      logits.shape[:-1],
      labels.shape[:-1] if labels.ndim > 2 else labels.shape[:1],
    )
    logits = jnp.broadcast_to(
      jax.lax.broadcast_to_rank(logits, len(shape) + 1),
      (*shape, logits.shape[-1]),
    )
    labels = jnp.broadcast_to(
      jax.lax.broadcast_to_rank(labels, len(shape) + 1), (*shape, k_len)
    )
    return jnp.take_along_axis(logits, labels, axis=-1)


@dataclasses.dataclass(frozen=True)
class OfScheme:
  """The label of a scheme; unlike its bound method, equal by value."""

  scheme: Any

  def __call__(self, distance: Any) -> Any:
    return self.scheme.label(distance)


@dataclasses.dataclass(frozen=True)
class OfDifference:
  """A label of two ids, taken from a label of their difference."""

  label: Label

  def __call__(self, query_id: Any, key_id: Any) -> Any:
    return self.label(key_id - query_id)


@dataclasses.dataclass(frozen=True)
class Moved:
  """A label of distances that are measured `by` too large."""

  label: Label
  by: int

  def __call__(self, distance: Any) -> Any:
    return self.label(distance - self.by)


def init_scheme(
  scheme: Any, rng: jax.Array, shapes: base.AttentionShapes
) -> Any:
  """Parameters of a relative scheme, `()` without one."""
  return () if scheme is None else scheme.init(rng, shapes)


def of_scheme(scheme: Any, params: Any, query: jax.Array) -> Relative | None:
  """The score term of a relative scheme for these queries."""
  if scheme is None:
    return None
  return Relative(logits=scheme.logits(params, query), label=OfScheme(scheme))


def with_positions(
  relative: Relative | None, query: jax.Array, key: jax.Array
) -> Relative | None:
  """The same term, with distances taken from positions `[*B, T]`, `[*B, S]`."""
  if relative is None:
    return None
  return dataclasses.replace(
    relative, label=OfDifference(relative.label), query_ids=query, key_ids=key
  )


def moved(relative: Relative | None, by: int) -> Relative | None:
  """The same term for keys whose index stands `by` too high."""
  if relative is None:
    return None
  return dataclasses.replace(relative, label=Moved(relative.label, by))
