"""Longformer attention: a window, dilated on some heads, and global tokens."""

import dataclasses
from typing import Any

from jaxattn._src import base
from jaxattn._src import pattern_method
from jaxattn._src import patterns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Longformer(pattern_method.PatternMethod):
  """Softmax attention over a window around every query and global tokens.

  On a head with dilation `d`, query `i` sees `i + d m` for `|m| <= window / 2`;
  the first `num_global` tokens see every token and are seen by all, each edge
  once, in one softmax. A causal mask keeps what stands at or before the query.

  Attributes:
    window: total width, even: `window / 2` keys on each side, and the query's
      own.
    dilation: tokens between two keys, for all heads or one for each.
    num_global: how many leading tokens are global.
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Example:
    >>> method = longformer(window=4, dilation=(1, 2), num_global=1)
    >>> x = jnp.ones((1, 9, 2, 8))
    >>> method.apply((), (), x, x, x)[0].shape
    (1, 9, 2, 8)

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150.
  """

  window: int
  dilation: int | tuple[int, ...] = 1
  num_global: int = 0

  time_exponent = 1.0
  memory_exponent = 1.0

  def __post_init__(self) -> None:
    if self.window < 0 or self.window % 2:
      raise ValueError(
        "window is the total width, window / 2 on each side: it must be even "
        f"and not negative, got {self.window}."
      )
    given = self.dilation
    if isinstance(given, list):
      object.__setattr__(self, "dilation", tuple(given))
    for dilation in given if isinstance(given, tuple | list) else (given,):
      patterns.positive("dilation", dilation)
    if self.num_global < 0:
      raise ValueError(
        f"num_global must not be negative, got {self.num_global}."
      )

  def pattern(
    self, num_heads: int, q_len: int, k_len: int, *, causal: bool
  ) -> patterns.Pattern | tuple[patterns.Pattern, ...]:
    """The window of every head, with the global tokens."""
    del q_len, k_len
    if not isinstance(self.dilation, tuple):
      return self._of_dilation(self.dilation, causal)
    if len(self.dilation) != num_heads:
      raise ValueError(
        f"dilation must be an int or one for each of {num_heads} heads, got "
        f"{self.dilation}."
      )
    return tuple(self._of_dilation(d, causal) for d in self.dilation)

  def kept(self) -> tuple[int, int]:
    """The global tokens, and the left half of the widest window."""
    dilation = self.dilation
    widest = max(dilation) if isinstance(dilation, tuple) else dilation
    return self.num_global, self.window // 2 * widest + 1

  def _of_dilation(self, dilation: int, causal: bool) -> patterns.Pattern:
    side = self.window // 2
    found = patterns.dilated(side, 0 if causal else side, dilation=dilation)
    if not self.num_global:
      return found
    # Under causality a global row sees earlier columns, which are global.
    return found | patterns.Global(self.num_global, rows=not causal)


def longformer(
  *,
  window: int,
  dilation: int | tuple[int, ...] = 1,
  num_global: int = 0,
  relative: Any = None,
  implementation: base.Implementation = None,
) -> Longformer:
  """Returns Longformer's attention as a method.

  For global tokens that differ between the rows of a batch use
  `jaxattn.global_attention`, and for their own projections the layer
  `jaxattn.models.layers.longformer.LongformerSelfAttention`. Windows that grow
  with depth are a tuple of methods, one for each layer of a model.

  Args:
    window: total width, even: `window / 2` keys on each side of the query.
    dilation: tokens between two keys, for all heads or one for each.
    num_global: how many leading tokens see all and are seen by all.
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Returns:
    A `Longformer` method; `strict` under a causal mask.

  Raises:
    ValueError: if `window` is odd or negative, a dilation is not positive, or
      `num_global` is negative.

  Example:
    >>> longformer(window=512, num_global=1).window
    512

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150. Differs: the
  causal form with global tokens masks these causally too.
  """
  return Longformer(
    window=window,
    dilation=dilation,
    num_global=num_global,
    relative=relative,
    implementation=implementation,
  )
