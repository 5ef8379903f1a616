"""Every substitution in a region, by a run that has been trained."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import files
from genomics import alphabet
from genomics import genome as genome_lib
from genomics import intervals
from genomics import logos
from genomics import mutagenesis
from genomics import trained

METHODS = ("exact", "gradient", "integrated")
FIGURES = (".svg", ".png", ".pdf")


@dataclasses.dataclass(frozen=True)
class Options:
  """How a region is scored.

  Attributes:
    method: `exact` replaces every base; `gradient` is the same to first order,
      `integrated` what each base adds, both for classifiers of bases.
    output: number of the score, of those of `trained.names`.
    before: bases of the window before the region, along its strand; -1: the
      region stands in the middle.
    both_strands: as of the options of variants.
    pad: whether windows that stick out are filled up with N.
    batch_size: windows at once.
    steps: of `integrated`.
  """

  method: str = "exact"
  output: int = 0
  before: int = -1
  both_strands: bool | None = None
  pad: bool = False
  batch_size: int = 16
  steps: int = 64


@dataclasses.dataclass(frozen=True)
class Found:
  """A region along its strand.

  Attributes:
    place: where it lies.
    name: of the score.
    sequence: `[L, 4]` channels.
    scores: `[L, 4]`: what each base changes, 0 for the one that is there; of
      `integrated`, what each channel adds.
    heights: `[L, 4]`, of a logo: at the base that is there, what it adds beside
      the mean base.
  """

  place: intervals.Interval
  name: str
  sequence: np.ndarray
  scores: np.ndarray
  heights: np.ndarray


def _window(
  run: trained.Trained,
  genome: genome_lib.Genome,
  place: intervals.Interval,
  options: Options,
) -> tuple[np.ndarray, int]:
  """Codes of the window along the strand, and where the region begins."""
  shown = f"{place.chrom}:{place.start + 1}-{place.end}"
  before = options.before
  if before < 0:
    before = max((run.bases - place.length) // 2, 0)
  if before + place.length > run.bases:
    raise files.UserError(
      f"--region={shown}: {place.length} bases with {before} before them do "
      f"not fit into windows of {run.bases}, which the run learned from. "
      "Take a part of it."
    )
  size = genome.lengths[place.chrom]
  if place.end > size:
    raise files.UserError(
      f"--region={shown} ends beyond {place.chrom!r}, which has {size} bases. "
      "Take a smaller one."
    )
  if place.strand == "+":
    start = place.start - before
  else:
    start = place.end + before - run.bases
  around = dataclasses.replace(place, start=start, end=start + run.bases)
  found = genome_lib.read(genome, around)
  if not options.pad and not found.inside.all():
    raise files.UserError(
      f"--region={shown}: its window, {start + 1} to {around.end}, sticks out "
      f"of {place.chrom!r}, which has {size} bases. Set --before, or fill up "
      "with N (--pad)."
    )
  trained.check_fits(run, found.codes, f"--region={shown}")
  return found.codes, before


def score(
  run: trained.Trained,
  genome: genome_lib.Genome,
  place: intervals.Interval,
  options: Options,
) -> Found:
  """Scores all bases of a region.

  Args:
    run: as of `trained.names`.
    genome: to read.
    place: the region, by the genome's names.
    options: how.

  Returns:
    The scores. Unknown bases have none.

  Raises:
    UserError: if an option or the region does not fit the run.

  Source: as of `mutagenesis`.
  """
  known = trained.names(run)
  if options.method not in METHODS:
    raise files.UserError(
      f"--method must be one of {', '.join(METHODS)}, got {options.method!r}."
    )
  if not 0 <= options.output < len(known):
    raise files.UserError(
      f"--score must lie in [0, {len(known)}), got {options.output}."
    )
  codes, at = _window(run, genome, place, options)
  both = options.both_strands
  both = trained.reads_both(run) if both is None else both
  inside = slice(at, at + place.length)
  x = alphabet.one_hot(codes)
  if options.method == "exact":
    found = _exact(run, codes, inside, both, options)
  else:
    f = trained.of_channels(run, both_strands=both)
    found = _slopes(f, jnp.asarray(x), options)[inside]
  here = x[inside]
  found = found * here.max(-1, keepdims=True)
  if options.method == "integrated":
    heights = found.sum(-1, keepdims=True) * here
  else:
    heights = np.asarray(mutagenesis.centred(jnp.asarray(found))) * here
  return Found(place, known[options.output], here, found, heights)


def _slopes(f: Any, x: jax.Array, options: Options) -> np.ndarray:
  def one(x: jax.Array) -> jax.Array:
    return f(x)[options.output]

  if options.method == "gradient":
    first_order = jax.jit(mutagenesis.gradient_effects, static_argnums=0)
    return np.asarray(first_order(one, x))
  found = jax.jit(
    lambda x: mutagenesis.integrated_gradients(one, x, steps=options.steps)
  )
  return np.asarray(found(x))


def _exact(
  run: trained.Trained,
  codes: np.ndarray,
  inside: slice,
  both: bool,
  options: Options,
) -> np.ndarray:
  changed, cells = [], []
  for place in range(inside.start, inside.stop):
    for base in range(4):
      if codes[place] not in (base, alphabet.UNKNOWN):
        other = codes.copy()
        other[place] = base
        changed.append(other)
        cells.append((place - inside.start, base))
  found = np.zeros((inside.stop - inside.start, 4), np.float32)
  if not changed:
    return found
  form = {"both_strands": both, "batch_size": options.batch_size}
  if run.program == "pretrain":
    values = trained.effects(run, **form)([(codes, x) for x in changed])
  else:
    values = trained.scores(run, **form)([codes, *changed])
    values = values[1:] - values[0]
  found[tuple(np.transpose(cells))] = values[:, options.output]
  return found


def write(
  found: Found, output: str | pathlib.Path, figure: str | pathlib.Path = ""
) -> None:
  """Writes scores and a logo, each whole or not at all.

  Args:
    found: of `score`.
    output: .npz, with `sequence`, `scores`, `heights`, and where it is.
    figure: .svg, .png or .pdf; none if empty.

  Raises:
    UserError: if a suffix is another.

  Source: NumPy's .npz.
  """
  check_paths(output, figure)
  place = found.place
  if figure:
    logos.draw(
      pathlib.Path(figure),
      found.heights,
      title=f"{place.chrom}:{place.start + 1}-{place.end} ({place.strand})",
      label=found.name.replace("_", " "),
      first=place.start + 1 if place.strand == "+" else 1,
    )
  with files.whole(pathlib.Path(output)) as part:
    np.savez(
      part,
      sequence=found.sequence,
      scores=found.scores,
      heights=found.heights,
      name=found.name,
      chrom=place.chrom,
      start=place.start,
      end=place.end,
      strand=place.strand,
    )


def check_paths(output: str | pathlib.Path, figure: str | pathlib.Path) -> None:
  """Whether `write` can write there, before anything is scored.

  Args:
    output: as of `write`.
    figure: as of `write`.

  Raises:
    UserError: if a suffix is another, or what draws is not here.

  Source: none.
  """
  if pathlib.Path(output).suffix != ".npz":
    raise files.UserError(f"--output must end in .npz, got {output}.")
  if figure:
    if pathlib.Path(figure).suffix not in FIGURES:
      raise files.UserError(
        f"--figure must end in one of {', '.join(FIGURES)}, got {figure}."
      )
    genome_lib.need("logomaker")
