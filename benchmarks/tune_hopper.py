"""Times the sizes that the Hopper kernels can run with.

  python -m benchmarks.tune_hopper
  python -m benchmarks.tune_hopper --length=16384 --depth=64

Prints, for a causal window and for dense causal attention in bfloat16, the time
and rate of the forward pass and of each gradient kernel with every candidate,
and the time of each kernel of causal linear attention by the chunks of a
segment. The best ones are written into `CONFIGS` and `steps` by hand.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app
from absl import flags

from benchmarks import timing
from jaxattn import patterns
from jaxattn._src import layout
from jaxattn._src.pallas import block_sparse_gpu
from jaxattn._src.pallas import block_sparse_gpu_backward
from jaxattn._src.pallas import linear_gpu_kernels

_LENGTH = flags.DEFINE_integer("length", 65536, "Tokens.", lower_bound=128)
_WINDOW = flags.DEFINE_integer("window", 4096, "Of them.", lower_bound=1)
_DEPTH = flags.DEFINE_integer("depth", 128, "Size of heads.")
_HEADS = flags.DEFINE_integer("heads", 8, "Of queries.", lower_bound=1)
_GROUP = flags.DEFINE_integer("group", 1, "Query heads for one of keys.")

_FORWARD = [{"slots": s, "turns": t} for s in (2, 3, 4) for t in (True, False)]
_QUERY = [
  {"query_step": size, "query_slots": slots}
  for size, slots in ((64, 2), (64, 3), (64, 4), (128, 2))
]
_KEY = [
  {"key_step": 64, "key_slots": slots, "paired": paired}
  for slots in (2, 3, 4)
  for paired in (False, True)
]


def main(argv: list[str]) -> None:
  """Tries all candidates."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}.")
  rngs = jax.random.split(jax.random.key(0), 4)
  length, depth, heads = _LENGTH.value, _DEPTH.value, _HEADS.value
  shape = (1, length, heads, depth)
  fewer = (1, length, heads // _GROUP.value, depth)
  query, key, value, dout = (
    jax.random.normal(rng, s, jnp.bfloat16)
    for rng, s in zip(rngs, (shape, fewer, fewer, shape), strict=True)
  )
  for name, pattern in (
    ("window", patterns.Window(_WINDOW.value - 1, 0)),
    ("causal", patterns.Causal()),
  ):
    (piece,) = layout.compile_pattern(pattern, length, length, 128, whole=True)
    problem = block_sparse_gpu.Problem(piece, None, depth**-0.5)
    flops = 2 * piece.layout.scores * heads * depth

    def report(
      kind: str,
      option: dict[str, Any],
      products: int,
      call: Any,
      *args: Any,
      problem: Any = problem,
      name: str = name,
      flops: int = flops,
    ) -> None:
      config = dataclasses.replace(block_sparse_gpu.CONFIGS[depth], **option)
      which = dataclasses.replace(problem, config=config)
      try:
        run = jax.jit(functools.partial(call, which)).lower(*args).compile()
        took = timing.back_to_back(lambda: run(*args), 0.15)
      except Exception as error:  # A size that does not fit is a result.
        text = str(error).splitlines()[0][:80]
        print(f"{name:7} {kind:8} {option}: {text}", flush=True)
        return
      rate = products * flops / took / 1e12
      print(
        f"{name:7} {kind:8} {took * 1e3:8.3f} ms {rate:6.0f} TFLOP/s {option}",
        flush=True,
      )

    _block_sparse(report, problem, query, key, value, dout)
  _linear(query, key, value)


def _block_sparse(
  report: Callable[..., None],
  problem: block_sparse_gpu.Problem,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  dout: jax.Array,
) -> None:
  """Reports every candidate of the three kernels."""
  out, lse = jax.jit(functools.partial(block_sparse_gpu.forward, problem))(
    query, key, value, {}
  )
  delta = jnp.sum(out.astype(jnp.float32) * dout, -1).swapaxes(1, 2)
  given = (query, key, value, {})
  for option in _FORWARD:
    report("forward", option, 2, block_sparse_gpu.forward, *given)
  inputs = block_sparse_gpu_backward.Inputs(
    query, key, value, {}, dout, lse, delta
  )
  back = (inputs,)
  for option in _QUERY:
    call = block_sparse_gpu_backward.query_gradient
    report("queries", option, 3, call, *back)
  for option in _KEY:
    call = block_sparse_gpu_backward.key_gradients
    report("keys", option, 4, call, *back)


def _linear(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
  """Times the kernels of causal linear attention."""
  kernels = linear_gpu_kernels
  for steps in (2, 4, 8, 16, 32, 64):
    if query.shape[1] % (2 * steps * kernels.CHUNK):
      continue
    product = kernels.Product(steps)
    start = jax.jit(functools.partial(kernels.sums, product))(key, value)
    arrays = (query, key, value, start)
    total = jnp.ones((1, query.shape[2], query.shape[1]))
    counts = jnp.ones((*start.shape[:2], total.shape[2] // 64, start.shape[4]))
    normalized = product.of(normalize=True)
    biased = product.of(bias=1, reverse=True)
    extra = {"bias": total, "counts": counts}
    for name, call, args in (
      ("sums", kernels.sums, (product, key, value)),
      ("output", kernels.apply, (normalized, *arrays, {"total": total})),
      ("gradient", kernels.apply, (biased, *arrays, extra)),
    ):
      run = jax.jit(functools.partial(call, args[0])).lower(*args[1:]).compile()
      took = timing.back_to_back(functools.partial(run, *args[1:]), 0.15)
      print(f"linear  {name:8} {took * 1e3:8.3f} ms steps {steps}", flush=True)


if __name__ == "__main__":
  app.run(main)
