"""Kernel and low-rank methods against dense attention, by length.

  python -m benchmarks.linear_methods
  python -m benchmarks.linear_methods --lengths=1024 --methods=linear

See `benchmarks.against_dense`. Dense attention is not causal in it.
"""

from absl import app

import jaxattn
from benchmarks import against_dense


def _performer(**options: object) -> jaxattn.AttentionMethod:
  return jaxattn.performer(num_features=256, **options)  # pyrefly: ignore


_MAKERS: against_dense.Makers = {
  "linear": against_dense.method(lambda length: jaxattn.linear_transformer()),
  "linear causal": against_dense.method(
    lambda length: jaxattn.linear_transformer(), causal=True
  ),
  "performer": against_dense.method(lambda length: _performer()),
  "performer causal": against_dense.method(
    lambda length: _performer(), causal=True
  ),
  "performer relu causal": against_dense.method(
    lambda length: _performer(kind="generalized"), causal=True
  ),
  "linformer k=256": against_dense.method(
    lambda length: jaxattn.linformer(max_length=length, k=256)
  ),
}


def main(argv: list[str]) -> None:
  """Runs the benchmark."""
  against_dense.run(
    argv,
    _MAKERS,
    [1024, 2048, 4096, 8192, 16384, 32768, 65536],
    "benchmarks/results/linear_methods.jsonl",
  )


if __name__ == "__main__":
  app.run(main)
