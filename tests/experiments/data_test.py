"""Packed rows, evaluation windows, and the order of batches."""

import numpy as np
import pytest

from experiments.common import data
from experiments.common import files
from experiments.common import tokens

_TEXTS = [b"", b"abcdefghij", b"k", b"lmnopq", b"rst" * 9]


def _docs(texts=_TEXTS):
  return data.join(tokens.Bytes(), texts)


def _rows(docs, length):
  rows = data.PackedRows(docs, length)
  return [rows[i] for i in range(len(rows))]


def test_documents_are_joined_with_separators():
  docs = _docs()
  real = [t for t in _TEXTS if t]
  want = b"".join(b"|" + t for t in real)
  got = np.where(docs.ids == 256, ord("|"), docs.ids).astype(np.uint8)
  assert got.tobytes() == want
  assert (docs.ids[docs.starts] == 256).all()
  assert docs.num_bytes == sum(map(len, real))


def test_no_text_is_an_error():
  with pytest.raises(files.UserError, match="no text"):
    _docs([b"", b""])


@pytest.mark.parametrize("length", [1, 4, 7, 64])
def test_packing_predicts_every_byte_once(length):
  rows = _rows(_docs(), length)
  assert {r["inputs"].shape for r in rows} == {(length,)}
  got = np.concatenate([r["targets"][r["weights"] > 0] for r in rows])
  assert got.astype(np.uint8).tobytes() == b"".join(_TEXTS)


@pytest.mark.parametrize("length", [1, 4, 7, 64])
def test_packing_of_one_text_has_no_segments(length):
  text = bytes(range(50))
  rows = _rows(_docs([text]), length)
  assert "segment_ids" not in rows[0]
  got = np.concatenate([r["targets"][r["weights"] > 0] for r in rows])
  assert got.astype(np.uint8).tobytes() == text
  for row in rows:  # The next token is the next input.
    np.testing.assert_array_equal(row["targets"][:-1], row["inputs"][1:])


@pytest.mark.parametrize("length", [4, 7, 64])
def test_segments_and_positions(length):
  """A separator opens a segment, and its position is 0."""
  for row in _rows(_docs(), length):
    inputs, segments = row["inputs"], row["segment_ids"]
    positions, real = row["positions"], row["segment_ids"] > 0
    opens = real & (inputs == 256)
    opens[0] = real[0]
    np.testing.assert_array_equal(segments[real], np.cumsum(opens)[real])
    want = np.arange(length) - np.maximum.accumulate(
      np.where(opens, np.arange(length), 0)
    )
    np.testing.assert_array_equal(positions[real], want[real])
    assert not row["weights"][~real].any()
    assert not positions[~real].any()
    # Nothing is predicted across documents.
    crossing = real & (row["targets"] == 256)
    assert not row["weights"][crossing].any()


@pytest.mark.parametrize(
  ("length", "stride"), [(4, 4), (4, 1), (7, 3), (64, 9)]
)
def test_windows_score_every_byte_once_with_context(length, stride):
  docs = _docs()
  windows = data.windows(docs, length=length, stride=stride)
  got, contexts = [], []
  for batch in windows.batches(3):
    assert batch["inputs"].shape == (3, length)
    for ids, goal, weights in zip(
      batch["inputs"], batch["targets"], batch["weights"], strict=True
    ):
      scored = np.flatnonzero(weights)
      got.append(goal[scored].astype(np.uint8).tobytes())
      contexts += list(zip(scored, [ids[0]] * len(scored), strict=True))
  assert b"".join(got) == b"".join(_TEXTS)
  # Windows that do not begin a document score only with context.
  for place, first in contexts:
    assert first == 256 or place >= length - stride


def test_windows_can_be_thinned():
  windows = data.windows(_docs(), length=4, stride=2)
  assert len(windows.begins) > 5
  assert windows.thin(0) is windows
  assert len(windows.thin(5).begins) == 5
  assert len(set(windows.thin(5).begins.tolist())) == 5


@pytest.mark.parametrize("stride", [0, 5])
def test_stride_out_of_range(stride):
  with pytest.raises(
    files.UserError, match=r"eval_stride must lie in \[1, 4\]"
  ):
    data.windows(_docs(), length=4, stride=stride)


def _take(iterator, count):
  return [next(iterator)["inputs"].copy() for _ in range(count)]


def test_iterator_goes_on_from_its_state():
  rows = data.PackedRows(_docs(), 4)
  options = dict(batch_size=3, seed=7)
  one = iter(data.batches(rows, **options))
  _take(one, 5)
  state = one.get_state()
  want = _take(one, 10)
  other = iter(data.batches(rows, **options))
  other.set_state(state)
  np.testing.assert_array_equal(_take(other, 10), want)


def test_every_epoch_has_all_rows_in_its_own_order():
  rows = data.PackedRows(_docs(), 4)
  count = len(rows)
  batches = iter(data.batches(rows, batch_size=count, seed=7))
  first, second = (next(batches)["inputs"] for _ in range(2))
  assert (first != second).any()
  everything = sorted(rows[i]["inputs"].tolist() for i in range(count))
  assert sorted(first.tolist()) == sorted(second.tolist()) == everything
  again = next(iter(data.batches(rows, batch_size=count, seed=7)))["inputs"]
  np.testing.assert_array_equal(first, again)
  other = next(iter(data.batches(rows, batch_size=count, seed=8)))["inputs"]
  assert (first != other).any()


def test_processes_share_a_batch():
  rows = data.PackedRows(_docs(), 4)
  whole = next(iter(data.batches(rows, batch_size=4, seed=1)))["inputs"]
  parts = [
    next(
      iter(
        data.batches(
          rows, batch_size=4, seed=1, process_index=p, process_count=2
        )
      )
    )["inputs"]
    for p in range(2)
  ]
  assert sorted(np.concatenate(parts).tolist()) == sorted(whole.tolist())
