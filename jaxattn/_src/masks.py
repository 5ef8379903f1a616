"""Structured masks: what may attend to what, without a T x S array."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
  """A conjunction of constraints; `None` or `False` means "no constraint".

  `True` means "may attend". `[*B]` are the leading axes of query; an axis of
  size 1 broadcasts, missing leading axes do not. A row that may attend to
  nothing gives exactly zero, with zero gradient.

  Attributes:
    causal: a query sees only keys whose position is at most its own. Static.
    key_valid: `[*B, S]` bool, False at padding keys.
    query_valid: `[*B, T]` bool, False at padding queries; their rows are zero.
    query_segment_ids: `[*B, T]` ints; a query sees only keys of its own
      segment. Given together with `key_segment_ids`.
    key_segment_ids: `[*B, S]` ints.
    query_positions: `[*B, T]` ints, the positions that `causal` compares;
      default `arange(T)`.
    key_positions: `[*B, S]` ints; default `arange(S)`.

  Example:
    >>> mask = Mask(causal=True, key_valid=jnp.array([[True, True, False]]))
    >>> mask.dense(3, 3)[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 0]]

  Source: the structured masks of tokamax and levanter, in one dataclass.
  """

  causal: bool = dataclasses.field(default=False, metadata={"static": True})
  key_valid: jax.Array | None = None
  query_valid: jax.Array | None = None
  query_segment_ids: jax.Array | None = None
  key_segment_ids: jax.Array | None = None
  query_positions: jax.Array | None = None
  key_positions: jax.Array | None = None

  @property
  def fields_set(self) -> tuple[str, ...]:
    """Names of the constraints that are set."""
    values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return tuple(
      n for n, v in values.items() if v is not None and v is not False
    )

  @property
  def dynamic(self) -> bool:
    """Whether anything beyond a static `causal` over `arange` is set."""
    return any(name != "causal" for name in self.fields_set)

  @property
  def dynamic_causal(self) -> bool:
    """Whether `causal` compares positions given as arrays."""
    given = self.query_positions is not None or self.key_positions is not None
    return self.causal and given

  def only(self, *supported: str, by: str) -> "Mask":
    """Returns `self`, or raises if a constraint outside `supported` is set.

    Args:
      *supported: field names that the caller honours.
      by: the caller's name, for the message.

    Returns:
      The mask itself.

    Raises:
      NotImplementedError: naming the first field that is set and unsupported.

    Example:
      >>> Mask(causal=True).only("causal", by="my_op").causal
      True

    Source: `tokamax` backends refuse in this manner.
    """
    for name in self.fields_set:
      if name not in supported:
        listed = ", ".join(supported) or "no mask field"
        raise NotImplementedError(
          f"{by} cannot honour mask.{name}; it honours: {listed}."
        )
    return self

  def check(self, batch: tuple[int, ...], q_len: int, k_len: int) -> "Mask":
    """Returns `self` with arrays of the right rank, or raises ValueError.

    Args:
      batch: `*B`, the leading axes of query.
      q_len: T.
      k_len: S.

    Returns:
      The mask itself.

    Raises:
      ValueError: naming the field, the wanted and the found shape or dtype.

    Example:
      >>> Mask(key_valid=jnp.ones((2, 5), bool)).check((2,), 4, 5).causal
      False

    Source: DeepMind's chex, as a ValueError.
    """
    for name in self.fields_set:
      if name == "causal":
        continue
      value = getattr(self, name)
      want = (*batch, q_len if name.startswith("query") else k_len)
      found = jnp.shape(value)
      fits = (
        len(found) == len(want)
        and found[-1] == want[-1]
        and all(f in (1, w) for f, w in zip(found[:-1], want[:-1], strict=True))
      )
      if not fits:
        raise ValueError(f"mask.{name} must have shape {want}, got {found}.")
      dtype, flag = jnp.result_type(value), name.endswith("valid")
      if not jnp.issubdtype(dtype, jnp.bool_ if flag else jnp.integer):
        kind = "bool" if flag else "integers"
        raise ValueError(f"mask.{name} must be {kind}, got {dtype}.")
    if (self.query_segment_ids is None) != (self.key_segment_ids is None):
      raise ValueError(
        "mask.query_segment_ids and mask.key_segment_ids go together; "
        f"only one is set: {self.fields_set}."
      )
    positions = (
      self.query_positions is not None or self.key_positions is not None
    )
    if positions and not self.causal:
      raise ValueError(
        "mask.query_positions and mask.key_positions are compared by causal "
        "only; set causal=True or leave them out."
      )
    return self

  def dense(self, q_len: int, k_len: int) -> jax.Array:
    """Returns the bool mask, broadcastable to `[*B, N, T, S]`.

    Args:
      q_len: T.
      k_len: S.

    Returns:
      `[*B, 1, T, S]` bool, or `[1, T, S]` when no array is set.

    Raises:
      Nothing; call `check` first.

    Example:
      >>> Mask(causal=True).dense(2, 2)[0].astype(int).tolist()
      [[1, 0], [1, 1]]

    Source: the definition of each field.
    """
    terms = []
    if self.causal:
      q_pos, k_pos = self.positions(q_len, k_len)
      terms.append(k_pos[..., None, :] <= q_pos[..., :, None])
    if self.key_valid is not None:
      terms.append(self.key_valid[..., None, :])
    if self.query_valid is not None:
      terms.append(self.query_valid[..., :, None])
    if self.query_segment_ids is not None and self.key_segment_ids is not None:
      terms.append(
        self.query_segment_ids[..., :, None]
        == self.key_segment_ids[..., None, :]
      )
    mask = jnp.ones((q_len, k_len), bool)
    for term in terms:
      rank = max(term.ndim, mask.ndim)
      mask = jax.lax.broadcast_to_rank(mask, rank) & jax.lax.broadcast_to_rank(
        term, rank
      )
    return mask[..., None, :, :]

  def positions(self, q_len: int, k_len: int) -> tuple[jax.Array, jax.Array]:
    """Returns the positions that `causal` compares, `[*B, T]` and `[*B, S]`.

    Args:
      q_len: T.
      k_len: S.

    Returns:
      The arrays given, or `arange`; both of the same rank.

    Raises:
      Nothing.

    Example:
      >>> Mask(causal=True).positions(2, 3)[1].tolist()
      [0, 1, 2]

    Source: the definition of `causal`.
    """
    q = (
      jnp.arange(q_len)
      if self.query_positions is None
      else self.query_positions
    )
    k = jnp.arange(k_len) if self.key_positions is None else self.key_positions
    rank = max(q.ndim, k.ndim)
    return jax.lax.broadcast_to_rank(q, rank), jax.lax.broadcast_to_rank(
      k, rank
    )


def packed(
  segment_ids: jax.Array, *, causal: bool = False, pad_id: int | None = None
) -> Mask:
  """Builds the mask of a row of several documents packed together.

  Args:
    segment_ids: `[*B, T]` ints, the document of every token.
    causal: whether a token sees only earlier tokens of its document.
    pad_id: segment id of padding, whose tokens neither see nor are seen;
      None when there is none.

  Returns:
    A `Mask` for self-attention.

  Raises:
    ValueError: if the ids are not integers.

  Example:
    >>> mask = packed(jnp.array([[1, 1, 2]]), causal=True)
    >>> mask.dense(3, 3)[0, 0, 2].tolist()
    [False, False, True]

  Source: packed sequences as in T5, https://arxiv.org/abs/1910.10683.
  """
  if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
    raise ValueError(f"segment_ids must be integers, got {segment_ids.dtype}.")
  valid = None if pad_id is None else segment_ids != pad_id
  return Mask(
    causal=causal,
    key_valid=valid,
    query_valid=valid,
    query_segment_ids=segment_ids,
    key_segment_ids=segment_ids,
  )


FULL = Mask()
CAUSAL = Mask(causal=True)
ALL_FIELDS = frozenset(f.name for f in dataclasses.fields(Mask))
