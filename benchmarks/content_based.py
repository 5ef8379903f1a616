"""Content-based methods against dense attention, by length.

  python -m benchmarks.content_based
  python -m benchmarks.content_based --lengths=1024 --methods=routing

See `benchmarks.against_dense`. Hashing, routing and sorting of blocks are
included. Dense attention is not causal in it.
"""

from absl import app

import jaxattn
from benchmarks import against_dense

_LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768]


def _reformer(rounds: int) -> against_dense.Maker:
  return against_dense.method(
    lambda length: jaxattn.reformer(rounds=rounds, chunk=64), causal=True
  )


def _clusters(length: int) -> int:
  """A power of two near the root of the length."""
  return 1 << round(length.bit_length() / 2)


_MAKERS: against_dense.Makers = {
  "reformer, 1 round": _reformer(1),
  "reformer, 2 rounds": _reformer(2),
  "reformer, 4 rounds": _reformer(4),
  "reformer, 8 rounds": _reformer(8),
  "routing": against_dense.method(
    lambda length: jaxattn.routing(num_clusters=_clusters(length)), causal=True
  ),
  "routing, nearest": against_dense.method(
    lambda length: jaxattn.routing(
      num_clusters=_clusters(length), window=128, mode="nearest"
    ),
    causal=True,
  ),
  "sinkhorn": against_dense.method(
    lambda length: jaxattn.sinkhorn(max_length=length, block=64)
  ),
  "sinkhorn causal": against_dense.method(
    lambda length: jaxattn.sinkhorn(max_length=length, block=64), causal=True
  ),
  "sinkhorn, 8 blocks": against_dense.method(
    lambda length: jaxattn.sinkhorn(max_length=length, block=64, cut=8)
  ),
}


def main(argv: list[str]) -> None:
  """Measures all lengths, writes and prints the results."""
  against_dense.run(
    argv, _MAKERS, _LENGTHS, "benchmarks/results/content_based.jsonl"
  )


if __name__ == "__main__":
  app.run(main)
