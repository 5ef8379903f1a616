"""Sparse Transformer attention: strided and fixed factorised patterns."""

import dataclasses
from typing import Any
from typing import get_args
from typing import Literal

from jaxattn._src import base
from jaxattn._src import pattern_method
from jaxattn._src import patterns

Kind = Literal["strided", "fixed"]
Factors = Literal["merged", "heads", "local", "remote"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseTransformer(pattern_method.PatternMethod):
  """Softmax attention over one or both factors of a factorised pattern.

  With indices from 0 and `l = stride`, under a causal mask:

  - `strided`: the local factor is `{i - l + 1, ..., i}`, the remote one every
    `l`-th token back from the query, `{j : (i - j) mod l = 0}`. For data with a
    period: images with `l` tokens a row, audio.
  - `fixed`: the local factor is the query's own chunk of `l`, the remote one
    the summary columns at the end of every chunk,
    `{j : l - c <= j mod l < l}`. For text.

  Attention costs `O(T (l + T / l))` edges, `O(T^1.5)` at `l = sqrt(T)`.

  Attributes:
    stride: l, tokens in a chunk.
    kind: `strided` or `fixed`.
    factors: `merged`: every head sees both; `heads`: even heads have the local
      and odd heads the remote factor; `local` or `remote`: one for all heads,
      to be interleaved over layers by `interleave`.
    summary: c, summary columns of a chunk (`fixed` only).
    subblocks: how many sets of c summary columns there are, counted from the
      end of the chunk; heads with the remote factor take them in turn.
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Example:
    >>> method = sparse_transformer(stride=4, kind="fixed", summary=1)
    >>> x = jnp.ones((1, 16, 2, 8))
    >>> method.apply((), (), x, x, x, mask=jaxattn.CAUSAL)[0].shape
    (1, 16, 2, 8)

  Source: Child et al., 2019, https://arxiv.org/abs/1904.10509, section 4.
  """

  stride: int
  kind: Kind = "fixed"
  factors: Factors = "merged"
  summary: int = 1
  subblocks: int = 1

  time_exponent = 2.0
  memory_exponent = 1.0

  def __post_init__(self) -> None:
    for name in ("stride", "summary", "subblocks"):
      patterns.positive(name, getattr(self, name))
    for name, allowed in (("kind", Kind), ("factors", Factors)):
      if getattr(self, name) not in get_args(allowed):
        raise ValueError(
          f"{name} must be one of {get_args(allowed)}, got "
          f"{getattr(self, name)!r}."
        )
    if self.kind == "strided" and (self.summary, self.subblocks) != (1, 1):
      raise ValueError(
        "summary and subblocks belong to kind='fixed'; leave them out for "
        "'strided'."
      )
    if self.summary * self.subblocks > self.stride:
      raise ValueError(
        f"summary * subblocks must be at most stride={self.stride}, got "
        f"{self.summary} * {self.subblocks}."
      )

  def pattern(
    self, num_heads: int, q_len: int, k_len: int, *, causal: bool
  ) -> patterns.Pattern | tuple[patterns.Pattern, ...]:
    """The factors of every head."""
    del q_len, k_len
    remote_heads = 0
    found = []
    for head in range(num_heads):
      factors = self.factors
      if factors == "heads":
        factors = ("local", "remote")[head % 2]
      if factors == "local":
        found.append(self._local(causal))
        continue
      remote = self._remote(remote_heads % self.subblocks)
      remote_heads += 1
      both = factors == "merged"
      found.append(self._local(causal) | remote if both else remote)
    return tuple(found) if len(set(found)) > 1 else found[0]

  def _local(self, causal: bool) -> patterns.Pattern:
    if self.kind == "fixed":
      return patterns.Chunked(self.stride)
    side = self.stride - 1
    return patterns.Window(side, 0 if causal else side)

  def _remote(self, subblock: int) -> patterns.Pattern:
    if self.kind == "strided":
      return patterns.Strided(self.stride)
    shift = subblock * self.summary
    return patterns.Summary(self.stride, self.summary, shift)


def sparse_transformer(
  *,
  stride: int,
  kind: Kind = "fixed",
  factors: Factors = "merged",
  summary: int = 1,
  subblocks: int = 1,
  relative: Any = None,
  implementation: base.Implementation = None,
) -> SparseTransformer:
  """Returns Sparse Transformer's attention as a method.

  Args:
    stride: l, tokens in a chunk; near the root of the length.
    kind: `strided` (data with a period of `stride`) or `fixed` (text).
    factors: how heads have the two factors: `merged`, `heads`, `local` or
      `remote`; see `SparseTransformer` and `interleave`.
    summary: c, summary columns of a chunk (`fixed` only).
    subblocks: how many sets of c summary columns the heads share out.
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Returns:
    A `SparseTransformer` method; `strict` under a causal mask.

  Raises:
    ValueError: if an option has no such value, or the summary columns do not
      fit in the stride.

  Example:
    >>> sparse_transformer(stride=128, summary=8, subblocks=4).stride
    128

  Source: Child et al., 2019, https://arxiv.org/abs/1904.10509. Differs: the
  local factor of `strided` has `l` keys as in the authors' code (the paper
  writes `l + 1`); without a causal mask both factors look both ways.
  """
  return SparseTransformer(
    stride=stride,
    kind=kind,
    factors=factors,
    summary=summary,
    subblocks=subblocks,
    relative=relative,
    implementation=implementation,
  )


def interleave(
  method: SparseTransformer,
  num_layers: int,
  order: tuple[Factors, ...] = ("local", "remote"),
) -> tuple[SparseTransformer, ...]:
  """The methods of layers that have one factor each, in turn.

  Args:
    method: whose other options all layers have.
    num_layers: how many layers.
    order: the factors of the first layers, repeated; the authors' later models
      have one remote layer in four, for example
      `("local", "remote", "local", "local")`.

  Returns:
    One method for each layer, as models take them.

  Raises:
    ValueError: if there is no layer or no order.

  Example:
    >>> method = sparse_transformer(stride=16, kind="strided")
    >>> [m.factors for m in interleave(method, 3)]
    ['local', 'remote', 'local']

  Source: Child et al., 2019, https://arxiv.org/abs/1904.10509, section 5.2,
  equation 7. Local stands first: under `fixed`, local and then remote with the
  residual between them reaches every earlier token; the reverse does not.
  """
  patterns.positive("num_layers", num_layers)
  if not order:
    raise ValueError("order must name at least one factor, got ().")
  return tuple(
    dataclasses.replace(method, factors=order[layer % len(order)])
    for layer in range(num_layers)
  )
