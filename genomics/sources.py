"""The genomes inside packages that `genomics.fetch` knows."""

import gzip
import pathlib

from experiments.common import files
from experiments.common.packages import Documents
from experiments.common.packages import Source
from experiments.common.packages import unpack


def _from_deb(path: pathlib.Path, *patterns: str) -> Documents:
  """Files of a package, uncompressed, under their names."""
  folder, found = unpack(path), []
  for pattern in patterns:
    here = sorted(folder.glob(f"usr/**/{pattern}"))
    if not here:
      raise files.UserError(f"{path.name} holds no {pattern}.")
    for item in here:
      raw = item.read_bytes()
      if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
      found.append((item.name.removesuffix(".gz"), raw))
  return found


def _fly_chr2R(path: pathlib.Path) -> Documents:  # noqa: N802
  return _from_deb(path, "tutorial/data/chr2R.fa")


def _fly_upstream(path: pathlib.Path) -> Documents:
  return _from_deb(path, "dm3_upstream2000.fa.gz")


def _bacteria(path: pathlib.Path) -> Documents:
  """Complete genomes, each named by its species and strain."""
  folder, found = unpack(path), []
  for item in sorted(folder.glob("usr/**/references/*.fasta.gz")):
    species = item.parent.parent.name.replace(".", "_").lower()
    strain = item.name.removesuffix(".fasta.gz")
    found.append((f"{species}/{strain}.fa", gzip.decompress(item.read_bytes())))
  if not found:
    raise files.UserError(f"{path.name} holds no references/*.fasta.gz.")
  return found


def _ecoli_536(path: pathlib.Path) -> Documents:
  return _from_deb(path, "genomes/NC_008253.fna.gz")


def _leptospira(path: pathlib.Path) -> Documents:
  return _from_deb(path, "examples/test.gbk.gz")


GENOMES = {
  "fly_chr2R": Source(
    what="chromosome arm 2R of Drosophila melanogaster (dm3), 21.1 Mb",
    kind="genome",
    package="augustus-doc",
    manager="deb",
    download=23_670_984,
    licence="public sequence (UCSC); package Artistic",
    sha256={
      "augustus-doc_3.5.0+dfsg-2": (
        "8427ef32b4f345dc336066215390572f242c79818bcb6a709df87b4be43fc71b"
      )
    },
    extract=_fly_chr2R,
  ),
  "fly_upstream": Source(
    what="2,000 bases before each of 26,454 transcripts of Drosophila (dm3)",
    kind="genome",
    package="r-bioc-biostrings",
    manager="deb",
    download=13_841_752,
    licence="public sequence (UCSC); package Artistic-2",
    sha256={
      "r-bioc-biostrings_2.66.0-1_amd64": (
        "94ba289411284aaf42501357cac6f50b559d23d5f9c1300fa1e4f2e91cd4fa12"
      )
    },
    extract=_fly_upstream,
  ),
  "bacteria": Source(
    what="complete genomes of strains of four species of bacteria",
    kind="genome",
    package="ragout-examples",
    manager="deb",
    download=18_434_168,
    licence="public sequence (INSDC); package BSD",
    sha256={
      "ragout-examples_2.3-4": (
        "cbe6d0dd8b0e36ef2c93c9b9655955f42019dcd9e9b77388ee58ee54d50bd140"
      )
    },
    extract=_bacteria,
  ),
  "ecoli_536": Source(
    what="the genome of Escherichia coli 536, 4.9 Mb",
    kind="genome",
    package="bowtie-examples",
    manager="deb",
    download=6_307_264,
    licence="public sequence (INSDC); package Artistic",
    sha256={
      "bowtie-examples_1.3.1-1": (
        "3cec5c9f6460ea2236cf3d2688665328ab18d90eb2f8eaa0183dd1cd05c212ee"
      )
    },
    extract=_ecoli_536,
  ),
  "leptospira": Source(
    what="Leptospira kirschneri H1 with its genes, 4.6 Mb in 75 contigs",
    kind="genome",
    package="any2fasta-examples",
    manager="deb",
    download=6_509_616,
    licence="public sequence (INSDC); package GPL-3",
    sha256={
      "any2fasta-examples_0.4.2-2": (
        "7345afc5878efe867285622415a0ba70b9c32bbd57849df63c4600217c4502f9"
      )
    },
    extract=_leptospira,
  ),
}
