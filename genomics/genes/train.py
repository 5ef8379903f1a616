"""Genes base by base: configuration, and a run from end to end."""

import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np

from experiments.common import files
from experiments.common import loop
from experiments.common import sharding
from genomics import alphabet
from genomics import annotation
from genomics import classify
from genomics import data
from genomics import genome as genome_lib
from genomics import intervals
from genomics import metrics
from genomics import results
from genomics import synthetic
from genomics import tokenizers
from genomics.genes import labels as labels_lib

PARTS = ("train", "valid", "test")


@dataclasses.dataclass
class Config(classify.ClassifierConfig):
  """One run. Every field can be set as `--config.<name>=<value>`."""

  genome: str = "leptospira"  # leptospira, synthetic, GenBank, FASTA, 2bit.
  annotation: str = ""  # GFF3 or GTF, with FASTA and 2bit.
  bases: int = 1000  # In a window.
  stride: int = 0  # From window to window in training; 0: bases.
  fold: int = 0  # Of five: which sequences test; the next ones are valid.
  least_frame: int = 200  # Bases of an open frame, for the floor.


def annotated(config: Config) -> tuple[genome_lib.Genome, list[Any]]:
  """The genome of a configuration and its coding stretches.

  Raises:
    UserError: if they are not here or do not fit each other.
  """
  if config.genome == "synthetic":
    return _synthetic()
  if config.genome == "leptospira":
    return data.leptospira()
  if config.genome.removesuffix(".gz").endswith((".gb", ".gbk", ".gbff")):
    return annotation.read_genbank(config.genome)
  if not config.annotation:
    raise files.UserError(
      "--config.genome needs --config.annotation, a GFF3 or GTF file."
    )
  genome = genome_lib.load(config.genome)
  found = annotation.read_gff(config.annotation, ["CDS"])
  names, kept = intervals.Names(genome.lengths), []
  names.rename([x.interval for x in found], config.annotation)
  for x in found:
    if x.interval.chrom in names:
      place = dataclasses.replace(x.interval, chrom=names(x.interval.chrom))
      kept.append(dataclasses.replace(x, interval=place))
  return genome, kept


def _synthetic() -> tuple[genome_lib.Genome, list[annotation.Feature]]:
  """Ten sequences, each with three genes."""
  rng, rows, found = np.random.default_rng(0), {}, []
  all_of_them = map("".join, itertools.product(alphabet.BASES, repeat=3))
  codes_of = sorted(set(all_of_them) - {"TAA", "TAG", "TGA"})
  for name in range(10):
    codes = synthetic.chain(1500, rng)
    for i in range(3):
      codons = rng.choice(codes_of, 70)
      gene = alphabet.encode("ATG" + "".join(codons) + "TAA")
      low, strand = 100 + 450 * i, intervals.STRANDS[int(rng.integers(2))]
      if strand == "-":
        gene = alphabet.reverse_complement(gene)
      codes[low : low + len(gene)] = gene
      form = (f"c{name}", low, low + len(gene), strand, f"g{i}")
      found.append(annotation.Feature(intervals.Interval(*form), "CDS"))
    rows[f"c{name}"] = alphabet.decode(codes)
  return genome_lib.InMemory(rows), found


@dataclasses.dataclass(frozen=True)
class Part:
  """Windows of some sequences.

  Attributes:
    arrays: codes and labels, `[n, bases]` each.
    frames: `[n, bases]`, labels by open reading frames.
    groups: `[n]`, the sequence of each window.
  """

  arrays: classify.Arrays
  frames: np.ndarray
  groups: np.ndarray


def load(config: Config) -> dict[str, Part]:
  """Windows of each part; no sequence is in two of them.

  Raises:
    UserError: if a part is empty.
  """
  genome, features = annotated(config)
  long = [x for x, size in genome.lengths.items() if size >= config.bases]
  rows: dict[str, list[Any]] = {part: [] for part in PARTS}
  for index, chrom in enumerate(long):
    fold = (index - config.fold) % 5
    part = {0: "test", 1: "valid"}.get(fold, "train")
    size = genome.lengths[chrom]
    codes = genome_lib.codes(genome, chrom, 0, size)
    labels = labels_lib.of_features(size, chrom, features)
    frames = labels_lib.of_open_frames(codes, least=config.least_frame)
    step = config.stride if config.stride and part == "train" else config.bases
    for low in range(0, size - config.bases + 1, step):
      at = slice(low, low + config.bases)
      rows[part].append((codes[at], labels[at], frames[at], index))
  for part, found in rows.items():
    if not found:
      raise files.UserError(
        f"part {part!r} has no window: only {len(long)} sequences have "
        f"--config.bases {config.bases} bases, and at least 5 are needed."
      )
  parts = {}
  for part, found in rows.items():
    codes, labels, frames, groups = map(np.stack, zip(*found, strict=True))
    arrays = classify.Arrays(codes, labels)
    parts[part] = Part(arrays, frames, groups)
  return parts


