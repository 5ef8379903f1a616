"""Runs that have been trained, as functions of bases."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import traverse_util

from experiments.common import checkpoint
from experiments.common import encoders
from experiments.common import files
from experiments.common import sharding
from genomics import alphabet
from genomics import classify
from genomics import results
from genomics import tokenizers
from genomics.chromatin import train as chromatin
from genomics.genes import train as genes
from genomics.pretrain import train as pretrain
from genomics.promoter import train as promoter
from genomics.species import train as species

_CONFIGS = (
  ("promoter", promoter.Config),
  ("chromatin", chromatin.Config),
  ("species", species.Config),
  ("genes", genes.Config),
  ("pretrain", pretrain.Config),
  ("pretrain", pretrain.PackedConfig),
)
_OBJECTIVES = {"chromatin": "outputs", "genes": "bases"}
_MESH = "data=1,fsdp=1"
# Rows of the embedding of A, C, G, T and of no base.
_SOFT = (
  *range(tokenizers.NUM_SPECIAL, tokenizers.NUM_SPECIAL + 4),
  tokenizers.UNK,
)

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run as its checkpoint has it.

  Attributes:
    program: promoter, chromatin, species, genes or pretrain.
    config: of the run.
    model: its model.
    variables: parameters and other collections.
    tokenizer: of its rows.
    bases: in the windows that it learned from.
    step: of the checkpoint.
  """

  program: str
  config: Any
  model: Any
  variables: Any
  tokenizer: tokenizers.Tokenizer
  bases: int
  step: int


def load(workdir: str | pathlib.Path) -> Trained:
  """Opens the last checkpoint of a run of this package.

  Args:
    workdir: of the run.

  Returns:
    The run.

  Raises:
    UserError: if there is no checkpoint, the run is of another program, or its
      tokenizer is not what it was.

  Source: none.
  """
  workdir = pathlib.Path(workdir)
  if not checkpoint.has_checkpoint(workdir):
    raise files.UserError(
      f"--workdir: {workdir} holds no checkpoint. Name that of a run of "
      "genomics that has saved one."
    )
  held = json.loads(files.read_bytes(workdir / "config.json"))
  program, config = _config(workdir, held)
  tokenizer = tokenizers.make(config.tokenizer)
  if held.get("data.tokenizer", tokenizer.name) != tokenizer.name:
    raise files.UserError(
      f"{config.tokenizer} is not the tokenizer of {workdir}: it is "
      f"{tokenizer.name!r} now and was {held['data.tokenizer']!r}. Put the "
      "model back that the run was trained with."
    )
  step, variables = _variables(workdir)
  if program == "pretrain":
    model = pretrain.make_model(config, tokenizer.vocab_size)
  else:
    outputs = variables["params"]["head"]["out"]["kernel"].shape[-1]
    objective = _OBJECTIVES.get(program, "classes")
    model = classify.make_model(
      config, tokenizer.vocab_size, outputs, objective
    )
  bases = (
    config.upstream + config.downstream
    if program == "promoter"
    else config.bases
  )
  return Trained(program, config, model, variables, tokenizer, bases, step)


def _config(workdir: pathlib.Path, held: dict[str, Any]) -> tuple[str, Any]:
  """The program that has just these fields, and its configuration."""
  given = {k: v for k, v in held.items() if not k.startswith("data.")}
  for program, kind in _CONFIGS:
    if {x.name for x in dataclasses.fields(kind)} == given.keys():
      return program, kind(**given)
  raise files.UserError(
    f"{workdir / 'config.json'} is of no run of genomics, or of one by another "
    "version. Name the workdir of a run of this version."
  )


def _variables(workdir: pathlib.Path) -> tuple[int, dict[str, Any]]:
  """The step and variables of the last checkpoint, without the optimizer's."""
  saved = ocp.CheckpointManager(
    (workdir / checkpoint.OUTPUTS[0]).absolute(),
    item_names=("state",),
    item_handlers={"state": ocp.PyTreeCheckpointHandler()},
  )
  try:
    step = saved.latest_step()
    assert step is not None
    there = saved.item_metadata(step)["state"].tree
    everywhere = sharding.replicated(sharding.make_mesh(_MESH))
    wanted = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
      {name: there[name] for name in ("params", "carried") if there.get(name)},
    )
    args = ocp.args.PyTreeRestore(
      wanted,
      restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
      partial_restore=True,
    )
    found = saved.restore(step, args=ocp.args.Composite(state=args))["state"]
  except (KeyError, OSError, ValueError) as error:
    raise files.UserError(
      f"cannot read the last checkpoint of {workdir}: {error}"
    ) from error
  finally:
    saved.close()
  found = {k: v for k, v in found.items() if k in wanted}
  return step, {"params": found["params"], **(found.get("carried") or {})}


