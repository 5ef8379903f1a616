"""Measures what models must beat on the genomes of packages.

  python -m genomics.floors                     # all, minutes
  python -m genomics.floors markov --output=genomics/results/markov.json

Needs `fly_chr2R`, `fly_upstream` and `bacteria` of `genomics.fetch`.
"""

import argparse
import pathlib
import sys
from typing import Any

import numpy as np

from experiments.common import files
from experiments.common import report
from genomics import classify
from genomics import data
from genomics import genome as genome_lib
from genomics import kmers
from genomics import markov
from genomics import metrics
from genomics import promoters
from genomics.species import train as species

_WINDOWS = {300: (249, 51), 2000: (1000, 1000), 8000: (5000, 3000)}
_LENGTHS = (100, 250, 1000, 4000)


def markov_floors(genome: genome_lib.Genome, chrom: str) -> dict[str, Any]:
  """Bits a base on the last tenth of a sequence, counted on the rest.

  Args:
    genome: to read.
    chrom: name of the sequence.

  Returns:
    Name of the model -> bits a base, and for masked ones the accuracy.

  Example:
    >>> genome = genome_lib.InMemory({"c": "ACGT" * 100})
    >>> markov_floors(genome, "c")["4+4 neighbours"]["bits_per_base"] < 0.2
    True

  Source: none.
  """
  size = genome.lengths[chrom]
  codes = genome_lib.codes(genome, chrom, 0, size)
  train, test, found = [codes[: size * 9 // 10]], codes[size * 9 // 10 :], {}
  for order, both in (
    (0, False),
    (2, False),
    (5, False),
    (8, False),
    (8, True),
  ):
    model = markov.Causal(order, train, both_strands=both)
    bits = float(model.bits(test).mean())
    found[model.name] = {"bits_per_base": bits}
  for sides, both in ((2, False), (3, False), (4, False), (4, True)):
    masked = markov.Bidirectional(sides, train, both_strands=both)
    bits, right = masked.score(test)
    name = masked.name + (", both strands" if both else "")
    found[name] = {
      "bits_per_base": float(bits.mean()),
      "accuracy": float(right.mean()),
    }
  return found


def promoter_floors(genome: genome_lib.Genome, k: int = 5) -> dict[str, Any]:
  """Logistic regression against every kind of negatives, on the fly.

  Args:
    genome: with chr2R.
    k: bases in the words that are counted.

  Returns:
    `<bases> <negatives>` -> F1 with its 95 % interval, MCC and AUROC.
  """
  starts, found = data.fly_starts(genome), {}
  split = {
    "train": [promoters.Region("chr2R", 0, 15_000_000)],
    "test": [promoters.Region("chr2R", 15_000_000)],
  }
  for length, (upstream, downstream) in _WINDOWS.items():
    for negatives in promoters.NEGATIVES:
      parts = promoters.examples(
        genome,
        starts,
        split,
        upstream=upstream,
        downstream=downstream,
        negatives=negatives,
      )
      train, test = parts["train"], parts["test"]
      model = kmers.KmerLogistic(k).fit(train.codes, train.labels)
      found[f"{length} {negatives}"] = _scores(model, test)
  return found


def _scores(
  model: kmers.KmerLogistic, test: promoters.Examples
) -> dict[str, Any]:
  chance = model.probabilities(test.codes)[:, 1]

  def f1(at: np.ndarray) -> float:
    tp, fp, fn, _ = metrics.counts(test.labels[at], chance[at] >= 0.5)
    return 2 * tp / max(2 * tp + fp + fn, 1)

  found = metrics.binary(test.labels, chance)
  interval = metrics.bootstrap(f1, test.groups, draws=200)
  kept = {name: found[name] for name in ("f1", "mcc", "auroc")}
  return kept | {"interval": list(interval)}


def species_floors() -> dict[str, Any]:
  """4-mer logistic regression of four species, by length of the window.

  Returns:
    Bases -> accuracy on strains held out whole.
  """
  found = {}
  for bases in _LENGTHS:
    config = species.Config(
      bases=bases, train_windows=8000, held_out_windows=4000
    )
    parts, _ = species.load(config)
    train: classify.Arrays = parts["train"]
    model = kmers.KmerLogistic(4, both_strands=True)
    model.fit(train.codes, train.labels)
    chosen = model.probabilities(parts["test"].codes).argmax(1)
    right = float(np.mean(chosen == parts["test"].labels))
    found[f"{bases}"] = {"accuracy": right}
  return found


def _measure(which: str) -> dict[str, Any]:
  if which == "species":
    return species_floors()
  genome = data.mapped("fly_chr2R")
  if which == "markov":
    return markov_floors(genome, "chr2R")
  return promoter_floors(genome)


def main() -> int:
  """The command; 1 if something the user can mend went wrong."""
  summary = (__doc__ or "").partition("\n")[0]
  parser = argparse.ArgumentParser(description=summary)
  kinds = ("markov", "promoter", "species")
  parser.add_argument("which", nargs="*", help=f"of {', '.join(kinds)}")
  parser.add_argument("--output", help="JSON file to write as well")
  options, found = parser.parse_args(), {}
  try:
    for which in options.which or kinds:
      if which not in kinds:
        raise files.UserError(f"unknown {which!r}; known: {', '.join(kinds)}.")
      found[which] = _measure(which)
      columns = sorted({c for row in found[which].values() for c in row})
      rows = [
        (name, *(_shown(row.get(c, "")) for c in columns))
        for name, row in found[which].items()
      ]
      print(report.table((which, *columns), rows), flush=True)
    if options.output:
      results = {"floors": found, "environment": report.environment()}
      files.write_json(pathlib.Path(options.output), results)
  except (files.UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


def _shown(value: Any) -> Any:
  if isinstance(value, list):
    return " to ".join(f"{x:.3f}" for x in value)
  return value


if __name__ == "__main__":
  sys.exit(main())