def scores_of(labels: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
  """Agreement of labels of bases.

  Args:
    labels: `[n]` as of `genomics.genes.labels`.
    chosen: the same.

  Returns:
    `mcc` of all labels, `strand_mcc` of outside, + and -, and `accuracy`.

  Example:
    >>> scores_of(np.array([0, 1]), np.array([0, 1]))["mcc"]
    1.0

  Source: none.
  """
  strand = labels_lib.strand_of
  return {
    "mcc": metrics.mcc(labels, chosen),
    "strand_mcc": metrics.mcc(strand(labels), strand(chosen)),
    "accuracy": float(np.mean(labels == chosen)),
  }


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, evaluates and reports; goes on where an earlier run stopped.

  Args:
    config: of the run.
    workdir: for checkpoints, metrics and the report.

  Returns:
    What `report/results.json` holds.

  Raises:
    UserError: for anything that the user can mend.
  """
  if config.bases < 6 or config.stride < 0:
    raise files.UserError(
      f"--config.bases must be 6 or more and --config.stride not negative, got "
      f"{config.bases} and {config.stride}."
    )
  tokenizer = tokenizers.make(config.tokenizer)
  model = classify.make_model(
    config, tokenizer.vocab_size, labels_lib.CLASSES, "bases"
  )
  mesh = sharding.make_mesh(config.mesh)
  parts = load(config)
  held = {part: results.digest(x.arrays) for part, x in parts.items()}
  same, done = results.claim(config, workdir, {"rows": held})
  if done is not None:
    return done
  rows = {
    part: classify.Rows(
      x.arrays,
      tokenizer,
      config.length,
      objective="bases",
      both_strands=config.both_strands and part == "train",
      turn_labels=labels_lib.TURN,
    )
    for part, x in parts.items()
  }
  predict = classify.Predictor(
    model,
    mesh,
    config.batch_size // config.accumulate,
    both_strands=config.both_strands,
    turn_outputs=labels_lib.TURN,
  )

  def evaluate(params: Any, carried: Any) -> dict[str, float]:
    logits, labels = predict(params, carried, rows["valid"])
    found = scores_of(labels, logits.argmax(-1))
    return {f"valid_{name}": value for name, value in found.items()}

  task = classify.make_task(config, model, rows["train"], "bases", evaluate)
  floor = _floors(parts["test"])
  files.say(
    "floors, MCC: " + ", ".join(f"{k} {v:.3f}" for k, v in floor.items())
  )
  files.say("compiling the training step, then training")
  result = loop.train(config, task, workdir)
  logits, labels = predict(
    result.state["params"], result.state["carried"], rows["test"]
  )
  return _report(
    config,
    same,
    workdir,
    result,
    labels,
    logits.argmax(-1),
    floor,
    parts["test"],
  )


def _floors(part: Part) -> dict[str, float]:
  known = part.arrays.codes < alphabet.UNKNOWN
  labels, frames = part.arrays.labels[known], part.frames[known]
  return {"open reading frames": metrics.mcc(labels, frames), "constant": 0.0}


def _report(
  config: Config,
  same: dict[str, Any],
  workdir: pathlib.Path,
  result: loop.Result,
  labels: np.ndarray,
  chosen: np.ndarray,
  floors: dict[str, float],
  part: Part,
) -> dict[str, Any]:
  known = part.arrays.codes < alphabet.UNKNOWN
  groups = np.repeat(part.groups, known.sum(1))
  interval = metrics.bootstrap(
    lambda at: metrics.mcc(labels[at], chosen[at]), groups, draws=50
  )
  return results.write(
    config,
    same,
    workdir,
    result,
    title=f"Genes of {config.genome}, base by base",
    what=f"{len(labels):,} bases of {len(np.unique(part.groups))} sequences "
    "that are in no other part",
    how="Each base is outside genes, or has a place in a codon, a start or a "
    "stop codon, on one strand: 11 labels. Whole sequences are held out. The "
    "interval draws them again. The floor is the longest open reading frames "
    f"of {config.least_frame} bases or more, on whole sequences.",
    headline="mcc",
    scores=scores_of(labels, chosen),
    floors=floors,
    interval=interval,
  )
