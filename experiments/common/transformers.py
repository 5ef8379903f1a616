"""What experiments with decoders and with encoders have in common."""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import data as rows_lib
from experiments.common import files
from experiments.common import loop
from experiments.common import methods
from experiments.common import sharding


@dataclasses.dataclass
class TransformerConfig(loop.LoopConfig):
  """The sizes and the attention of a model; see `model_options`."""

  method: str = "dense"  # See experiments/common/methods.py.
  method_options: dict[str, Any] = dataclasses.field(default_factory=dict)
  width: int = 256
  num_layers: int = 4
  num_heads: int = 4
  num_kv_heads: int = 0  # 0: as num_heads.
  mlp_width: int = 0  # 0: 4 * width.
  positions: str = "rotary"  # rotary, learned, none and others of the model.
  qk_norm: bool = False
  dropout: float = 0.0
  remat: str = "none"  # none, full, dots.


def model_options(
  config: TransformerConfig, *, vocab_size: int, length: int
) -> dict[str, Any]:
  """Fields of `DecoderConfig` and `EncoderConfig` that a configuration gives.

  Args:
    config: of the run.
    vocab_size: number of token ids.
    length: tokens in a row.

  Returns:
    The fields by name.

  Raises:
    UserError: if the method or its options do not fit.

  Example:
    >>> model_options(TransformerConfig(), vocab_size=9, length=8)["width"]
    256

  Source: `jaxattn.models.decoder`, `jaxattn.models.encoder`.
  """
  sizes = methods.Sizes(length, config.num_layers, config.num_heads)
  return {
    "vocab_size": vocab_size,
    "width": config.width,
    "num_layers": config.num_layers,
    "num_heads": config.num_heads,
    "num_kv_heads": config.num_kv_heads or None,
    "mlp_width": config.mlp_width or None,
    "methods": methods.make(config.method, sizes, config.method_options),
    "positions": config.positions,
    "max_length": length,
    "qk_norm": config.qk_norm,
    "dropout": config.dropout,
    "remat": config.remat,
    "dtype": jnp.dtype(config.dtype),
  }


def check_rows(
  config: TransformerConfig, model: Any, length: int, what: str
) -> None:
  """Raises UserError, naming the rows `what`, if the model takes none."""
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  check_init(config, model.init, what, tokens)


def check_init(
  config: TransformerConfig,
  init: Callable[..., Any],
  what: str,
  *examples: Any,
) -> None:
  """Raises UserError, naming the rows `what`, if `init` takes none."""
  try:
    jax.eval_shape(init, jax.random.key(0), *examples)
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(
      f"method {config.method!r} does not take rows of {what}: {error}"
    ) from error


def check_segments(
  config: TransformerConfig, layer_methods: methods.Methods
) -> None:
  """Raises UserError if a method cannot keep packed documents apart."""
  for method in layer_methods:
    if "key_segment_ids" not in method.honours:
      raise files.UserError(
        f"method {config.method!r} cannot keep the documents of a row apart: "
        "set --config.join_documents, and they are read as one text."
      )


def draws(rng: jax.Array | None) -> dict[str, jax.Array]:
  """The keys of a model's `rngs` from one; none without."""
  if rng is None:
    return {}
  names = ("dropout", "attention")
  return dict(zip(names, jax.random.split(rng, 2), strict=True))


class Totals:
  """Sums over the rows of batches that all processes make.

  Args:
    sums: from parameters, the model's other collections and a batch to a tree
      of sums over its rows.
    mesh: over which rows are split.
  """

  def __init__(self, sums: Callable[..., Any], mesh: jax.sharding.Mesh):
    self._sharding = sharding.of_rows(mesh)
    self._sums = jax.jit(sums, out_shardings=sharding.replicated(mesh))

  def __call__(
    self, params: Any, carried: Any, batches: Iterable[rows_lib.Batch]
  ) -> Any:
    """The tree, of NumPy's float64, summed over `batches`."""
    share = slice(jax.process_index(), None, jax.process_count())
    total = None
    for batch in batches:
      batch = {name: x[share] for name, x in batch.items()}
      placed = sharding.put_rows(batch, self._sharding)
      found = jax.tree.map(
        lambda x: np.asarray(x, np.float64), self._sums(params, carried, placed)
      )
      total = found if total is None else jax.tree.map(np.add, total, found)
    if total is None:
      raise ValueError("there are no batches to sum over")
    return total


def make_task(
  config: loop.LoopConfig,
  *,
  init: Callable[[jax.Array], Any],
  loss: Callable[..., Any],
  rows: Any,
  length: int,
  evaluate: Any,
  **units: Any,
) -> loop.Task:
  """What the loop needs to train on rows in random order.

  Args:
    config: of the run.
    init: from a key to the model's variables.
    loss: as of `loop.Task`.
    rows: what they are, by random access, as `PackedRows`.
    length: tokens in a row.
    evaluate: as of `loop.Task`.
    **units: `loss_unit` and `loss_scale` as of `loop.Task`.

  Returns:
    The task.
  """
  return loop.Task(
    init=init,
    loss=loss,
    batches=rows_lib.batches(
      rows,
      batch_size=config.batch_size,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    ),
    evaluate=evaluate,
    tokens_per_row=length,
    **units,
  )
