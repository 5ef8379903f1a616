"""The attention methods that an experiment can name."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jaxattn
from experiments.common import files


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What a method may have to know of the model.

  Attributes:
    length: tokens in a row.
    num_layers: attention layers.
    num_heads: of each layer.
  """

  length: int
  num_layers: int = 1
  num_heads: int = 1


Methods = tuple[jaxattn.AttentionMethod, ...]


def _dense(sizes: Sizes) -> Methods:
  del sizes  # Takes any.
  return (jaxattn.dense(),)


def _sliding_window(
  sizes: Sizes, *, window: int, right: int = 0, dilation: int = 1
) -> Methods:
  """`window` counts the tokens up to the query, itself included."""
  _fits(sizes, window, dilation)
  return (
    jaxattn.sliding_window(left=window - 1, right=right, dilation=dilation),
  )


def _longformer(
  sizes: Sizes,
  *,
  window: Any,
  dilation: Any = 1,
  dilated_heads: int = 2,
  num_global: int = 0,
) -> Methods:
  """`window` is the total width, or one for each layer; so is `dilation`.

  The last `dilated_heads` heads of a layer are dilated, the others are not.
  """
  windows = _per_layer("window", window, sizes)
  dilations = _per_layer("dilation", dilation, sizes)
  if not 0 <= dilated_heads <= sizes.num_heads:
    raise ValueError(
      f"dilated_heads must be in [0, {sizes.num_heads}], got {dilated_heads}"
    )
  found = []
  for width, step in zip(windows, dilations, strict=True):
    _fits(sizes, width // 2 + 1, 1)
    plain = (1,) * (sizes.num_heads - dilated_heads)
    per_head = plain + (step,) * dilated_heads
    found.append(
      jaxattn.longformer(
        window=width,
        dilation=1 if step == 1 else per_head,
        num_global=num_global,
      )
    )
  return tuple(found)


def _sparse_transformer(
  sizes: Sizes,
  *,
  stride: int,
  kind: str = "fixed",
  factors: str = "merged",
  summary: int = 1,
  subblocks: int = 1,
  order: Any = ("local", "remote"),
) -> Methods:
  """`factors=interleaved` gives the layers one factor each, in `order`."""
  if stride > sizes.length:
    raise ValueError(
      f"stride {stride} does not fit rows of {sizes.length} tokens; take a "
      "smaller --config.method_options.stride"
    )
  interleaved = factors == "interleaved"
  method = jaxattn.sparse_transformer(
    stride=stride,
    kind=kind,  # pyrefly: ignore
    factors="local" if interleaved else factors,  # pyrefly: ignore
    summary=summary,
    subblocks=subblocks,
  )
  if not interleaved:
    return (method,)
  return jaxattn.interleave(method, sizes.num_layers, tuple(order))


def _bigbird(
  sizes: Sizes,
  *,
  block: int,
  num_random: int = 3,
  num_global: int = 0,
  seed: int = 0,
) -> Methods:
  """`num_global` leading tokens are global, or with 0 first and last block.

  Every layer has a random plan of its own.
  """
  form: dict[str, Any] = {}
  if num_global:
    form = {"form": "etc", "num_global": num_global}
  return tuple(
    jaxattn.bigbird(
      block=block, num_random=num_random, seed=seed, layer=layer, **form
    )
    for layer in range(sizes.num_layers)
  )


def _etc(
  sizes: Sizes, *, num_global: int, radius: int, max_distance: int = 12
) -> Methods:
  """The first `num_global` tokens are global; see `jaxattn.etc`."""
  if num_global >= sizes.length:
    raise ValueError(
      f"num_global {num_global} does not fit rows of {sizes.length} tokens"
    )
  return (
    jaxattn.etc(
      num_global=num_global, radius=radius, max_distance=max_distance
    ),
  )


def _linear(sizes: Sizes, *, feature_map: str = "elu") -> Methods:
  del sizes  # Takes any.
  return (jaxattn.linear_transformer(feature_map=feature_map),)


def _linformer(
  sizes: Sizes,
  *,
  k: Any,
  sharing: str = "headwise",
  projection: str = "linear",
  init: str = "scaled",
  trainable: bool = True,
) -> Methods:
  """`k` is a number, or one for each layer; see `jaxattn.linformer`."""
  found = tuple(
    jaxattn.linformer(
      max_length=sizes.length,
      k=size,
      sharing=sharing,  # pyrefly: ignore
      projection=projection,  # pyrefly: ignore
      init=init,  # pyrefly: ignore
      trainable=trainable,
    )
    for size in _per_layer("k", k, sizes)
  )
  if sharing == "layerwise" and len(set(found)) > 1:
    raise ValueError(
      f"sharing='layerwise' needs one k for all layers, got {list(k)}"
    )
  return found


def _synthesizer(
  sizes: Sizes,
  *,
  parts: Any = ("random",),
  mixing: str = "softmax",
  rank: int | None = None,
  factors: Any = None,
  share_heads: bool = False,
  stddev: float | None = None,
) -> Methods:
  """`parts` is a name, or a list of those to mix; see `jaxattn.synthesizer`."""
  names: Any = [parts] if isinstance(parts, str) else parts
  return (
    jaxattn.synthesizer(
      max_length=sizes.length,
      parts=tuple(names),
      mixing=mixing,  # pyrefly: ignore
      rank=rank,
      factors=None if factors is None else tuple(factors),
      share_heads=share_heads,
      stddev=stddev,
    ),
  )


def _performer(
  sizes: Sizes,
  *,
  kind: str = "positive",
  num_features: int | None = None,
  projection: str | None = None,
  norms: str | None = None,
  redraw_interval: int | None = None,
) -> Methods:
  """None leaves an option at the default of `jaxattn.performer`.

  `kind=relu` stands for generalized features with ReLU, of queries and keys
  themselves unless `projection` is given.
  """
  del sizes  # Takes any.
  options: dict[str, Any] = {"kind": kind}
  if kind == "relu":
    options = {"kind": "generalized", "projection": None}
  given = {
    "num_features": num_features,
    "projection": projection,
    "norms": norms,
    "redraw_interval": redraw_interval,
  }
  options |= {k: v for k, v in given.items() if v is not None}
  return (jaxattn.performer(**options),)


def _reformer(
  sizes: Sizes,
  *,
  chunk: int,
  rounds: int = 2,
  num_buckets: Any = None,
  strict: bool = False,
  within: bool = False,
  local_window: int = 0,
) -> Methods:
  """With `local_window` every second layer, from the first on, is a window."""
  hashing = jaxattn.reformer(
    rounds=rounds,
    chunk=chunk,
    num_buckets=_tuple(num_buckets),
    strict=strict,
    within=within,
  )
  if not local_window:
    return (hashing,)
  _fits(sizes, local_window, 1)
  local = jaxattn.sliding_window(left=local_window - 1)
  return tuple(hashing if i % 2 else local for i in range(sizes.num_layers))


def _routing(
  sizes: Sizes,
  *,
  num_clusters: int,
  window: int | None = None,
  mode: str = "balanced",
  decay: float = 0.999,
  local_heads: int | None = None,
  local_window: int = 0,
) -> Methods:
  """The first heads are windows: `local_heads`, or half where given a window.

  `local_window` counts the tokens up to the query, itself included.
  """
  method = jaxattn.routing(
    num_clusters=num_clusters,
    window=window or -(-sizes.length // num_clusters),
    mode=mode,  # pyrefly: ignore
    decay=decay,
  )
  if local_heads is None:
    local_heads = sizes.num_heads // 2 if local_window else 0
  if not 0 <= local_heads < sizes.num_heads:
    raise ValueError(
      f"local_heads must be in [0, {sizes.num_heads}), got {local_heads}"
    )
  if not local_heads:
    return (method,)
  _fits(sizes, local_window, 1)
  local = jaxattn.sliding_window(left=local_window - 1)
  rest = sizes.num_heads - local_heads
  return (jaxattn.split_heads((local, local_heads), (method, rest)),)


def _sinkhorn(
  sizes: Sizes,
  *,
  block: int,
  iterations: int = 7,
  temperature: float = 0.75,
  networks: str = "shared",
  mixture: bool = False,
  noise: bool = True,
) -> Methods:
  """See `jaxattn.sinkhorn`."""
  return (
    jaxattn.sinkhorn(
      max_length=sizes.length,
      block=block,
      iterations=iterations,
      temperature=temperature,
      networks=networks,  # pyrefly: ignore
      mixture=mixture,
      noise=noise,
    ),
  )


def _tuple(value: Any) -> Any:
  """A list as it comes from a configuration, as a tuple."""
  return value if value is None or isinstance(value, int) else tuple(value)


def _fits(sizes: Sizes, window: int, dilation: int) -> None:
  if not 1 <= window or (window - 1) * dilation >= sizes.length:
    raise ValueError(
      f"window {window} with dilation {dilation} does not fit rows of "
      f"{sizes.length} tokens; take a smaller --config.method_options.window "
      "or a larger --config.length"
    )


def _per_layer(name: str, value: Any, sizes: Sizes) -> tuple[int, ...]:
  """One value for every layer, from one for all or a list."""
  if isinstance(value, int):
    return (value,) * sizes.num_layers
  if len(value) != sizes.num_layers:
    raise ValueError(
      f"{name} must be a number, or one for each of {sizes.num_layers} layers; "
      f"got {list(value)}"
    )
  return tuple(value)


# Name -> factory of (sizes, options).
METHODS: dict[str, Callable[..., Methods]] = {
  "bigbird": _bigbird,
  "dense": _dense,
  "etc": _etc,
  "linear": _linear,
  "linformer": _linformer,
  "longformer": _longformer,
  "performer": _performer,
  "reformer": _reformer,
  "routing": _routing,
  "sinkhorn": _sinkhorn,
  "sliding_window": _sliding_window,
  "sparse_transformer": _sparse_transformer,
  "synthesizer": _synthesizer,
}


def make(
  name: str, sizes: Sizes, options: dict[str, Any] | None = None
) -> Methods:
  """Makes the methods that `name` names.

  Args:
    name: a key of `METHODS`.
    sizes: of the model.
    options: keyword arguments of the factory.

  Returns:
    One method for all layers, or one for each.

  Raises:
    UserError: for an unknown name or option, a missing option, or a length that
      the method cannot take.

  Example:
    >>> make("sliding_window", Sizes(length=256), {"window": 128})[0].left
    127

  Source: a literal dictionary instead of a registry.
  """
  if name not in METHODS:
    close = difflib.get_close_matches(name, METHODS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise files.UserError(
      f"unknown method {name!r}; known: {', '.join(sorted(METHODS))}.{hint}"
    )
  factory, options = METHODS[name], dict(options or {})
  parameters = list(inspect.signature(factory).parameters.values())[1:]
  known = [p.name for p in parameters]
  needed = [p.name for p in parameters if p.default is p.empty]
  for option in options:
    if option not in known:
      raise files.UserError(
        f"method {name!r} has no option {option!r}; it has: "
        f"{', '.join(known) or 'none'}."
      )
  for option in needed:
    if option not in options:
      raise files.UserError(
        f"method {name!r} needs --config.method_options.{option}; set it in "
        "method_options of the configuration."
      )
  try:
    return factory(sizes, **options)
  except (TypeError, ValueError, NotImplementedError) as error:
    raise files.UserError(f"method {name!r}: {error}") from error
