"""What programs on trained runs share."""

import sys
from collections.abc import Callable

from absl import app
from absl import logging

from experiments.common import files


def main_of(job: Callable[[], None]) -> Callable[[list[str]], None]:
  """A main function; what a user can mend is one line and exit code 1.

  Args:
    job: what to do when flags are parsed.

  Returns:
    What `absl.app.run` calls.

  Example:
    >>> main_of(lambda: print("done"))(["program"])
    done

  Source: none.
  """

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is not asked.
    try:
      job()
    except (files.UserError, OSError) as error:
      print(f"error: {error}", file=sys.stderr)
      sys.exit(1)

  return main
