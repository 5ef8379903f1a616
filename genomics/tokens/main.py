r"""Trains pieces of DNA by byte-pair encoding, on both strands of a genome.

  python -m genomics.tokens.main --genome=fly_chr2R --vocab_size=4096 \
    --output=fly4096.model

What it writes is a model for `genomics.tokenizers.make`.
"""

import sys

from absl import app
from absl import flags

from experiments.common import files
from genomics import genome as genome_lib
from genomics import intervals
from genomics import places
from genomics import tokenizers

_GENOME = flags.DEFINE_string("genome", None, "See genomics/places.py.")
_CHROMS = flags.DEFINE_list("chroms", [], "Sequences to learn from; all.")
_VOCAB = flags.DEFINE_integer("vocab_size", 4096, "Pieces, specials included.")
_BASES = flags.DEFINE_integer("bases", 5_000_000, "To learn from; 0: all.")
_OUTPUT = flags.DEFINE_string("output", None, "Model to write, *.model.")


def main(argv: list[str]) -> None:
  """Trains, writes the model, and says how far it compresses."""
  del argv
  try:
    genome = places.genome(str(_GENOME.value))
    names = intervals.Names(genome.lengths)
    chroms = [names(x) for x in _CHROMS.value] or list(genome.lengths)
    rows = tokenizers.sentences(genome, chroms, bases=_BASES.value)
    found = tokenizers.train_pieces(
      rows, str(_OUTPUT.value), vocab_size=_VOCAB.value
    )
    size = genome.lengths[chroms[-1]]
    last = genome_lib.codes(genome, chroms[-1], max(size - 1_000_000, 0), size)
  except files.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  print(
    f"{found.name}: {_OUTPUT.value}; "
    f"{tokenizers.bases_per_token(found, last):.2f} bases a token on the last "
    f"{len(last):,} bases of {chroms[-1]}"
  )


if __name__ == "__main__":
  flags.mark_flags_as_required(["genome", "output"])
  app.run(main)
