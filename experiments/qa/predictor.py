"""Answers of a model to whole documents, from what it says of windows."""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import sharding
from experiments.qa import reader
from experiments.qa import rows as rows_lib
from jaxattn.models import answers


@dataclasses.dataclass(frozen=True)
class Predictions:
  """The answers of a model.

  Attributes:
    texts: question id -> answer; "" says that there is none.
    windows: rows that were read.
    facts: question id -> numbers of sentences that lead to the answer; empty
      where the model does not say.
  """

  texts: dict[str, str]
  windows: int
  facts: dict[str, set[int]] = dataclasses.field(default_factory=dict)


class Predictor:
  """Finds the best answer of every question over all its windows.

  Windows are compared by how much more likely their best span is than the
  first token, which says that the answer is not there. Of candidates, the one
  with the largest mean of logits over the windows is chosen. A sentence leads
  to the answer if a window that holds it says so.

  Args:
    model: that reads.
    mesh: over which rows are split.
    batch_size: rows at once, over all processes.
    max_answer: tokens of an answer, at most.
    may_be_none: whether a question may have no answer; else the best span is
      taken whatever the first token says.
  """

  def __init__(
    self,
    model: reader.Reader | reader.EtcReader,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    max_answer: int,
    may_be_none: bool,
  ):
    self._batch_size, self._may_be_none = batch_size, may_be_none
    self._sharding = sharding.of_rows(mesh)

    def best(params: Any, carried: Any, batch: Any) -> dict[str, jax.Array]:
      said, _ = model.apply(
        {"params": params, **carried}, batch, mutable=list(carried)
      )
      found = {"row": batch["row"]}
      if said.spans is not None:
        found |= _best_span(said.spans, max_answer)
      if said.candidates is not None:
        found["candidates"] = said.candidates
      if said.facts is not None:
        found["facts"] = said.facts > 0
        found["first_sentence"] = batch["first_sentence"]
      return found

    self._best = jax.jit(best, out_shardings=sharding.replicated(mesh))

  def __call__(
    self, params: Any, carried: Any, rows: rows_lib.Rows
  ) -> Predictions:
    """The answers to all questions of `rows`."""
    gathered = _Gathered(rows, self._may_be_none)
    share = slice(jax.process_index(), None, jax.process_count())
    for batch in rows.batches(self._batch_size):
      local = {name: x[share] for name, x in batch.items()}
      placed = sharding.put_rows(local, self._sharding)
      out = jax.tree.map(np.asarray, self._best(params, carried, placed))
      for i, row in enumerate(out["row"]):
        if row >= 0:
          gathered.add(
            rows.windows[row], {name: x[i] for name, x in out.items()}
          )
    return gathered.predictions()


def _best_span(spans: answers.SpanLogits, max_answer: int) -> dict[str, Any]:
  """The best span of each row, and how it compares to the first token."""
  none = spans.start[:, 0] + spans.end[:, 0]
  inside = jnp.arange(spans.start.shape[1]) > 0
  found = answers.best_spans(
    jnp.where(inside, spans.start, -jnp.inf),
    jnp.where(inside, spans.end, -jnp.inf),
    max_length=max_answer,
  )
  kind = jnp.zeros(none.shape, jnp.int32)
  if spans.types is not None:
    kind = jnp.argmax(spans.types, axis=-1)
  return {
    "first": found.start[:, 0],
    "last": found.end[:, 0],
    "score": found.score[:, 0] - none,
    "kind": kind,
  }


class _Gathered:
  """What the windows of each question say, taken together."""

  def __init__(self, rows: rows_lib.Rows, may_be_none: bool):
    self._rows, self._may_be_none = rows, may_be_none
    self._best: dict[int, float] = {}
    self._texts: dict[int, str] = {}
    self._candidates: dict[int, np.ndarray] = {}
    self._facts: dict[int, set[int]] = collections.defaultdict(set)

  def add(self, window: rows_lib.Window, out: dict[str, Any]) -> None:
    """Takes in what is said of one window."""
    number = window.question
    if "score" in out and out["score"] > self._best.get(number, -np.inf):
      self._best[number] = float(out["score"])
      self._texts[number] = self._text(window, out)
    if "candidates" in out:
      before = self._candidates.get(number, 0.0)
      self._candidates[number] = before + out["candidates"]
    if "facts" in out:
      found = np.flatnonzero(out["facts"]) + out["first_sentence"]
      self._facts[number].update(found.tolist())

  def predictions(self) -> Predictions:
    """What is said of all questions."""
    asked = [encoded.question for encoded in self._rows.questions]
    texts = {asked[n].id: text for n, text in self._texts.items()}
    for n, logits in self._candidates.items():
      texts[asked[n].id] = asked[n].candidates[int(np.argmax(logits))]
    facts = {asked[n].id: found for n, found in self._facts.items()}
    return Predictions(texts, len(self._rows), facts)

  def _text(self, window: rows_lib.Window, found: dict[str, Any]) -> str:
    kind = rows_lib.KINDS[int(found["kind"])]
    if kind != "span":
      return kind
    if self._may_be_none and found["score"] < 0:
      return ""
    return self._rows.text(window, int(found["first"]), int(found["last"]))
