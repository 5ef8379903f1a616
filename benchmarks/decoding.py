"""Decoding: images a second by length, and what a token costs far into a text.

  python -m benchmarks.decoding
  python -m benchmarks.decoding --lengths=64,256 --positions=1024

Throughput: decoders of equal size draw images of that many pixels, a batch at
once: linear attention, softmax attention with a cache, and softmax attention
that computes everything again for every token. `--steps` tokens are timed in
the middle of the images, all models in turns; the time for an image is that of
a token times the length. Without a cache it is that of a pass over half an
image, a little in its favour. Up to `--whole`, whole images are drawn with
`jaxattn.models.generation` as well, to hold the estimate against.

Memory: bytes of the cache, and time of a token, after a text of so many tokens
has been read (`--positions`), one row.

Results go to a JSON Lines file; beside it tables in Markdown and a figure.
"""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.ticker
from absl import app
from absl import flags
from absl import logging
from flax import linen as nn

from benchmarks import timing
from experiments.common import files
from experiments.common import methods
from jaxattn.models import decoder
from jaxattn.models import decoding
from jaxattn.models import generation

_LENGTHS = flags.DEFINE_list(
  "lengths",
  ["64", "256", "784", "3072", "12288"],
  "Pixels of an image: MNIST has 784, CIFAR-10 3072; '' for none.",
)
_BATCH = flags.DEFINE_integer("batch", 8, "Images at once.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 256, "Of the model.", lower_bound=8)
_LAYERS = flags.DEFINE_integer("layers", 4, "Of the model.", lower_bound=1)
_HEADS = flags.DEFINE_integer("heads", 8, "Of the model.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 16, "Tokens timed.", lower_bound=1)
_WHOLE = flags.DEFINE_integer(
  "whole", 784, "Longest images that are drawn whole as well."
)
_AGAIN = flags.DEFINE_integer(
  "again", 3072, "Longest images without a cache: seconds a token beyond."
)
_POSITIONS = flags.DEFINE_list(
  "positions", ["1024", "65536"], "Tokens before the timed ones; '' for none."
)
_METHODS = flags.DEFINE_list(
  "methods",
  ["linear", "performer", "sliding_window", "dense"],
  "Whose memory is measured.",
)
_MEMORY_LAYERS = flags.DEFINE_integer(
  "memory_layers", 2, "Of the models whose memory is measured.", lower_bound=1
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
_SECONDS = flags.DEFINE_float(
  "seconds", 30.0, "No further round of a length starts after so long."
)
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/decoding.jsonl", "Where results go."
)

_VOCABULARY = 256
_LINEAR, _CACHE, _NO_CACHE = "linear", "softmax, cache", "softmax, no cache"
_OPTIONS = {"sliding_window": {"window": 512}}


def make_model(
  name: str, length: int, layers: int
) -> tuple[decoder.Decoder, Any]:
  """A decoder with the method of that name, and parameters."""
  sizes = methods.Sizes(length, layers, _HEADS.value)
  model = decoder.Decoder(
    decoder.DecoderConfig(
      vocab_size=_VOCABULARY,
      width=_WIDTH.value,
      num_layers=layers,
      num_heads=_HEADS.value,
      methods=methods.make(name, sizes, _OPTIONS.get(name)),
      max_length=length,
    )
  )
  tokens = jnp.zeros((1, 8), jnp.int32)
  variables = jax.jit(model.init)(jax.random.key(0), tokens)
  return model, nn.unbox(variables)


def _tokens(batch: int, length: int) -> jax.Array:
  return jax.random.randint(
    jax.random.key(1), (batch, length), 0, _VOCABULARY, jnp.int32
  )


def read(
  model: decoder.Decoder, variables: Any, batch: int, position: int, size: int
) -> tuple[Any, float]:
  """A cache for `size` tokens after `position` of them, and the seconds."""
  cache = decoding.init_cache(
    model, variables, batch_size=batch, max_length=size
  )
  step = functools.partial(decoding.decode_step, model, last_only=True)
  arguments = (variables, cache, _tokens(batch, position))
  compiled = jax.jit(step).lower(*arguments).compile()
  start = time.perf_counter()
  _, cache = jax.block_until_ready(compiled(*arguments))
  return cache, time.perf_counter() - start


def stepping(
  model: decoder.Decoder, variables: Any, cache: Any, steps: int
) -> Callable[[], Any]:
  """Draws `steps` more tokens at every call, in a loop on the device.

  The cache is given away, or every call would begin with a copy of it.
  """

  def run(variables: Any, cache: Any, last: jax.Array) -> Any:
    def one(carry: Any, index: jax.Array) -> Any:
      cache, last = carry
      logits, cache = decoding.decode_step(
        model, variables, cache, last[:, None], last_only=True
      )
      rng = jax.random.fold_in(jax.random.key(2), index)
      return (cache, generation.sample_logits(rng, logits)), None

    order = jnp.arange(steps, dtype=jnp.int32)
    return jax.lax.scan(one, (cache, last), order)[0]

  last = jnp.zeros(cache["length"].shape, jnp.int32)
  jitted = jax.jit(run, donate_argnums=1)
  compiled = jitted.lower(variables, cache, last).compile()
  carry = (cache, last)

  def call() -> Any:
    nonlocal carry
    carry = compiled(variables, *carry)
    return carry[1]

  return call


def throughput(length: int) -> list[dict[str, Any]]:
  """Measures all models at one length."""
  batch, steps = _BATCH.value, min(_STEPS.value, max(length // 4, 1))
  half = max(length // 2, 1)
  calls, tokens, whole = {}, {}, {}
  parameters = 0
  for name, method in ((_LINEAR, "linear"), (_CACHE, "dense")):
    model, variables = make_model(method, length, _LAYERS.value)
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    cache, _ = read(model, variables, batch, half, length)
    calls[name], tokens[name] = stepping(model, variables, cache, steps), steps
    if length <= _WHOLE.value:
      whole[name] = functools.partial(
        generation.generate,
        model,
        variables,
        jnp.zeros((batch, 1), jnp.int32),
        max_new_tokens=length,
        rng=jax.random.key(3),
      )
    if method == "dense" and length <= _AGAIN.value:
      calls[_NO_CACHE] = _passing(model, variables, batch, half)
      tokens[_NO_CACHE] = 1
  times = _times(calls, _ROUNDS.value)
  wholes = _times(whole, 3) if whole else {}
  shared = {
    "part": "throughput",
    "length": length,
    "batch": batch,
    "width": _WIDTH.value,
    "layers": _LAYERS.value,
    "heads": _HEADS.value,
    "parameters": parameters,
  }
  records: list[dict[str, Any]] = []
  for name, took in times.items():
    ms = took.min_ms / tokens[name]
    records.append(
      {
        **shared,
        "model": name,
        "ms_per_token": ms,
        "ms_per_token_median": took.median_ms / tokens[name],
        "rounds": took.rounds,
        "tokens_per_second": 1e3 * batch / ms,
        "images_per_second": 1e3 * batch / ms / length,
      }
    )
    if name in wholes:
      drawn = 1e3 * batch / wholes[name].min_ms
      records[-1]["whole_images_per_second"] = drawn
    if name != _LINEAR:
      records[-1]["linear_speedup"] = ms / records[0]["ms_per_token"]
  return records


def _times(
  calls: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, timing.Timed]:
  return timing.interleave(calls, rounds=rounds, seconds=_SECONDS.value)


def _passing(
  model: decoder.Decoder, variables: Any, batch: int, length: int
) -> Callable[[], Any]:
  """Logits after a row of `length` tokens, all computed anew."""

  def run(variables: Any, tokens: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, tokens)
    return logits[:, -1]

  tokens = _tokens(batch, length)
  compiled = jax.jit(run).lower(variables, tokens).compile()
  return lambda: compiled(variables, tokens)


def memory(names: list[str], position: int) -> list[dict[str, Any]]:
  """Measures the cache of some methods after `position` tokens."""
  calls, records = {}, []
  for name in names:
    size = position + _STEPS.value
    model, variables = make_model(name, size, _MEMORY_LAYERS.value)
    cache, seconds = read(model, variables, 1, position, size)
    calls[name] = stepping(model, variables, cache, _STEPS.value)
    records.append(
      {
        "part": "memory",
        "model": name,
        "position": position,
        "width": _WIDTH.value,
        "layers": _MEMORY_LAYERS.value,
        "heads": _HEADS.value,
        "cache_bytes": sum(x.nbytes for x in jax.tree.leaves(cache)),
        "read_seconds": seconds,
      }
    )
  times = _times(calls, _ROUNDS.value)
  for record in records:
    took = times[record["model"]]
    record["ms_per_token"] = took.min_ms / _STEPS.value
    record["ms_per_token_median"] = took.median_ms / _STEPS.value
    record["rounds"] = took.rounds
  return records


def _row(record: dict[str, Any]) -> dict[str, str]:
  """The record as a row of its table."""
  took = f"{record['ms_per_token']:.2f} ({record['ms_per_token_median']:.2f})"
  row = {"model": record["model"]}
  if record["part"] == "memory":
    return row | {
      "position": str(record["position"]),
      "cache KiB": f"{record['cache_bytes'] / 2**10:,.1f}",
      "ms a token, min (median)": took,
      "s to read": f"{record['read_seconds']:.2f}",
    }

  def number(name: str, form: str) -> str:
    return format(record[name], form) if name in record else ""

  return row | {
    "pixels": str(record["length"]),
    "ms a token, min (median)": took,
    "tokens/s": f"{record['tokens_per_second']:,.0f}",
    "images/s": f"{record['images_per_second']:.4g}",
    "drawn whole": number("whole_images_per_second", ".4g"),
    "linear is faster by": number("linear_speedup", ".2f"),
  }


def draw(records: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Throughput by length, and how many times linear attention is faster."""
  figure = matplotlib.figure.Figure(figsize=(11, 4.5), layout="constrained")
  axes = figure.subplots(1, 2)
  for at, key, label in (
    (axes[0], "images_per_second", "images a second"),
    (axes[1], "linear_speedup", "times as fast: linear"),
  ):
    for name in (_LINEAR, _CACHE, _NO_CACHE):
      points = [
        (r["length"], r[key])
        for r in records
        if r["model"] == name and key in r
      ]
      if points:
        x, y = zip(*points, strict=True)
        label_ = name if key == "images_per_second" else f"over {name}"
        at.plot(x, y, marker="o", markersize=3, label=label_)
    at.set(xscale="log", yscale="log", xlabel="pixels", ylabel=label)
    at.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    at.set_xticks(sorted({r["length"] for r in records}))
    at.minorticks_off()
    at.grid(alpha=0.3)
    at.legend()
  with files.whole(path) as part:
    figure.savefig(part, dpi=110, format="png")


def _report(
  records: list[dict[str, Any]], where: dict[str, Any], output: pathlib.Path
) -> str:
  """Writes all files; returns the tables."""
  timing.write_jsonl(output, [where | r for r in records])
  tables = []
  for part in ("throughput", "memory"):
    found = [r for r in records if r["part"] == part]
    if found:
      tables.append(timing.markdown([_row(r) for r in found]))
    if found and part == "throughput":
      draw(found, output.with_suffix(".png"))
  head = (
    f"`{where['command']}`, {where['date']}, {where['device']} with "
    f"{where['cores']} cores, jax {where['jax']}, float32, width "
    f"{_WIDTH.value}, {_HEADS.value} heads. Images: {_LAYERS.value} layers, "
    f"{_BATCH.value} images at once; the cache of softmax attention has room "
    "for a whole image and is read whole for every token. Memory: "
    f"{_MEMORY_LAYERS.value} layers, one row.\n\n"
  )
  text = "\n\n".join(tables)
  with files.whole(output.with_suffix(".md")) as file:
    file.write_text(head + text + "\n")
  return text


def main(argv: list[str]) -> None:
  """Measures all lengths and positions, writes and prints the results."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  for name in _METHODS.value:
    if name not in methods.METHODS:
      raise app.UsageError(
        f"--methods: unknown {name!r}; known: {', '.join(methods.METHODS)}."
      )
  logging.set_verbosity(logging.WARNING)  # No word on absent backends.
  where, output = timing.environment(), pathlib.Path(_OUTPUT.value)
  records: list[dict[str, Any]] = []
  for length in map(int, filter(None, _LENGTHS.value)):
    records += throughput(length)
    # Written each time, so that an interrupted run leaves what it has.
    _report(records, where, output)
    print(f"measured images of {length:,} pixels", flush=True)
  for position in map(int, filter(None, _POSITIONS.value)):
    records += memory(_METHODS.value, position)
    _report(records, where, output)
    print(f"measured after {position:,} tokens", flush=True)
  print(f"\n{_report(records, where, output)}\n\nwritten to {output}")


if __name__ == "__main__":
  app.run(main)
