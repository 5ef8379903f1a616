"""What ETC's two streams know of each other: masks and relative labels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import masks

NUM_STRUCTURE_LABELS = 3  # Not a member, member, of another context.

_AXES = {
  "long_valid": "T",
  "global_valid": "G",
  "long_segment_ids": "T",
  "global_segment_ids": "G",
  "paragraph_ids": "T",
  "sentence_ids": "T",
  "membership": "GT",
  "sees_all": "G",
  "global_to_long": "GT",
  "long_to_global": "TG",
  "context_ids": "G",
}
_INTEGERS = frozenset(name for name in _AXES if name.endswith("_ids"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EtcStructure:
  """Who may see whom, and who belongs to whom; `None` means "no constraint".

  T is the number of long tokens, G that of global tokens. All fields that are
  set apply together. A long token is a member of a global token if
  `sentence_ids` or `membership` says so.

  Attributes:
    long_valid: `[*B, T]` bool, False at padding; its rows are zero.
    global_valid: `[*B, G]` bool.
    long_segment_ids: `[*B, T]` ints, the example of every long token where
      several are packed in a row; tokens of different examples do not meet.
      Given together with `global_segment_ids`.
    global_segment_ids: `[*B, G]` ints.
    paragraph_ids: `[*B, T]` ints; long tokens see long tokens of their own
      paragraph only.
    sentence_ids: `[*B, T]` ints, the index of the global token that a long
      token is a member of; -1 for none.
    membership: `[*B, G, T]` bool, further members, for tokens that belong to
      several global tokens.
    hard_global_to_long: whether global tokens see their members only. Static.
    hard_long_to_global: whether long tokens see only the global tokens that
      they are members of. Static.
    sees_all: `[*B, G]` bool, global tokens that `hard_global_to_long` does not
      restrict, for example those of a question.
    global_to_long: `[*B, G, T]` bool, any further mask of what global tokens
      see.
    long_to_global: `[*B, T, G]` bool, of the global tokens that long tokens
      see.
    context_ids: `[*B, G]` ints; two global tokens of different contexts get one
      label instead of that of their distance, so that the order of contexts
      does not matter.

  Example:
    >>> structure = EtcStructure(
    ...     sentence_ids=jnp.array([[0, 0, 1]]), hard_global_to_long=True)
    >>> structure.global_to_long_mask(2)[0].astype(int).tolist()
    [[1, 1, 0], [0, 0, 1]]

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.2.
  """

  long_valid: jax.Array | None = None
  global_valid: jax.Array | None = None
  long_segment_ids: jax.Array | None = None
  global_segment_ids: jax.Array | None = None
  paragraph_ids: jax.Array | None = None
  sentence_ids: jax.Array | None = None
  membership: jax.Array | None = None
  hard_global_to_long: bool = dataclasses.field(
    default=False, metadata={"static": True}
  )
  hard_long_to_global: bool = dataclasses.field(
    default=False, metadata={"static": True}
  )
  sees_all: jax.Array | None = None
  global_to_long: jax.Array | None = None
  long_to_global: jax.Array | None = None
  context_ids: jax.Array | None = None

  def check(
    self, batch: tuple[int, ...], long_len: int, global_len: int
  ) -> "EtcStructure":
    """Returns `self`, or raises ValueError for fields that do not fit."""
    sizes = {"T": long_len, "G": global_len}
    for name, axes in _AXES.items():
      value = getattr(self, name)
      if value is None:
        continue
      want = (*batch, *(sizes[axis] for axis in axes))
      if jnp.shape(value) != want:
        raise ValueError(
          f"structure.{name} must have shape {want}, got {jnp.shape(value)}."
        )
      integers = name in _INTEGERS
      kind = jnp.integer if integers else jnp.bool_
      if not jnp.issubdtype(jnp.result_type(value), kind):
        raise ValueError(
          f"structure.{name} must be {'integers' if integers else 'bool'}, got "
          f"{jnp.result_type(value)}."
        )
    if (self.long_segment_ids is None) != (self.global_segment_ids is None):
      raise ValueError(
        "structure.long_segment_ids and structure.global_segment_ids go "
        "together; only one is set."
      )
    hard = self.hard_global_to_long or self.hard_long_to_global
    if hard and not self.has_members:
      raise ValueError(
        "structure.hard_global_to_long and hard_long_to_global need members: "
        "set sentence_ids or membership."
      )
    if self.sees_all is not None and not self.hard_global_to_long:
      raise ValueError(
        "structure.sees_all has no effect without hard_global_to_long; set it "
        "or leave sees_all out."
      )
    return self

  def check_labels(self, *, tables: bool) -> "EtcStructure":
    """Raises ValueError for fields that only relative labels would read."""
    if tables:
      return self
    if self.context_ids is not None:
      raise ValueError(
        "structure.context_ids has no effect without relative tables; leave "
        "it out."
      )
    hard = self.hard_global_to_long or self.hard_long_to_global
    if self.has_members and not hard:
      raise ValueError(
        "structure.sentence_ids and membership have no effect without relative "
        "tables or a hard mask; leave them out."
      )
    return self

  @property
  def has_members(self) -> bool:
    """Whether it says which long tokens belong to which global ones."""
    return self.sentence_ids is not None or self.membership is not None

  def members(self, global_len: int) -> jax.Array | None:
    """Which long token is a member of which global one, `[*B, G, T]`."""
    found = self.membership
    if self.sentence_ids is not None:
      index = jnp.arange(global_len, dtype=self.sentence_ids.dtype)[:, None]
      ids = self.sentence_ids[..., None, :]
      by_id = ids == jax.lax.broadcast_to_rank(index, ids.ndim)
      found = by_id if found is None else found | by_id
    return found

  def global_to_long_mask(self, global_len: int) -> jax.Array | None:
    """Which long tokens global tokens see, `[*B, G, T]`; None for all."""
    terms = self._pairs(("global", "long"))
    seen = self.members(global_len)
    if self.hard_global_to_long and seen is not None:
      if self.sees_all is not None:
        seen = seen | self.sees_all[..., :, None]
      terms.append(seen)
    return _all([*terms, self.global_to_long])

  def long_to_global_mask(self, global_len: int) -> jax.Array | None:
    """Which global tokens long tokens see, `[*B, T, G]`; None for all."""
    terms = self._pairs(("long", "global"))
    seen = self.members(global_len)
    if self.hard_long_to_global and seen is not None:
      terms.append(jnp.swapaxes(seen, -1, -2))
    return _all([*terms, self.long_to_global])

  def _pairs(self, order: tuple[str, str]) -> list[Any]:
    """Terms of validity and packing, from the one stream to the other."""
    valid = [getattr(self, f"{side}_valid") for side in order]
    terms = [
      None if valid[0] is None else valid[0][..., :, None],
      None if valid[1] is None else valid[1][..., None, :],
    ]
    ids = [getattr(self, f"{side}_segment_ids") for side in order]
    if ids[0] is not None:
      terms.append(ids[0][..., :, None] == ids[1][..., None, :])
    return terms

  def long_mask(self) -> masks.Mask:
    """The mask among long tokens, besides their window."""
    ids = self.long_segment_ids
    if self.paragraph_ids is not None:
      finer = self.paragraph_ids
      ids = finer if ids is None else pair_ids(ids, finer)
    return _self_mask(self.long_valid, ids)

  def global_mask(self) -> masks.Mask:
    """The mask among global tokens."""
    return _self_mask(self.global_valid, self.global_segment_ids)


def _self_mask(valid: Any, ids: Any) -> masks.Mask:
  return masks.Mask(
    key_valid=valid,
    query_valid=valid,
    query_segment_ids=ids,
    key_segment_ids=ids,
  )


def _all(terms: list[Any]) -> jax.Array | None:
  found = None
  for term in terms:
    if term is not None:
      found = term if found is None else found & term
  return found


def pair_ids(first: jax.Array, second: jax.Array) -> jax.Array:
  """Ids that agree exactly where both given ids agree, `[*B, T]` int32.

  Ranks the pairs, so that it is exact whatever their size and order.
  """
  order = jnp.lexsort((second, first), axis=-1)
  changes = jnp.zeros((*order.shape[:-1], max(order.shape[-1] - 1, 0)), bool)
  for ids in (first, second):
    ids = jnp.take_along_axis(ids, order, axis=-1)
    changes = changes | (ids[..., 1:] != ids[..., :-1])
  rank = jnp.cumsum(changes.astype(jnp.int32), axis=-1)
  rank = jnp.concatenate([jnp.zeros_like(order[..., :1]), rank], axis=-1)
  return jnp.take_along_axis(rank, jnp.argsort(order, axis=-1), axis=-1)


@dataclasses.dataclass(frozen=True)
class EtcDistance:
  """ETC's label of the distance `j - i`.

  0 is the query's own token, `1 ... k` are tokens at its right by as many,
  `k + 1 ... 2 k` tokens at its left by `1 ... k`; larger distances count as k.

  Attributes:
    max_distance: k.

  Example:
    >>> EtcDistance(3)(np.arange(11) - 5).tolist()
    [6, 6, 6, 5, 4, 0, 1, 2, 3, 3, 3]

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.1.
  """

  max_distance: int

  def __post_init__(self) -> None:
    if self.max_distance < 1:
      raise ValueError(
        f"max_distance must be at least 1, got {self.max_distance}."
      )

  @property
  def num_labels(self) -> int:
    """`2 k + 1`; those of the structure follow."""
    return 2 * self.max_distance + 1

  def __call__(self, distance: Any) -> Any:
    """Labels of integer arrays, NumPy or JAX."""
    far = self.max_distance
    right, left = distance.clip(0, far), (-distance).clip(0, far)
    return right + left + far * left.clip(0, 1)


@dataclasses.dataclass(frozen=True)
class OfContext:
  """A label of distance within a context; the next label for other pairs.

  Called with ids `context * length + index`.
  """

  distance: EtcDistance
  length: int

  def __call__(self, query_id: Any, key_id: Any) -> Any:
    same = query_id // self.length == key_id // self.length
    label = self.distance(key_id % self.length - query_id % self.length)
    return jnp.where(same, label, self.distance.num_labels)

  def ids(self, context_ids: jax.Array) -> jax.Array:
    """What the label compares, `[*B, G]` int32."""
    equal = context_ids[..., :, None] == context_ids[..., None, :]
    first = jnp.argmax(equal, axis=-1).astype(jnp.int32)
    index = jnp.arange(self.length, dtype=jnp.int32)
    return first * self.length + jax.lax.broadcast_to_rank(index, first.ndim)


@dataclasses.dataclass(frozen=True)
class OfSequence:
  """Labels in one sequence of global and then long tokens, by their indices.

  Pairs of one kind have the label of their distance; mixed pairs have the next
  label.
  """

  distance: EtcDistance
  num_global: int

  def __call__(self, query_id: Any, key_id: Any) -> Any:
    same = (query_id < self.num_global) == (key_id < self.num_global)
    label = self.distance(key_id - query_id)
    return jnp.where(same, label, self.distance.num_labels)


def etc_relative_labels(
  long_len: int,
  global_len: int,
  *,
  max_distance: int,
  structure: EtcStructure | None = None,
) -> dict[str, jax.Array]:
  """The relative labels of all four pieces, written out.

  For looking at and for tests: `etc_attention` makes none of these arrays,
  and `long_to_long` has T x T elements.

  Args:
    long_len: T.
    global_len: G.
    max_distance: k; labels `0 ... 2 k` are distances, `2 k + 1` is "not a
      member", `2 k + 2` "member", `2 k + 3` "of another context".
    structure: members and contexts; None for none.

  Returns:
    `long_to_long [T, T]`, `long_to_global [*B, T, G]`, `global_to_long
    [*B, G, T]`, `global_to_global [*B, G, G]`; without the fields that they
    depend on there is no `*B`.

  Raises:
    ValueError: if `max_distance` is not positive.

  Example:
    >>> etc_relative_labels(3, 1, max_distance=2)["long_to_long"].tolist()
    [[0, 1, 2], [3, 0, 1], [4, 3, 0]]

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, sections 3.1
  and 3.2.
  """
  distance = EtcDistance(max_distance)
  structure = EtcStructure() if structure is None else structure

  def distances(length: int) -> jax.Array:
    index = np.arange(length, dtype=np.int32)
    return jnp.asarray(distance(index[None, :] - index[:, None]))

  members = structure.members(global_len)
  if members is None:
    members = jnp.zeros((global_len, long_len), bool)
  cross = distance.num_labels + members.astype(jnp.int32)
  among = distances(global_len)
  if structure.context_ids is not None:
    ids = structure.context_ids
    same = ids[..., :, None] == ids[..., None, :]
    among = jnp.broadcast_to(
      jax.lax.broadcast_to_rank(among, same.ndim), same.shape
    )
    among = jnp.where(same, among, distance.num_labels + 2)
  return {
    "long_to_long": distances(long_len),
    "long_to_global": jnp.swapaxes(cross, -1, -2),
    "global_to_long": cross,
    "global_to_global": among,
  }


def etc_segment_ids(breakpoints: jax.Array) -> jax.Array:
  """Segment ids of rows of packed examples, from the ends of the examples.

  Args:
    breakpoints: `[*B, T]` ints or bools, 1 at the last token of every example.

  Returns:
    `[*B, T]` int32, counting examples from the row's end: the last is 1, and
    padding behind it is 0.

  Raises:
    ValueError: if `breakpoints` are neither integers nor bools.

  Example:
    >>> etc_segment_ids(jnp.array([0, 1, 0, 1, 0])).tolist()
    [2, 2, 1, 1, 0]

  Source: the input format of the code of Ainslie et al., 2020,
  https://github.com/google-research/google-research/tree/master/etcmodel.
  """
  if not (
    jnp.issubdtype(breakpoints.dtype, jnp.integer)
    or breakpoints.dtype == jnp.bool_
  ):
    raise ValueError(
      f"breakpoints must be integers or bools, got {breakpoints.dtype}."
    )
  ends = jnp.flip(breakpoints.astype(jnp.int32), axis=-1)
  return jnp.flip(jnp.cumsum(ends, axis=-1), axis=-1)


def etc_fixed_blocks(
  long_valid: jax.Array, *, tokens_per_block: int
) -> EtcStructure:
  """The structure of a text without sentences: blocks of equal size.

  Args:
    long_valid: `[*B, T]` bool, False at padding.
    tokens_per_block: how many consecutive tokens share a global token.

  Returns:
    An `EtcStructure` with `ceil(T / tokens_per_block)` global tokens; those
    whose block is padding are invalid.

  Raises:
    ValueError: if `tokens_per_block` is not positive or `long_valid` not bool.

  Example:
    >>> valid = jnp.array([True, True, True, False, False])
    >>> etc_fixed_blocks(valid, tokens_per_block=2).global_valid.tolist()
    [True, True, False]

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.3.
  """
  if tokens_per_block < 1:
    raise ValueError(
      f"tokens_per_block must be at least 1, got {tokens_per_block}."
    )
  if long_valid.dtype != jnp.bool_:
    raise ValueError(f"long_valid must be bool, got {long_valid.dtype}.")
  length = long_valid.shape[-1]
  num_global = -(-length // tokens_per_block)
  index = jnp.arange(length, dtype=jnp.int32) // tokens_per_block
  index = jax.lax.broadcast_to_rank(index, long_valid.ndim)
  sentence_ids = jnp.where(long_valid, index, -1)
  padded = jnp.pad(
    long_valid,
    [(0, 0)] * (long_valid.ndim - 1)
    + [(0, num_global * tokens_per_block - length)],
  )
  blocks = padded.reshape(*padded.shape[:-1], num_global, tokens_per_block)
  return EtcStructure(
    long_valid=long_valid,
    global_valid=jnp.any(blocks, axis=-1),
    sentence_ids=sentence_ids,
  )
