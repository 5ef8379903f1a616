"""The implementations of block-sparse attention, by name."""

from typing import Any
from typing import NamedTuple

from jaxattn._src import dispatch
from jaxattn._src.engines import piece_passes


class Passes(NamedTuple):
  """Forward and backward of a piece; see `piece_passes`."""

  forward: Any
  backward: Any


def passes(name: str) -> Passes:
  """The passes of a backend."""
  # Kernels are imported where they are used: a version of JAX or a platform
  # without them still has the others.
  if name == "hopper":
    from jaxattn._src.pallas import gpu_pieces

    return Passes(gpu_pieces.forward, gpu_pieces.backward)
  if name == "tpu":
    from jaxattn._src.pallas import block_sparse_tpu

    def by_kernels(run: Any) -> Any:
      return lambda task, *given: run(
        task, *given, passes=block_sparse_tpu.Kernels(task.interpret)
      )

    return Passes(
      by_kernels(piece_passes.forward), by_kernels(piece_passes.backward)
    )
  return Passes(piece_passes.forward, piece_passes.backward)


def obstacles(
  query: Any, key: Any, value: Any, *, relative: bool, scale: float, tile: Any
) -> dict[str, str | None]:
  """Why the kernels of each device cannot serve a call, or None if they can.

  Args:
    query: an array, or what has its shape and dtype.
    key: likewise.
    value: likewise.
    relative: whether there is a relative-position term.
    scale: factor of the scores.
    tile: tokens in a tile that were asked for, or None.
  """
  device = dispatch.kernel_device()
  found: dict[str, str | None] = {"hopper": "", "tpu": ""}
  facts = {"relative": relative, "scale": scale, "tile": tile}
  if device == "hopper":
    from jaxattn._src.pallas import gpu_pieces

    found[device] = gpu_pieces.obstacle(query, key, value, **facts)
  if device == "tpu":
    from jaxattn._src.pallas import block_sparse_tpu

    found[device] = block_sparse_tpu.obstacle(query, key, value, **facts)
  return found


def tile(name: str, pattern: Any, q_len: int, k_len: int) -> int | None:
  """Tokens in a tile that a backend needs, or None for a free choice.

  Args:
    name: of the backend.
    pattern: what is attended.
    q_len: T.
    k_len: S.
  """
  if name == "hopper":
    return 128
  if name == "tpu":
    from jaxattn._src.pallas import block_sparse_tpu

    return block_sparse_tpu.tile(pattern, q_len, k_len)
  return None
