r"""Memory of a deep decoder against its depth, by what is kept or recomputed.

  python -m benchmarks.remat_depth
  pip install 'jax[tpu]'
  python -m benchmarks.remat_depth --topology=v5e:2x2
  python -m benchmarks.remat_depth --method=reformer \
    --kinds=none,full,reversible \
    --output=benchmarks/results/reversible_depth.jsonl

Counts, for the Sparse Transformer's form of the decoder or one with Reformer's
attention in every layer, the bytes that the forward pass leaves for the
backward pass (parameters aside), and the temporary memory that the compiler
plans for the loss and its gradients. With a `--topology` it compiles for one
device of that kind of TPU, which need not be there. XLA's compiler for CPUs
drops the barriers by which `jax.checkpoint` keeps recomputation apart from the
forward pass and merges the two, so that there only the first count shows its
whole effect; reversible residuals do not depend on barriers.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import app
from absl import flags
from absl import logging
from flax import linen as nn
from jax.experimental import topologies

import jaxattn
from benchmarks import timing
from experiments.common import files
from experiments.common import plots
from jaxattn.models import decoder
from jaxattn.models import sparse_transformer

_DEPTHS = flags.DEFINE_list("depths", ["2", "4", "8", "16"], "Layers.")
_LENGTH = flags.DEFINE_integer("length", 1024, "Tokens.", lower_bound=64)
_WIDTH = flags.DEFINE_integer("width", 128, "Of the model.", lower_bound=16)
_BATCH = flags.DEFINE_integer("batch", 2, "Rows.", lower_bound=1)
_METHOD = flags.DEFINE_enum(
  "method", "sparse_transformer", ["sparse_transformer", "reformer"], "Which."
)
_KINDS = flags.DEFINE_list(
  "kinds",
  ["none", "dots", "full", "reversible"],
  "What is computed again: nothing, all but products, all; or all, with "
  "reversible residuals.",
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", "", "TPU to compile for, for example v5e:2x2; empty: this device."
)
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/remat_depth.jsonl", "Where results go."
)


def _loss(
  model: decoder.Decoder, rest: Any, tokens: jax.Array, params: Any
) -> jax.Array:
  logits: Any = model.apply({**rest, "params": params}, tokens)
  picked = jnp.take_along_axis(
    jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1
  )
  return -jnp.mean(picked)


def _bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _config(depth: int, kind: str) -> decoder.DecoderConfig:
  stride = 32
  form: dict[str, Any] = {
    "num_layers": depth,
    "width": _WIDTH.value,
    "num_heads": 4,
    "remat": "none" if kind == "reversible" else kind,
    "residuals": "reversible" if kind == "reversible" else "plain",
  }
  if _METHOD.value == "reformer":
    return decoder.DecoderConfig(
      vocab_size=256,
      max_length=_LENGTH.value,
      methods=(jaxattn.reformer(rounds=2, num_buckets=32),),
      **form,
    )
  return sparse_transformer.config(
    vocab_size=256,
    position_axes=(_LENGTH.value // stride, stride),
    stride=stride,
    **form,
  )


def measure(depth: int, kind: str) -> dict[str, Any]:
  """The memory of one depth and kind of residuals."""
  cfg = _config(depth, kind)
  model = decoder.Decoder(cfg)
  tokens = jnp.zeros((_BATCH.value, cfg.max_length), jnp.int32)
  rest = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
  params = rest.pop("params")
  loss = functools.partial(_loss, model, rest, tokens)
  kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding()),
    params,
  )
  compiled = jax.jit(jax.value_and_grad(loss)).lower(arguments).compile()
  memory = compiled.memory_analysis()
  if memory is None:
    raise RuntimeError("this backend does not tell its temporary memory.")
  return {
    "depth": depth,
    "kind": kind,
    "method": _METHOD.value,
    "length": cfg.max_length,
    "width": cfg.width,
    "batch": _BATCH.value,
    "topology": _TOPOLOGY.value,
    "kept_bytes": _bytes(kept) - _bytes(params),
    "temporary_bytes": memory.temp_size_in_bytes,
  }


@functools.cache
def _sharding() -> jax.sharding.Sharding:
  """One device, of the topology asked for."""
  if not _TOPOLOGY.value:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
  topology = topologies.get_topology_desc(
    platform="tpu", topology_name=_TOPOLOGY.value
  )
  return jax.sharding.SingleDeviceSharding(topology.devices[0])


def main(argv: list[str]) -> None:
  """Measures all depths, writes and prints the results."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  logging.set_verbosity(logging.WARNING)
  where, output = timing.environment(), pathlib.Path(_OUTPUT.value)
  records = [
    measure(depth, kind)
    for depth in map(int, _DEPTHS.value)
    for kind in _KINDS.value
  ]
  timing.write_jsonl(output, [where | r for r in records])
  rows = [
    {
      "layers": r["depth"],
      "computed again": r["kind"],
      **{
        name: f"{r[key] / 2**20:.1f}"
        for name, key in (
          ("kept MiB", "kept_bytes"),
          ("temporary MiB", "temporary_bytes"),
        )
      },
    }
    for r in records
  ]
  table = timing.markdown(rows)
  with files.whole(output.with_suffix(".md")) as part:
    part.write_text(f"`{where['command']}`, {where['date']}\n\n{table}\n")
  plots.curves(
    output.with_suffix(".png"),
    {
      kind: [
        (r["depth"], r["temporary_bytes"] / 2**20)
        for r in records
        if r["kind"] == kind
      ]
      for kind in _KINDS.value
    },
    title=f"Memory of a gradient, {_TOPOLOGY.value or where['device']}",
    x_label="layers",
    y_label="MiB beyond parameters and gradients",
  )
  print(f"{table}\n\nwritten to {output} (.md, .png beside it)")


if __name__ == "__main__":
  app.run(main)
