"""How near our attention cores come to their own products on this CPU.

  python -m benchmarks.bounds
  python -m benchmarks.bounds --cases=bigbird,linear --length=4096

For each case, in turns in one process: all of ours; a skeleton, which does the
same matrix products on the same blocks and nothing else; and the skeleton with
an exponential of every score. What ours takes beyond the skeleton goes to
masks, maxima and sums, gathering and scattering. Float32, batch 1, 8 heads of
64. The figures beside those of peers say what a faster engine could gain.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app
from absl import flags

from benchmarks import peer_cases
from benchmarks import peer_cases_jax as peer_cases_jax
from benchmarks import timing
from experiments.common import files

_CASES = flags.DEFINE_list("cases", [], "Cases; all without it.")
_LENGTH = flags.DEFINE_integer("length", 4096, "Tokens.", lower_bound=512)
_ROUNDS = flags.DEFINE_integer("rounds", 12, "Turns.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 20.0, "Of a case and pass.")
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/bounds.jsonl", "Where results go."
)

_HEADS, _DEPTH = 8, 64
# Case -> queries of a block, and the keys that they see.
_BLOCKS = {
  "window512": (128, 640),
  "bigbird": (64, 512),
  "local64_causal": (64, 128),
  "sinkhorn": (64, 128),
  "sinkhorn_causal": (64, 128),
  "routing": (256, 256),
  "routing_causal": (256, 256),
  "linformer": (512, 256),
}
_LINEAR = ("linear",)
_PASSES = ("forward", "forward+backward")


@dataclasses.dataclass(frozen=True)
class Skeleton:
  """The products of softmax attention by blocks.

  Attributes:
    queries: of a block.
    keys: that a block sees.
    exponential: whether scores are exponentiated.
  """

  queries: int
  keys: int
  exponential: bool

  def operands(self, length: int) -> tuple[jax.Array, ...]:
    """Queries, keys, values and cotangents of every block, already gathered."""
    blocks = length // self.queries
    rngs = jax.random.split(jax.random.key(0), 4)
    sizes = (self.queries, self.keys, self.keys, self.queries)
    return tuple(
      jax.random.normal(rng, (blocks, _HEADS, size, _DEPTH)) / 8
      for rng, size in zip(rngs, sizes, strict=True)
    )

  def forward(self, q: Any, k: Any, v: Any, ct: Any) -> Any:
    """Scores and outputs."""
    del ct

    def block(x: Any) -> jax.Array:
      return self._scores(x[0], x[1]) @ x[2]

    return jax.lax.map(block, (q, k, v))

  def both(self, q: Any, k: Any, v: Any, ct: Any) -> Any:
    """Those, and the five products of the gradients, scores again first."""

    def block(x: Any) -> Any:
      q, k, v, ct = x
      scores = self._scores(q, k)
      grad = scores * (ct @ v.swapaxes(-1, -2))
      turned = grad.swapaxes(-1, -2)
      return grad @ k, turned @ q, scores.swapaxes(-1, -2) @ ct

    return self.forward(q, k, v, ct), jax.lax.map(block, (q, k, v, ct))

  def _scores(self, q: jax.Array, k: jax.Array) -> jax.Array:
    scores = q @ k.swapaxes(-1, -2)
    return jnp.exp(scores) if self.exponential else scores


def _linear(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """The products of linear attention, without features or normaliser."""
  state = jnp.einsum("bnhd,bnhe->bhde", k, v)
  return jnp.einsum("bnhd,bhde->bnhe", q, state)


def _compiled(function: Callable[..., Any], args: Sequence[Any]) -> Any:
  ran = jax.jit(function, keep_unused=True).lower(*args).compile()
  return lambda: ran(*args)


def _functions(case: str, which: str, length: int) -> dict[str, Any]:
  """Ours and its skeletons, compiled."""
  attend, inputs = peer_cases.CASES[f"jaxattn_{case}"].build(
    length, _HEADS, _DEPTH
  )
  arrays = (*inputs, jax.random.normal(jax.random.key(1), inputs[-1].shape))
  found = {"ours": timing.compile_pass(attend, which, arrays).call}
  if case in _LINEAR:
    found["products"] = timing.compile_pass(_linear, which, arrays).call
    return found
  for name, exponential in (("products", False), ("with exp", True)):
    skeleton = Skeleton(*_BLOCKS[case], exponential)
    one = skeleton.both if which != "forward" else skeleton.forward
    found[name] = _compiled(one, skeleton.operands(length))
  return found


def measure(case: str, which: str, length: int) -> dict[str, Any]:
  """One row of the table.

  Args:
    case: one of `_BLOCKS` or `linear`.
    which: `forward` or `forward+backward`.
    length: tokens.

  Returns:
    Milliseconds of the fastest call of each, and what share of ours the
    products are.
  """
  functions = _functions(case, which, length)
  timed = timing.interleave(
    functions, rounds=_ROUNDS.value, seconds=_SECONDS.value
  )
  ms = {
    f"{name} ms": f"{timed[name].min_ms:.1f}" if name in timed else ""
    for name in ("ours", "products", "with exp")
  }
  best = timed.get("with exp", timed["products"]).min_ms
  return {
    "case": case,
    "length": length,
    "pass": which,
    **ms,
    "products and exp, % of ours": round(100 * best / timed["ours"].min_ms),
  }


def main(argv: Sequence[str]) -> None:
  """Measures, prints a table and writes the results."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  known = [*_BLOCKS, *_LINEAR]
  cases = _CASES.value or known
  strange = sorted(set(cases) - set(known))
  if strange:
    raise app.UsageError(
      f"no case {strange[0]!r}; there are: {', '.join(known)}."
    )
  where, output, rows = timing.environment(), pathlib.Path(_OUTPUT.value), []
  for case in cases:
    for which in _PASSES:
      rows.append(measure(case, which, _LENGTH.value))
      print(rows[-1], flush=True)
      timing.write_jsonl(output, [where | row for row in rows])
  head = (
    f"`{where['command']}`, {where['date']}, {where['device']} with "
    f"{where['cores']} cores, jax {where['jax']}; float32, batch 1, {_HEADS} "
    f"heads of {_DEPTH}; fastest of up to {_ROUNDS.value} turns.\n\n"
  )
  with files.whole(output.with_suffix(".md")) as part:
    part.write_text(head + timing.markdown(rows) + "\n")
  print(f"\n{timing.markdown(rows)}\nwritten to {output} (.md beside it)")


if __name__ == "__main__":
  app.run(main)
