"""What a run says about itself: floors, samples, and the report."""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import data as rows_lib
from experiments.common import files
from experiments.common import loop
from experiments.common import metrics
from experiments.common import plots
from experiments.common import report
from experiments.common import tokens as tokens_lib
from experiments.lm import data as corpora
from experiments.lm import floors as floors_lib
from jaxattn.models import decoder
from jaxattn.models import generation

_PROMPT = 64  # Tokens of a held-out document that a sample continues.


def describe(corpus: corpora.Corpus) -> str:
  """One line on the text of a run."""
  train, test = corpus.train, corpus.test
  return (
    f"{corpus.name}: {train.num_bytes:,} bytes in {len(train.names):,} "
    f"documents to learn from, {test.num_bytes:,} in {len(test.names):,} held "
    "out for the result"
  )


def floors_of(
  corpus: corpora.Corpus, train_bytes: int, workdir: pathlib.Path
) -> dict[str, Any]:
  """Bits per byte of the floors on the test documents, computed once.

  Args:
    corpus: of the run.
    train_bytes: about how much of the training text to count; 0 for all.
    workdir: where `floors.json` keeps them.

  Returns:
    `{"train_bytes": int, "bits": {name: bits per byte}}`.
  """
  path = workdir / "floors.json"
  train = corpora.limit(corpus.train, train_bytes)
  key = [train.digest(), corpus.test.digest()]
  if path.exists():
    known = json.loads(files.read_bytes(path))
    if known.get("key") == key:
      return known
  began = time.monotonic()
  bits = {
    f"Markov order {order}": value
    for order, value in floors_lib.witten_bell(
      train.texts, corpus.test.texts
    ).items()
  } | floors_lib.compressors(corpus.test.texts)
  found = {"key": key, "train_bytes": train.num_bytes, "bits": bits}
  if files.first_process():
    files.write_json(path, found)
  files.say(
    "floors, in bits per byte: "
    + ", ".join(f"{name} {value:.3f}" for name, value in bits.items())
    + f" ({time.monotonic() - began:.0f} s)"
  )
  return found


def sample(
  config: Any,
  model: decoder.Decoder,
  variables: Any,
  tokenizer: tokens_lib.Tokenizer,
  test: rows_lib.Tokens,
) -> list[dict[str, str]]:
  """Text that the model writes: from nothing, and after a held-out opening."""
  count = config.sample_tokens
  bounded = any(hasattr(method, "max_length") for method in model.cfg.methods)
  if bounded or config.positions == "learned":
    count = min(count, config.length - _PROMPT)
  if count < 1 or jax.process_count() > 1:
    return []  # Sampling with parameters on several hosts is not there yet.
  sizes = np.diff(np.append(test.starts, len(test.ids)))
  start = int(test.starts[np.argmax(sizes)])  # The longest document.
  opening = test.ids[start : start + min(_PROMPT, int(sizes.max()))]
  prompt = np.full((2, len(opening)), tokenizer.separator, np.int32)
  prompt[1] = opening
  drawn = generation.generate(
    model,
    variables,
    jnp.asarray(prompt),
    max_new_tokens=count,
    prompt_lengths=jnp.array([1, len(opening)]),
    rng=jax.random.key(config.seed),
    temperature=config.temperature,
    top_p=config.top_p,
  )
  drawn = np.asarray(jax.device_get(drawn))
  return [
    {
      "prompt": tokenizer.decode(prompt[i] if i else prompt[i, :1]),
      "text": tokenizer.decode(drawn[i]),
    }
    for i in range(2)
  ]


def verdict(results: dict[str, Any], workdir: pathlib.Path) -> str:
  """Plain words on the result, and where the report lies."""
  bits = results["bits_per_byte"]["test"]
  return (
    f"result: {bits:.3f} bits per byte on {results['test_bytes']:,} held-out "
    f"bytes\n{report.standing(bits, results['floors']['bits'])}\n"
    f"report: {workdir / 'report' / 'report.md'}"
  )


def _table(results: dict[str, Any]) -> str:
  """The model among its floors, best first."""
  seen = results["floors"]["train_bytes"]
  rows = []
  for name, bits in results["floors"]["bits"].items():
    markov = name.startswith("Markov")
    what = "interpolated Witten-Bell" if markov else "the held-out text alone"
    rows.append((name, bits, seen if markov else 0, what))
  rows.append(
    (
      f"**decoder, {results['config']['method']}**",
      results["bits_per_byte"]["test"],
      results["train_bytes_read"],
      f"{results['parameters']:,} parameters",
    )
  )
  rows.sort(key=lambda row: row[1])
  columns = ("model", "bits per byte", "training bytes read", "note")
  return report.table(columns, rows)


