"""Checkpoints: state and input position in one step, and whose they are."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util

from experiments.common import files

_FOLDER = "checkpoints"
_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_TYPES = "/type_embed/"
# What a run makes in its workdir; --overwrite removes these and nothing else.
OUTPUTS = (
  _FOLDER,
  _CONFIG,
  "metrics.jsonl",
  "tensorboard",
  _TOKENIZER,
  "floors.json",
  "report",
)


class Checkpoints:
  """Checkpoints of one run, each whole or absent.

  A step holds the state and, in the same step, the position of the input and
  the seconds spent. Saving is synchronous: the step donates its buffers.

  Args:
    workdir: of the run.
    keep: how many of the newest to keep.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int = 2):
    self._manager = ocp.CheckpointManager(
      (workdir / _FOLDER).absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
      ),
    )

  def latest(self) -> int | None:
    """The newest step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Saves arrays and a JSON-able dictionary under `step`."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
      ),
    )
    self._manager.wait_until_finished()

  def restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """Restores what `save` saved.

    Args:
      step: one that was saved.
      abstract: `ShapeDtypeStruct`s with the shardings wanted.

    Returns:
      The state and the dictionary.

    Raises:
      UserError: if the checkpoint cannot be read.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
    )
    try:
      found = self._manager.restore(step, args=args)
    except Exception as error:  # Orbax raises many kinds.
      first = (str(error).splitlines() or [""])[0]
      raise files.UserError(
        f"cannot read checkpoint {step} of {self._manager.directory}: "
        f"{first[:200]}. Delete the folder of that step to resume from the one "
        "before, or start again with --overwrite."
      ) from error
    return found["state"], found["extra"]

  def close(self) -> None:
    """Releases the manager."""
    self._manager.close()


def parameters(workdir: pathlib.Path, like: Any, *, part: str = "") -> Any:
  """The last parameters of another run, to start from.

  A table of learned positions may be longer here: it is then filled with that
  of the run over and over, as Longformer does. Of token ids the run may have
  one more, for hidden tokens, and it may have no token types: what it has not
  stays as it is.

  Args:
    workdir: of that run.
    like: parameters of the wanted shapes, dtypes and shardings, to be used up.
    part: the name of the part to take, such as `encoder`, which may lie under
      other heads there; all else stays as in `like`. "" takes all.

  Returns:
    The saved parameters, placed as `like`.

  Raises:
    UserError: if the run has no checkpoint, or its parameters are others,
      naming the first that differs.
  """
  if not has_checkpoint(workdir):
    raise files.UserError(
      f"--config.initial: {workdir} holds no checkpoint; name the --workdir of "
      "a run that has saved one."
    )
  saved = ocp.CheckpointManager(
    (workdir / _FOLDER).absolute(),
    item_names=("state",),
    item_handlers={"state": ocp.PyTreeCheckpointHandler()},
  )
  try:
    step = saved.latest_step()
    assert step is not None
    there = _shapes(saved.item_metadata(step)["state"].tree["params"])
    chosen = {n: x for n, x in _flat(like).items() if _within(n, part)}
    if not chosen:
      raise files.UserError(
        f"--config.initial_part: this model has no part {part!r}; it has: "
        f"{', '.join(sorted(like))}."
      )
    there = {n: shape for n, shape in there.items() if _within(n, part)}
    here = {n: tuple(x.shape) for n, x in chosen.items()}
    other = {n for n in there if _fits(n, there[n], here.get(n))}
    fresh = {n for n in here.keys() - there.keys() if _TYPES in n}
    for name in sorted((there.keys() | here.keys()) - other - fresh):
      if there.get(name) != here.get(name):
        raise files.UserError(
          f"--config.initial: {name} is {there.get(name)} in {workdir} and "
          f"{here.get(name)} in this model; both need the same sizes."
        )
    wanted = {n: x for n, x in chosen.items() if n not in fresh}
    found = _restore(saved, step, wanted, {n: there[n] for n in other})
    return jax.tree_util.tree_map_with_path(
      lambda path, x: found.get(_name(path), x), like
    )
  finally:
    saved.close()


