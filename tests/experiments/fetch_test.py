"""Fetching by name, with package managers that are not really there."""

import hashlib
import io
import struct
import subprocess
import tarfile
import zipfile
import zlib
from typing import Any

import pytest

from experiments.common import fetch
from experiments.common import files
from experiments.common import packages
from experiments.common import sources


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXATTN_DATA", str(tmp_path / "cache"))
  return tmp_path / "cache"


def _source(monkeypatch, **changes):
  fields: dict[str, Any] = dict(
    what="a text",
    kind="text",
    package="thing==1.0",
    manager="wheel",
    download=10,
    licence="none",
    sha256={"thing-1.0": hashlib.sha256(b"package").hexdigest()},
    extract=lambda path: [("b", b"two"), ("a", path.read_bytes())],
  )
  source = packages.Source(**(fields | changes))
  monkeypatch.setattr(fetch, "SOURCES", {"thing": source})


def _downloads(monkeypatch, content=b"package", name="thing-1.0-any.whl"):
  calls = []

  def command(arguments, tool, *, folder=None, total=0):
    calls.append(list(arguments))
    wanted = "pip-25.0.1-any.whl" if "pip==" in arguments[-1] else name
    assert folder is not None
    (folder / wanted).write_bytes(content)

  monkeypatch.setattr(packages, "command", command)
  return calls


def test_fetches_once_and_loads(cache, monkeypatch, capsys):
  _source(monkeypatch)
  calls = _downloads(monkeypatch)
  fetch.fetch("thing")
  assert fetch.load("thing") == [("a", b"package"), ("b", b"two")]
  assert [p.name for p in cache.iterdir()] == ["thing.zip"]
  fetch.fetch("thing")
  assert len(calls) == 1
  assert {"download", "--no-deps", "thing==1.0"} <= set(calls[0])
  assert "a text" in capsys.readouterr().out


def test_sdist_goes_through_an_older_pip(monkeypatch):
  _source(monkeypatch, manager="sdist")
  calls = _downloads(monkeypatch, name="thing-1.0.tar.gz")
  fetch.fetch("thing")
  assert [c[-1] for c in calls] == ["pip==25.0.1", "thing==1.0"]
  assert calls[1][1].endswith(".whl/pip")
  assert all("--no-deps" in c for c in calls)


def test_a_wrong_checksum_is_refused(cache, monkeypatch):
  _source(monkeypatch)
  _downloads(monkeypatch, content=b"evil")
  with pytest.raises(files.UserError, match="has SHA-256 .*, wanted"):
    fetch.fetch("thing")
  assert not list(cache.iterdir())


def test_a_failed_extraction_leaves_nothing(cache, monkeypatch):
  def fail(path):
    raise files.UserError("no")

  _source(monkeypatch, extract=fail)
  _downloads(monkeypatch)
  with pytest.raises(files.UserError):
    fetch.fetch("thing")
  assert not list(cache.iterdir())


def test_missing_tools_are_named(monkeypatch):
  _source(monkeypatch, manager="deb")
  monkeypatch.setattr(packages.shutil, "which", lambda name: None)
  with pytest.raises(files.UserError, match="apt-get is not here"):
    fetch.fetch("thing")

  def missing(*args, **kwargs):
    raise FileNotFoundError

  monkeypatch.setattr(subprocess, "Popen", missing)
  _source(monkeypatch)
  with pytest.raises(files.UserError, match="pip is not here: install it"):
    fetch.fetch("thing")


def test_a_failing_tool_is_quoted(monkeypatch):
  _source(monkeypatch, package="???")  # Pip refuses at once, without a network.
  with pytest.raises(files.UserError, match="pip failed: ") as error:
    fetch.fetch("thing")
  assert "\n" not in str(error.value)


def test_unknown_names_and_broken_archives(cache):
  with pytest.raises(files.UserError, match="known: enwiki, austen"):
    fetch.fetch("nope")
  cache.mkdir()
  (cache / "enwiki.zip").write_bytes(b"PK not a zip")
  with pytest.raises(files.UserError, match="cannot read .*fetch enwiki"):
    fetch.load("enwiki")


@pytest.mark.parametrize("version", [2, 3])
def test_r_strings(version, tmp_path, monkeypatch):
  """Two novels in R's format, as the package holds them."""

  def serialized(lines):
    data = b"X\n" + struct.pack(">iii", version, 0, 0)
    if version == 3:
      data += struct.pack(">i", 5) + b"UTF-8"
    data += struct.pack(">ii", 16, len(lines))
    for line in lines:
      data += struct.pack(">ii", 9, len(line)) + line
    return struct.pack(">i", len(data)) + zlib.compress(data)

  folder = tmp_path / "usr/lib/R/site-library/janeaustenr/data"
  folder.mkdir(parents=True)
  books = [[b"", b"PERSUASION", b"text"], [b"EMMA", b"more"]]
  (folder / "Rdata.rdb").write_bytes(b"".join(map(serialized, books)))
  monkeypatch.setattr(sources, "unpack", lambda path: tmp_path)
  assert sources.SOURCES["austen"].extract(tmp_path) == [
    ("Emma", b"EMMA\nmore\n"),
    ("Persuasion", b"\nPERSUASION\ntext\n"),
  ]


def test_archives_do_not_depend_on_the_clock(cache, monkeypatch):
  _source(monkeypatch)
  _downloads(monkeypatch)
  first = fetch.fetch("thing").read_bytes()
  with zipfile.ZipFile(cache / "thing.zip") as archive:
    assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)
  (cache / "thing.zip").unlink()
  assert fetch.fetch("thing").read_bytes() == first


def test_squad_files_are_taken_out_as_they_are(tmp_path):
  names = (
    "squaddev_v1.1",
    "new_wiki_v1.0",
    "nyt_v1.0",
    "reddit_v1.0",
    "amazon_reviews_v1.0",
  )
  folder = "bigbench-1.0.0/bigbench/benchmark_tasks/squad_shifts/"
  with tarfile.open(tmp_path / "package.tar.gz", "w:gz") as archive:
    for i, name in enumerate([*names, "nyt_v1.0_removed"]):
      member = tarfile.TarInfo(f"{folder}{name}.json")
      member.size = 1
      archive.addfile(member, io.BytesIO(b"%d" % i))
  found = sources.SOURCES["squad"].extract(tmp_path / "package.tar.gz")
  want = [(f"{name}.json", b"%d" % i) for i, name in enumerate(names)]
  assert found == want
