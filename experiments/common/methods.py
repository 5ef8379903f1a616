"""The attention methods that an experiment can name."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jaxattn
from experiments.common import files


def _dense(length: int) -> jaxattn.AttentionMethod:
  del length  # Takes any.
  return jaxattn.dense()


def _sliding_window(
  length: int, *, window: int, dilation: int = 1
) -> jaxattn.AttentionMethod:
  """`window` counts the tokens seen, the query's own included."""
  if not 1 <= window or (window - 1) * dilation >= length:
    raise ValueError(
      f"window {window} with dilation {dilation} does not fit rows of {length} "
      "tokens; take a smaller --config.method_options.window or a larger "
      "--config.length"
    )
  return jaxattn.sliding_window(left=window - 1, dilation=dilation)


# Name -> factory of (length of a row, options).
METHODS: dict[str, Callable[..., jaxattn.AttentionMethod]] = {
  "dense": _dense,
  "sliding_window": _sliding_window,
}


def make(
  name: str, length: int, options: dict[str, Any] | None = None
) -> jaxattn.AttentionMethod:
  """Makes the method that `name` names.

  Args:
    name: a key of `METHODS`.
    length: tokens in a row.
    options: keyword arguments of the factory.

  Returns:
    The method.

  Raises:
    UserError: for an unknown name or option, a missing option, or a length that
      the method cannot take.

  Example:
    >>> make("sliding_window", 256, {"window": 128}).left
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
    return factory(length, **options)
  except (ValueError, NotImplementedError) as error:
    raise files.UserError(f"method {name!r}: {error}") from error
