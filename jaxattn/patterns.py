"""Static attention patterns, composed with `|`, `&`, `-` and `+`."""

from jaxattn._src.block_patterns import Moved as Moved
from jaxattn._src.block_patterns import RandomBlocks as RandomBlocks
from jaxattn._src.patterns import Causal as Causal
from jaxattn._src.patterns import Chunked as Chunked
from jaxattn._src.patterns import dilated as dilated
from jaxattn._src.patterns import fixed as fixed
from jaxattn._src.patterns import Full as Full
from jaxattn._src.patterns import Global as Global
from jaxattn._src.patterns import Pattern as Pattern
from jaxattn._src.patterns import Strided as Strided
from jaxattn._src.patterns import Sum as Sum
from jaxattn._src.patterns import Summary as Summary
from jaxattn._src.patterns import Window as Window

__all__ = [
  "Causal",
  "Chunked",
  "Full",
  "Global",
  "Moved",
  "Pattern",
  "RandomBlocks",
  "Strided",
  "Sum",
  "Summary",
  "Window",
  "dilated",
  "fixed",
]