def _within(name: str, part: str) -> bool:
  return not part or name.startswith(f"{part}/")


def _fits(name: str, old: tuple[int, ...], new: tuple[int, ...] | None) -> bool:
  """Whether it is a table of which the rows differ as they may."""
  if new is None or old[1:] != new[1:]:
    return False
  table = name.split("/")[-2:]
  if table == ["position_embed", "embedding"]:
    return old[0] < new[0]
  return table == ["embed", "embedding"] and old[0] == new[0] + 1


def _restore(
  saved: ocp.CheckpointManager,
  step: int,
  like: dict[str, jax.Array],
  tables: dict[str, tuple[int, ...]],
) -> dict[str, jax.Array]:
  """Parameters as `like`; those of other shapes are cut off or repeated."""

  def wanted(name: str, x: Any) -> jax.ShapeDtypeStruct:
    shape = tables.get(name, x.shape)
    place = x.sharding
    split = isinstance(place, jax.sharding.NamedSharding)
    if split and shape != x.shape:  # It may not divide as the other does.
      whole = jax.sharding.PartitionSpec()
      place = jax.sharding.NamedSharding(place.mesh, whole)
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=place)

  def fitted(name: str, x: jax.Array) -> jax.Array:
    if name not in tables:
      return x
    rows = jnp.arange(like[name].shape[0]) % x.shape[0]
    return jax.device_put(x[rows], like[name].sharding)

  flat = {tuple(n.split("/")): wanted(n, x) for n, x in like.items()}
  abstract = {"params": traverse_util.unflatten_dict(flat)}
  args = ocp.args.PyTreeRestore(
    abstract,
    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
    partial_restore=True,
  )
  found = saved.restore(step, args=ocp.args.Composite(state=args))
  params = _flat(found["state"]["params"])
  return {name: fitted(name, x) for name, x in params.items()}


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _flat(tree: Any) -> dict[str, Any]:
  """Name -> leaf."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_name(path): x for path, x in flat}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {name: tuple(x.shape) for name, x in _flat(tree).items()}


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Whether a run has saved anything there."""
  folder = workdir / _FOLDER
  return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def identity(config: Any, digests: Mapping[str, str]) -> dict[str, Any]:
  """What must be equal for a run to be the same run.

  Args:
    config: a dataclass, of the run.
    digests: of the data, and of files that options name.

  Returns:
    Both, as they come back from a JSON file.
  """
  return json.loads(json.dumps(dataclasses.asdict(config) | dict(digests)))


def claim(workdir: pathlib.Path, config: dict[str, Any]) -> None:
  """Writes the run's configuration, or checks that it is the one there.

  Args:
    workdir: of the run.
    config: JSON-able.

  Raises:
    UserError: if checkpoints of another configuration lie there, naming the
      fields that differ.
  """
  config = json.loads(json.dumps(config))
  path = workdir / _CONFIG
  old = json.loads(files.read_bytes(path)) if path.exists() else None
  if old is None and has_checkpoint(workdir):
    raise files.UserError(
      f"{workdir} holds checkpoints but no {_CONFIG}, so whose they are cannot "
      "be told. Take another --workdir, or --overwrite to start again there."
    )
  if old is not None and has_checkpoint(workdir):
    changes = [
      f"{name}: {old.get(name)!r} there, {config.get(name)!r} now"
      for name in sorted(old.keys() | config.keys())
      if old.get(name) != config.get(name)
    ]
    if changes:
      raise files.UserError(
        f"{workdir} holds checkpoints of another configuration "
        f"({'; '.join(changes)}). Take another --workdir, or --overwrite to "
        "start again there."
      )
    return
  if not files.first_process():
    return
  if old is not None and old != config:
    # It was made for another text or size, by a run that saved nothing else.
    (workdir / _TOKENIZER).unlink(missing_ok=True)
  files.write_json(path, config)


def clear(workdir: pathlib.Path) -> None:
  """Removes what an earlier run made in `workdir`, and nothing else."""
  for name in OUTPUTS:
    path = workdir / name
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