def names(run: Trained) -> list[str]:
  """What `effects` gives for a variant, by name.

  Args:
    run: a promoter, chromatin, species or masked run.

  Returns:
    The names.

  Raises:
    UserError: for runs whose outputs are no scores of windows.

  Source: none.
  """
  if run.program == "promoter":
    return ["promoter_log_odds"]
  if run.program == "pretrain" and run.config.objective == "masked":
    return ["log_odds"]
  if run.program in ("chromatin", "species"):
    return [f"output_{i}" for i in range(run.model.outputs)]
  raise files.UserError(
    f"--workdir: a run of genomics.{run.program} has no score of a window. "
    "Name one of genomics.promoter, genomics.chromatin, genomics.species, or "
    "of genomics.pretrain with --config.objective=masked."
  )


def reads_both(run: Trained) -> bool:
  """Whether a score is the mean over both strands unless told otherwise.

  Args:
    run: the run.

  Returns:
    True for masked models; for classifiers what their run did.

  Source: none.
  """
  return run.program == "pretrain" or run.config.both_strands


def check_fits(run: Trained, codes: np.ndarray, where: str) -> None:
  """Whether a row of the run holds a window.

  Args:
    run: the run.
    codes: of the window.
    where: it is, for the error.

  Raises:
    UserError: if it does not.

  Source: none.
  """
  size = len(run.tokenizer.encode(codes).ids) + 2
  if size > run.config.length:
    raise files.UserError(
      f"{where}: {len(codes)} bases have {size} tokens with [CLS] and [SEP], "
      f"and rows of this run {run.config.length}. Take fewer bases, or a run "
      "with a larger --config.length."
    )


def effects(
  run: Trained, *, both_strands: bool, batch_size: int = 16
) -> Callable[[Pairs], np.ndarray]:
  """What a run makes of changed bases.

  Classifiers give the change of their log-odds. Masked models give log p of
  the tokens that differ, all hidden at once, less that of the genome's: with
  bases for tokens, the log-odds of a substitution. If the alleles have
  different numbers of tokens, as those of insertions and deletions have, their
  lengths count, too.

  Args:
    run: as of `names`.
    both_strands: whether to take the mean over both.
    batch_size: windows at once.

  Returns:
    From pairs of codes, as the genome has them and changed, to `[n, K]`.

  Raises:
    UserError: as of `names`.

  Source: Zhou and Troyanskaya, 2015, https://doi.org/10.1038/nmeth.3547;
  Benegas et al., 2023 (GPN), https://doi.org/10.1073/pnas.2311219120.
  """
  names(run)
  if run.program == "pretrain":
    return _masked_effects(run, both_strands, batch_size)
  score = scores(run, both_strands=both_strands, batch_size=batch_size)

  def change(pairs: Pairs) -> np.ndarray:
    found = score([codes for pair in pairs for codes in pair])
    return found[1::2] - found[::2]

  return change


def scores(
  run: Trained, *, both_strands: bool, batch_size: int = 16
) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
  """A classifier as a function of windows.

  Args:
    run: of promoter, chromatin or species.
    both_strands: whether to take the mean over both.
    batch_size: windows at once.

  Returns:
    From codes to `[n, K]`: log-odds of a promoter, log-probabilities of
    species, logits of profiles.

  Source: none.
  """
  predict = classify.Predictor(
    run.model,
    sharding.make_mesh(_MESH),
    batch_size,
    both_strands=both_strands,
  )
  params = run.variables["params"]
  carried = {k: v for k, v in run.variables.items() if k != "params"}

  def score(windows: Sequence[np.ndarray]) -> np.ndarray:
    source = classify.Arrays(windows, np.zeros(len(windows), np.int32))
    rows = classify.Rows(source, run.tokenizer, run.config.length)
    logits = predict(params, carried, rows)[0].astype(np.float64)
    if run.program == "promoter":
      return logits[:, 1:] - logits[:, :1]
    if run.program == "species":
      return np.asarray(jax.nn.log_softmax(logits))
    return logits

  return score


