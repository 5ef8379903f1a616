"""Methods of fixed patterns against dense attention, by length.

  python -m benchmarks.fixed_patterns
  python -m benchmarks.fixed_patterns --lengths=1024,2048 --methods=bigbird

See `benchmarks.against_dense`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import app

import jaxattn
from benchmarks import against_dense
from jaxattn import patterns


def _method(
  method: jaxattn.AttentionMethod, causal: bool = False
) -> Callable[[int], against_dense.Attend]:
  return against_dense.method(lambda length: method, causal=causal)


def _star(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Ring and relay, with the mean of the tokens as the relay."""
  relay = [x.mean(1, keepdims=True) for x in (q, k, v)]
  nodes = jaxattn.star_ring_attention(
    q,
    k,
    v,
    embedding_key=k,
    embedding_value=v,
    relay_key=relay[1],
    relay_value=relay[2],
  )
  center = jaxattn.star_relay_attention(
    relay[0], k, v, relay_key=relay[1], relay_value=relay[2]
  )
  return nodes + jnp.broadcast_to(center, nodes.shape)


def _global(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """A window, and 16 tokens spread over the text that are global."""
  length = q.shape[1]
  places = jnp.arange(16, dtype=jnp.int32)[None] * (length // 16)
  return jaxattn.global_attention(
    q, k, v, places, pattern=patterns.Window(256, 256)
  )


# Window 512, BigBird's blocks, Sparse Transformer's stride and ETC's radius are
# those of the papers.
_MAKERS: against_dense.Makers = {
  "star": lambda length: _star,
  "sparse strided, causal": _method(
    jaxattn.sparse_transformer(stride=128, kind="strided"), causal=True
  ),
  "sparse fixed, causal": _method(
    jaxattn.sparse_transformer(stride=128, summary=8), causal=True
  ),
  "longformer": _method(jaxattn.longformer(window=512, num_global=16)),
  "longformer, data globals": lambda length: _global,
  "bigbird": _method(jaxattn.bigbird(block=64, num_random=3)),
  "etc": _method(jaxattn.etc(num_global=128, radius=84)),
}


def main(argv: list[str]) -> None:
  """Runs the benchmark."""
  against_dense.run(
    argv,
    _MAKERS,
    [1024, 2048, 4096, 8192, 16384],
    "benchmarks/results/fixed_patterns.jsonl",
  )


if __name__ == "__main__":
  app.run(main)