def write(
  config: Any,
  identity: dict[str, Any],
  workdir: pathlib.Path,
  corpus: corpora.Corpus,
  tokens: dict[str, rows_lib.Tokens],
  floors: dict[str, Any],
  result: loop.Result,
  scores: dict[str, float],
  samples: list[dict[str, str]],
) -> dict[str, Any]:
  """Writes the report directory and prints the verdict.

  Args:
    config: of the run.
    identity: of `train.identity`, by which the run is known again.
    workdir: of the run.
    corpus: its text.
    tokens: the parts of the corpus, tokenized.
    floors: of `floors_of`.
    result: of the loop.
    scores: bits per byte of `test` and `valid`.
    samples: of `sample`.

  Returns:
    What `results.json` holds.
  """
  params = jax.tree.leaves(result.state["params"])
  train = tokens["train"]
  read = config.steps * config.batch_size * config.length
  results = {
    "bits_per_byte": scores,
    "floors": {k: floors[k] for k in ("train_bytes", "bits")},
    "test_bytes": corpus.test.num_bytes,
    "test_documents": list(corpus.test.names),
    "test_digest": corpus.test.digest(),
    "corpus": corpus.name,
    "split": corpus.rule,
    "parameters": int(sum(x.size for x in params)),
    "train_bytes": train.num_bytes,
    "train_bytes_read": round(read * train.num_bytes / len(train.ids)),
    "seconds": result.seconds,
    "tokens_per_second": result.tokens_per_second,
    "config": dataclasses.asdict(config),
    "identity": identity,
    "environment": report.environment(),
    "samples": samples,
  }
  if files.first_process():
    folder = workdir / "report"
    _plot(folder, workdir, results)
    report.write(
      folder,
      title=f"Language modelling: {corpus.name}",
      sections=_sections(results),
      results=results,
    )
  files.say(verdict(results, workdir))
  return results


def _plot(
  folder: pathlib.Path, workdir: pathlib.Path, results: dict[str, Any]
) -> None:
  lines = metrics.read(workdir / metrics.NAME)
  config = results["config"]

  def points(name: str) -> list[tuple[float, float]]:
    return [(x["step"], x[name]) for x in lines if name in x]

  curves = {"valid": points("valid_bits_per_byte")}
  if config["tokenizer"] == "bytes":  # Else the units would differ.
    curves = {"train": points("train_bits_per_token")} | curves
  plots.curves(
    folder / "loss.png",
    curves,
    levels=results["floors"]["bits"],
    title=f"{results['corpus']}, {config['method']}",
    x_label="step",
    y_label="bits per byte",
  )


def _sections(results: dict[str, Any]) -> list[tuple[str, str]]:
  config, env = results["config"], results["environment"]
  bits = results["bits_per_byte"]
  winners = [
    n for n, v in results["floors"]["bits"].items() if v <= bits["test"]
  ]
  order = (
    f"Floors that still win: {', '.join(winners)}."
    if winners
    else "The model beats every floor."
  )
  watched = config["eval_windows"]
  facts = [
    ("bits per byte, test", f"{bits['test']:.4f}"),
    ("bits per byte, valid", f"{bits['valid']:.4f}"),
    ("steps", f"{config['steps']:,}"),
    ("tokens a second while training", f"{results['tokens_per_second']:,.0f}"),
    ("training and its evaluation", report.duration(results["seconds"])),
    *((k, v) for k, v in env.items()),
  ]
  samples = [
    f"After {'the separator alone' if not s['prompt'] else 'this opening'}:\n\n"
    + (
      report.code(s["prompt"]) + "\n\nthe model writes:\n\n"
      if s["prompt"]
      else ""
    )
    + report.code(s["text"])
    for s in results["samples"]
  ]
  stride, length = config["eval_stride"], config["length"]
  return [
    ("Result", f"{_table(results)}\n\n{order}\n\n![curves](loss.png)"),
    (
      "How it is measured",
      f"All on the same {results['test_bytes']:,} bytes in "
      f"{len(results['test_documents']):,} held-out documents of "
      f"{results['corpus']} (digest {results['test_digest']}; names in "
      f"results.json), split {results['split']}. The model reads windows of "
      f"{length} tokens that slide by {stride}: every byte is predicted once, "
      f"with at least {length - stride} tokens of context where its document "
      "has them. Markov models are interpolated by Witten and Bell's rule, and "
      f"count {results['floors']['train_bytes']:,} bytes of the training text. "
      "Compressors (gzip 9, bzip2 9, xz preset 9 extreme) pack the held-out "
      "documents as one stream, without training text. Points of the curve "
      f"`valid` use {watched or 'all'} windows of the validation documents.",
    ),
    ("Run", report.table(("what", "value"), facts)),
    ("Samples", "\n\n".join(samples) or "None."),
    (
      "Configuration",
      report.code(json.dumps(config, indent=2, sort_keys=True)),
    ),
  ]