def _masked_effects(
  run: Trained, both_strands: bool, batch_size: int
) -> Callable[[Pairs], np.ndarray]:
  total = jax.jit(functools.partial(_log_likelihood, run))

  def change(pairs: Pairs) -> np.ndarray:
    rows = []
    for pair in pairs:
      turned = [alphabet.reverse_complement(x) for x in pair]
      for one, other in (pair, turned) if both_strands else (pair,):
        rows += _differing(run, one, other)
    found = []
    for low in range(0, len(rows), batch_size):
      some = rows[low : low + batch_size]
      some += [some[-1]] * (batch_size - len(some))
      parts = [np.stack(x) for x in zip(*some, strict=True)]
      found.append(np.asarray(total(*parts), np.float64))
    sums = np.concatenate(found)[: len(rows)].reshape(len(pairs), -1, 2)
    return np.mean(sums[..., 1] - sums[..., 0], axis=1)[:, None]

  return change


def _log_likelihood(
  run: Trained, ids: jax.Array, valid: jax.Array, hidden: jax.Array
) -> jax.Array:
  """Log p of the hidden tokens of each row."""
  shown = jnp.where(hidden, tokenizers.MASK, ids)
  mask = encoders.padding(valid)
  logits = run.model.apply(run.variables, shown, mask=mask)
  every = jax.nn.log_softmax(logits.astype(jnp.float32))
  each = jnp.take_along_axis(every, ids[..., None], axis=-1)[..., 0]
  return jnp.sum(jnp.where(hidden, each, 0.0), axis=-1)


def _differing(
  run: Trained, one: np.ndarray, other: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Two rows, and which of their tokens are not in both."""
  ids = [run.tokenizer.encode(x).ids for x in (one, other)]
  least = min(map(len, ids))
  same = ids[0][:least] == ids[1][:least]
  before = int(np.argmin(same)) if not same.all() else least
  back = ids[0][::-1][:least] == ids[1][::-1][:least]
  after = int(np.argmin(back)) if not back.all() else least
  after = min(after, least - before)
  rows = []
  for x in ids:
    whole = np.concatenate([[tokenizers.CLS], x, [tokenizers.SEP]])
    row, valid = encoders.padded(whole, run.config.length, tokenizers.PAD)
    hidden = np.zeros(run.config.length, bool)
    hidden[1 + before : 1 + len(x) - after] = True
    rows.append((row, valid, hidden))
  return rows


def digest(run: Trained) -> str:
  """Identifies a run's parameters.

  Args:
    run: the run.

  Returns:
    Sixteen digits.

  Source: SHA-256.
  """
  flat = traverse_util.flatten_dict(run.variables, sep="/")
  return results.digest([np.asarray(flat[name]) for name in sorted(flat)])


def of_channels(
  run: Trained, *, both_strands: bool = False
) -> Callable[[jax.Array], jax.Array]:
  """A classifier as a function that has slopes in channels.

  Between bases lie mixtures of their embeddings; a place without any base is an
  unknown token.

  Args:
    run: of promoter, chromatin or species, with bases for tokens.
    both_strands: whether to take the mean over both.

  Returns:
    From `[L, 4]` channels to `[K]`, what `scores` gives.

  Raises:
    UserError: for other runs.

  Source: as of `mutagenesis.integrated_gradients`.
  """
  names(run)
  if run.program == "pretrain" or run.tokenizer.name != "nucleotide":
    raise files.UserError(
      "--method=gradient and integrated need a classifier with "
      f"--config.tokenizer=nucleotide; this is a run of {run.program} with "
      f"{run.tokenizer.name!r}. Take --method=exact."
    )

  def strand(x: jax.Array) -> jax.Array:
    size = x.shape[0]
    base = jnp.full(size, tokenizers.NUM_SPECIAL, jnp.int32)
    ids = jnp.zeros(run.config.length, jnp.int32)
    ids = ids.at[0].set(tokenizers.CLS).at[size + 1].set(tokenizers.SEP)
    ids = ids.at[1 : size + 1].set(base)[None]
    valid = jnp.arange(run.config.length)[None] < size + 2

    def mixed(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
      out = call(*args, **kwargs)
      if context.module.name != "embed" or context.method_name != "__call__":
        return out
      rest = 1 - jnp.sum(x, axis=-1, keepdims=True)
      rows = context.module.embedding[jnp.asarray(_SOFT)]
      soft = jnp.concatenate([x, rest], axis=-1) @ rows
      return out.at[0, 1 : size + 1].set(soft.astype(out.dtype))

    with nn.intercept_methods(mixed):
      logits = run.model.apply(run.variables, ids, valid)[0]
    if run.program == "promoter":
      return logits[1:] - logits[:1]
    return jax.nn.log_softmax(logits) if run.program == "species" else logits

  if not both_strands:
    return strand
  return lambda x: (strand(x) + strand(x[::-1, ::-1])) / 2
