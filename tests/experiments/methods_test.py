"""Methods by name, and what is said when one cannot be made."""

import pytest

import jaxattn
from experiments.common import files
from experiments.common import methods


def test_names_make_methods():
  assert methods.make("dense", 64) == jaxattn.dense()
  got = methods.make("sliding_window", 64, {"window": 8, "dilation": 2})
  assert got == jaxattn.sliding_window(left=7, dilation=2)
  # As wide as the row is allowed: the window sees all of it.
  widest = methods.make("sliding_window", 64, {"window": 64})
  assert widest == jaxattn.sliding_window(left=63)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("sliding_windw", {}, "known: dense, sliding_window.*'sliding_window'"),
    ("dense", {"window": 8}, "has no option 'window'; it has: none"),
    ("sliding_window", {}, r"needs --config\.method_options\.window"),
    ("sliding_window", {"window": 65}, "window 65 .* rows of 64 tokens"),
    ("sliding_window", {"window": 0}, "window 0"),
    ("sliding_window", {"window": 8, "dilation": 0}, "dilation"),
  ],
)
def test_errors(name, options, message):
  with pytest.raises(files.UserError, match=message) as error:
    methods.make(name, 64, options)
  assert "\n" not in str(error.value)
