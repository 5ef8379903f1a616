"""What a pattern compiles to: pieces, tiles, density, cost, and a drawing."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._src import base
from jaxattn._src import dispatch
from jaxattn._src import layout as layout_lib
from jaxattn._src import patterns
from jaxattn._src.engines import backends


@dataclasses.dataclass(frozen=True)
class PieceExplanation:
  """One piece of a compiled pattern.

  Attributes:
    reindexing: how tokens are regrouped before they are cut in tiles.
    query_tile: tokens in a tile of queries.
    key_tile: tokens in a tile of keys.
    tiles: pairs of tiles that are computed.
    full_tiles: how many of them need no mask.
    masks: distinct masks of the others.
    rows: `(rows, longest, full)` of each group of rows run together: how many
      tiles of queries, how many key tiles the longest of them visits, and how
      many of those are full in all.

  Example:
    >>> explain(patterns.Window(8, 0), 64).pieces[0].reindexing
    'none'

  Source: the mask info of splash attention (jax.experimental.pallas.ops.tpu).
  """

  reindexing: str
  query_tile: int
  key_tile: int
  tiles: int
  full_tiles: int
  masks: int
  rows: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What one head of a pattern costs, and who would compute it.

  Attributes:
    query_length: T.
    key_length: S.
    pieces: what the pattern compiles to.
    edges: pairs of tokens that attend; None above 2**28 pairs in all, where
      they are not counted.
    tiles: pairs of tiles that are computed.
    scores: scores computed: tiles times their area.
    density: scores computed, as a share of T x S.
    flops: floating-point operations of the matrix products of a forward pass,
      all heads; the backward pass takes 3.5 times as many.
    bytes: of one forward pass over query, key, value and output as the tiles
      read them, all heads.
    implementation: who would serve the call on this machine: `xla`, or the
      Pallas kernels of its device, `hopper` or `tpu`.
    reason: why they would.
    pattern: the pattern itself.

  Example:
    >>> found = explain(patterns.Window(128, 128), 4096, num_heads=8)
    >>> found.density < 0.12
    True

  Source: counts as in Dao et al., 2022, https://arxiv.org/abs/2205.14135.
  """

  query_length: int
  key_length: int
  pieces: tuple[PieceExplanation, ...]
  edges: int | None
  tiles: int
  scores: int
  density: float
  flops: int
  bytes: int
  implementation: str
  reason: str
  pattern: patterns.Pattern

  def __str__(self) -> str:
    """A paragraph and a line for each piece."""
    edges = "not counted" if self.edges is None else f"{self.edges:,}"
    lines = [
      f"{self.query_length:,} queries x {self.key_length:,} keys, "
      f"{edges} edges; computes {self.density:.2%} of all scores in "
      f"{self.tiles:,} tiles",
      f"forward: {self.flops / 1e9:.2f} GFLOP, {self.bytes / 2**20:.1f} MiB "
      f"read and written, by {self.implementation} ({self.reason})",
    ]
    for at, piece in enumerate(self.pieces):
      rows = ", ".join(
        f"{n} rows of {width} tiles" for n, width, _ in piece.rows
      )
      lines.append(
        f"piece {at}: re-indexing {piece.reindexing}, tiles of "
        f"{piece.query_tile} x {piece.key_tile}, {piece.tiles:,} visited "
        f"({piece.full_tiles:,} full, {piece.masks} distinct masks): {rows}"
      )
    return "\n".join(lines)

  def draw(self, size: int = 32) -> str:
    """Draws the pattern, `size` characters wide, one line a row.

    Args:
      size: cells along the longer side.

    Returns:
      Lines of `#` (all edges of the cell), `+` (some) and `.` (none).

    Raises:
      ValueError: if `size` is not positive.

    Example:
      >>> print(explain(patterns.Window(1, 0), 4).draw(4))
      #...
      ##..
      .##.
      ..##

    Source: the figures of Child et al., 2019, https://arxiv.org/abs/1904.10509.
    """
    if size < 1:
      raise ValueError(f"size must be at least 1, got {size}.")
    longest = max(self.query_length, self.key_length)
    step = max(1, -(-longest // size))
    rows, cols = (
      layout_lib.Fold(n, 1, step) for n in (self.query_length, self.key_length)
    )
    classes = self.pattern.classes(
      patterns.Tiles(rows.index), patterns.Tiles(cols.index)
    )
    classes = np.where(
      np.all(cols.real, 1)[None, :], classes, np.minimum(classes, 1)
    )
    # Closed forms leave some cells open; the predicate settles those.
    for row, col in zip(*np.nonzero(classes == patterns.PARTIAL), strict=True):
      i, j = rows.index[row][rows.real[row]], cols.index[col][cols.real[col]]
      cell = self.pattern.mask(i[:, None], j[None, :])
      classes[row, col] = patterns.FULL * cell.all() or int(cell.any())
    lines = ["".join(".+#"[c] for c in line) for line in classes]
    return "\n".join(lines)


def explain(
  pattern: patterns.Pattern,
  query_length: int,
  key_length: int | None = None,
  *,
  num_heads: int = 1,
  head_dim: int = 64,
  causal: bool = False,
  bytes_per_element: int = 4,
  tile: int | None = None,
  implementation: base.Implementation = None,
) -> Explanation:
  """Tells what `block_sparse` makes of a pattern, without running it.

  Args:
    pattern: a `jaxattn.patterns.Pattern`.
    query_length: T.
    key_length: S; None means T.
    num_heads: heads that `flops` and `bytes` count.
    head_dim: H.
    causal: whether the mask is causal.
    bytes_per_element: 4 for float32, 2 for bfloat16, which Hopper's kernels
      need.
    tile: as of `block_sparse`.
    implementation: as of `block_sparse`.

  Returns:
    An `Explanation`; print it, or call its `draw`.

  Raises:
    ValueError: if `pattern` is not a pattern or a length is not positive.
    NotImplementedError: if the named implementation cannot serve.

  Example:
    >>> found = explain(patterns.Strided(64), 4096, causal=True)
    >>> found.pieces[0].reindexing
    'residue classes modulo 64'

  Source: the counts follow Dao et al., 2022, https://arxiv.org/abs/2205.14135.
  """
  if not isinstance(pattern, patterns.Pattern):
    raise ValueError(
      f"pattern must be a jaxattn.patterns.Pattern, got {pattern!r}."
    )
  key_length = query_length if key_length is None else key_length
  for name, n in (("query_length", query_length), ("key_length", key_length)):
    if n < 1:
      raise ValueError(f"{name} must be at least 1, got {n}.")
  if causal:
    pattern = pattern & patterns.Causal()
  pattern = pattern.resolve(query_length, key_length)
  choice = _choose(head_dim, bytes_per_element, tile, implementation)
  size = backends.tile(choice.name, pattern, query_length, key_length)
  pieces = layout_lib.compile_pattern(
    pattern, query_length, key_length, size or tile, whole=size is not None
  )
  tiles = sum(p.layout.tiles for p in pieces)
  scores = sum(p.layout.scores for p in pieces)
  read = sum(
    2 * p.query.num * p.query.tile + 2 * p.layout.tiles * p.key.tile
    for p in pieces
  )
  return Explanation(
    query_length=query_length,
    key_length=key_length,
    pieces=tuple(_explain_piece(p) for p in pieces),
    edges=_count_edges(pattern, query_length, key_length),
    tiles=tiles,
    scores=scores,
    density=scores / (query_length * key_length),
    flops=4 * scores * head_dim * num_heads,
    bytes=read * head_dim * num_heads * bytes_per_element,
    implementation=choice.name,
    reason=choice.reason,
    pattern=pattern,
  )


def _choose(
  head_dim: int,
  bytes_per_element: int,
  tile: int | None,
  implementation: base.Implementation,
) -> dispatch.Choice:
  dtype = jnp.bfloat16 if bytes_per_element == 2 else jnp.float32
  one = jax.ShapeDtypeStruct((1, 1, 1, head_dim), dtype)
  found = backends.obstacles(
    one, one, one, relative=False, scale=1.0, tile=tile
  )
  return dispatch.choose("block_sparse", implementation, found)


def _explain_piece(piece: layout_lib.Piece) -> PieceExplanation:
  key: Any = piece.key
  if isinstance(key, layout_lib.Columns):
    how = f"{len(key.columns)} key columns gathered"
  elif key.stride > 1:
    how = f"residue classes modulo {key.stride}"
  else:
    how = "none"
  return PieceExplanation(
    reindexing=how,
    query_tile=piece.query.tile,
    key_tile=key.tile,
    tiles=piece.layout.tiles,
    full_tiles=int((piece.layout.table == 0).sum()),
    masks=len(piece.layout.masks) - 1,
    rows=tuple(
      (len(g.rows), g.cols.shape[1], g.num_full)
      for g in layout_lib.groups(piece.layout)
    ),
  )


def _count_edges(
  pattern: patterns.Pattern, q_len: int, k_len: int
) -> int | None:
  if q_len * k_len > 1 << 28:
    return None
  i, j = np.arange(q_len), np.arange(k_len)
  step = max(1, (1 << 22) // k_len)
  total = 0
  for start in range(0, q_len, step):
    rows = i[start : start + step, None]
    found = np.broadcast_to(pattern.mask(rows, j[None, :]), (len(rows), k_len))
    total += int(found.sum())
  return total
