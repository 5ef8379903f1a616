"""ETC's attention on one sequence, as a method."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import base
from jaxattn._src import block_patterns
from jaxattn._src import etc_labels
from jaxattn._src import etc_streams
from jaxattn._src import masks
from jaxattn._src import pattern_method
from jaxattn._src import patterns
from jaxattn._src import relative as relative_lib
from jaxattn._src.engines import block_sparse as engine
from jaxattn._src.etc_streams import etc_attention as etc_attention
from jaxattn._src.etc_streams import EtcHeads as EtcHeads
from jaxattn._src.etc_streams import EtcTable as EtcTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Etc(pattern_method.PatternMethod):
  """ETC attention on one sequence, whose first tokens are the global ones.

  Global tokens see and are seen by all; the others see those at most `radius`
  away. With `max_distance` the parameters are, for each of `long` and `global`,
  `{"vectors": [R, N, H], "bias": [R, N]}` with `R = 2 max_distance + 4`, drawn
  as in the paper's code: vectors from a normal truncated at two standard
  deviations, of scale `stddev`, and biases of zero. There are no members.

  Attributes:
    num_global: G, how many leading tokens are global.
    radius: how far the others see to each side.
    max_distance: k of ETC's own relative tables; None for none.
    stddev: of their initial vectors.
    relative: a relative-position scheme of `jaxattn.positions` on the index in
      the sequence instead, or None.
    implementation: as of `block_sparse`.

  Example:
    >>> method = etc(num_global=2, radius=3)
    >>> x = jnp.ones((1, 12, 2, 8))
    >>> method.apply((), (), x, x, x)[0].shape
    (1, 12, 2, 8)

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483.
  """

  num_global: int
  radius: int
  max_distance: int | None = None
  stddev: float = 0.5

  # A global token sees the future.
  honours = masks.ALL_FIELDS - {"causal", "query_positions", "key_positions"}
  causality = base.NONE
  time_exponent = 1.0
  memory_exponent = 1.0

  def __post_init__(self) -> None:
    for name in ("num_global", "radius"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"{name} must not be negative, got {getattr(self, name)}."
        )
    if self.max_distance is not None:
      etc_labels.EtcDistance(self.max_distance)  # Checks it.
      if self.relative is not None:
        raise ValueError(
          "max_distance and relative are two schemes for one place; give one."
        )

  def pattern(
    self, num_heads: int, q_len: int, k_len: int, *, causal: bool
  ) -> patterns.Pattern:
    """Global tokens, and a window on the others."""
    del num_heads, q_len, k_len, causal
    window = patterns.Window(self.radius, self.radius)
    if not self.num_global:
      return window
    return patterns.Global(self.num_global) | block_patterns.Moved(
      window, self.num_global
    )

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Makes the tables; there is no state."""
    if self.max_distance is None:
      return super().init(rng, shapes)
    rows = 2 * self.max_distance + 1 + etc_labels.NUM_STRUCTURE_LABELS
    params = {}
    for name, part in zip(
      ("long", "global"), jax.random.split(rng), strict=True
    ):
      table = etc_streams.init_table(
        part, rows, shapes.num_heads, shapes.head_dim, self.stddev
      )
      params[name] = {
        k: v.astype(shapes.dtype) for k, v in table._asdict().items()
      }
    return params, ()

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
    """Attends among global and other tokens; see `AttentionMethod`."""
    options = {"mask": mask, "rng": rng, "train": train}
    if self.max_distance is None:
      return super().apply(params, state, query, key, value, **options)
    base.check_qkv(query, key, value)
    mask.only(*sorted(self.honours), by=type(self).__name__)
    distance = etc_labels.EtcDistance(self.max_distance)
    rows = np.arange(distance.num_labels + 1)
    split = min(self.num_global, query.shape[-3])
    parts = []
    for name, x in (
      ("global", query[..., :split, :, :]),
      ("long", query[..., split:, :, :]),
    ):
      table = etc_streams.EtcTable(**params[name])
      etc_streams.check_table(
        f"params[{name!r}]", table, query, distance.num_labels
      )
      parts.append(
        etc_streams.relative_logits(x, table, rows, query.shape[-1] ** -0.5)
      )
    lead = query.shape[:-3]
    ids = [
      jnp.broadcast_to(
        jax.lax.broadcast_to_rank(
          jnp.arange(n, dtype=jnp.int32), len(lead) + 1
        ),
        (*lead, n),
      )
      for n in (query.shape[-3], key.shape[-3])
    ]
    out = engine.block_sparse(
      query,
      key,
      value,
      pattern=self.pattern(query.shape[-2], 0, 0, causal=False),
      mask=mask,
      relative=relative_lib.Relative(
        logits=jnp.concatenate(parts, axis=-3),
        label=etc_labels.OfSequence(distance, self.num_global),
        query_ids=ids[0],
        key_ids=ids[1],
      ),
      implementation=self.implementation,
    )
    return out, state


def etc(
  *,
  num_global: int,
  radius: int,
  max_distance: int | None = None,
  stddev: float = 0.5,
  relative: Any = None,
  implementation: base.Implementation = None,
) -> Etc:
  """Returns ETC's attention as a method, on one sequence.

  The first `num_global` tokens are the global ones, with the projections that
  all tokens share. For two streams, members, packing and projections of their
  own use `etc_attention`, or the layers of `jaxattn.models.layers.etc`.

  Args:
    num_global: G, how many leading tokens see all and are seen by all.
    radius: how far the others see to each side.
    max_distance: k of ETC's relative tables; None for none.
    stddev: of their initial vectors, 0.5 as in the paper's code.
    relative: a relative-position scheme of `jaxattn.positions` instead of the
      tables, or None.
    implementation: as of `block_sparse`.

  Returns:
    An `Etc` method; it serves no causal mask and does not decode.

  Raises:
    ValueError: if a number is negative, or both `max_distance` and `relative`
      are given.

  Example:
    >>> etc(num_global=230, radius=84, max_distance=12).radius
    84

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483.
  """
  return Etc(
    num_global=num_global,
    radius=radius,
    max_distance=max_distance,
    stddev=stddev,
    relative=relative,
    implementation=implementation,
  )
