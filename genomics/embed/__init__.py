"""Embeddings of windows, as tables that other tools read."""

import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common import files
from genomics import genome as genome_lib
from genomics import intervals
from genomics import tokenizers


def per_base(features: np.ndarray, tokens: tokenizers.Tokens) -> np.ndarray:
  """A vector for every base: that of the token that spells it.

  Args:
    features: `[m, D]`, one a token.
    tokens: the tokens; of those that overlap the first one counts.

  Returns:
    `[n, D]`.

  Example:
    >>> tokens = tokenizers.KmerTokenizer(2).encode(np.array([0, 1, 2]))
    >>> per_base(np.array([[1.0], [2.0]]), tokens)[:, 0].tolist()
    [1.0, 1.0, 2.0]

  Source: the rule of Marin et al., 2024 (BEND),
  https://arxiv.org/abs/2311.12570.
  """
  size = int(tokens.ends.max(initial=0))
  at = np.searchsorted(tokens.starts, np.arange(size), side="right") - 1
  return features[np.minimum(at, len(features) - 1)]


def export(
  folder: str | pathlib.Path,
  genome: genome_lib.Genome,
  windows: Sequence[intervals.Interval],
  f: Callable[[list[np.ndarray]], np.ndarray],
  *,
  rows: int = 256,
) -> int:
  """Writes one vector a window, in Parquet files of half precision.

  The same call again goes on where it was stopped: each file is written whole.

  Args:
    folder: gets `part-00000.parquet` and so on, with the columns chrom, start,
      end, strand, name and embedding.
    genome: to read.
    windows: by the genome's names, such as of `annotation.read_bed`.
    f: from the codes of some windows to `[n, D]`, for instance the mean over
      the features of an encoder.
    rows: windows in a file.

  Returns:
    How many files were written now.

  Raises:
    UserError: if pyarrow is not here, or there are files of other windows.

  Source: https://parquet.apache.org.
  """
  arrow = genome_lib.need("pyarrow")
  parquet = genome_lib.need("pyarrow.parquet", "pyarrow")
  folder, written = pathlib.Path(folder), 0
  for number, low in enumerate(range(0, len(windows), rows)):
    path, some = (
      folder / f"part-{number:05d}.parquet",
      windows[low : low + rows],
    )
    places: dict[str, Any] = {
      name: [getattr(x, name) for x in some]
      for name in ("chrom", "start", "end", "strand", "name")
    }
    if path.exists():
      here = parquet.read_table(path, columns=list(places)).to_pydict()
      if here != places:
        raise files.UserError(
          f"{path} holds other windows. Take another folder, or remove it."
        )
      continue
    vectors = f([genome_lib.read(genome, x).codes for x in some])
    vectors = np.asarray(vectors, np.float16)
    flat = arrow.array(vectors.reshape(-1))
    column = arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    with files.whole(path) as part:
      parquet.write_table(arrow.table(places | {"embedding": column}), part)
    written += 1
  return written
