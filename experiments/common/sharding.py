"""Meshes of devices, and how parameters and batches lie on them."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils

from experiments.common import files

_AXES = ("data", "fsdp")
# Logical axes of parameters -> axes of the mesh. Splitting the width of every
# matrix leaves 1 / fsdp of the parameters and optimizer state on a device.
RULES = (
  ("embed", "fsdp"),
  ("mlp", None),
  ("heads", None),
  ("kv_heads", None),
  ("head_dim", None),
  ("vocab", None),
  ("layers", None),
)


def make_mesh(spec: str) -> jax.sharding.Mesh:
  """Makes the mesh that a text like `data=-1,fsdp=1` describes.

  Args:
    spec: sizes of the axes `data` and `fsdp`; one may be -1, for all devices
      that are left; an axis that is not named has size 1.

  Returns:
    The mesh, over the first devices if it needs fewer than there are.

  Raises:
    UserError: if the text is malformed or needs other devices than there are.

  Example:
    >>> dict(make_mesh("data=1").shape)
    {'data': 1, 'fsdp': 1}

  Source: `jax.sharding`.
  """
  sizes = dict.fromkeys(_AXES, 1)
  for part in filter(None, spec.replace(" ", "").split(",")):
    name, _, size = part.partition("=")
    if name not in sizes or not size.lstrip("-").isdigit():
      raise files.UserError(
        f"--config.mesh must look like 'data=-1,fsdp=1', got {spec!r}."
      )
    sizes[name] = int(size)
  count = jax.device_count()
  known = int(np.prod([s for s in sizes.values() if s != -1]))
  free = [n for n, s in sizes.items() if s == -1]
  bad = any(s < 1 and s != -1 for s in sizes.values()) or len(free) > 1
  if not bad and free:
    bad = count % known != 0
    sizes[free[0]] = count // known
  total = int(np.prod(list(sizes.values())))
  if bad or total > count or (jax.process_count() > 1 and total != count):
    raise files.UserError(
      f"--config.mesh={spec} does not fit {count} devices; sizes are positive, "
      "one may be -1, and their product must not exceed the devices."
    )
  devices = mesh_utils.create_device_mesh(
    tuple(sizes.values()), jax.devices()[:total]
  )
  return jax.sharding.Mesh(devices, _AXES)


def of_state(boxed: Any, mesh: jax.sharding.Mesh) -> Any:
  """Shardings of a state whose parameters carry logical axis names.

  Args:
    boxed: shapes of the state, from `jax.eval_shape`; leaves without names are
      replicated.
    mesh: of `make_mesh`.

  Returns:
    A tree of `NamedSharding` like the unboxed state.

  Raises:
    UserError: if a width is no multiple of the fsdp axis.
  """
  specs = nn.get_partition_spec(boxed)
  shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)

  def check(path: Any, leaf: Any, sharding: Any) -> Any:
    try:
      sharding.shard_shape(leaf.shape)
    except ValueError as error:
      name = jax.tree_util.keystr(path)
      raise files.UserError(
        f"--config.mesh: {name} of shape {leaf.shape} cannot be split over "
        f"fsdp={mesh.shape['fsdp']}; take a width that is a multiple of it."
      ) from error
    return sharding

  return jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), shardings)


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Every device holds all of it."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def of_rows(
  mesh: jax.sharding.Mesh, *, leading: int = 0
) -> jax.sharding.NamedSharding:
  """Rows over all devices, after `leading` axes that are not split."""
  spec = jax.sharding.PartitionSpec(*[None] * leading, _AXES)
  return jax.sharding.NamedSharding(mesh, spec)


def put_rows(batch: Any, sharding: jax.sharding.NamedSharding) -> Any:
  """Puts this process's rows of a batch on the mesh."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )
