"""Position embeddings and relative-position schemes."""

from jaxattn._src.positions import ALiBi as ALiBi
from jaxattn._src.positions import alibi_slopes as alibi_slopes
from jaxattn._src.positions import apply_rotary as apply_rotary
from jaxattn._src.positions import ClippedDistance as ClippedDistance
from jaxattn._src.positions import Scheme as Scheme
from jaxattn._src.positions import ShawRelative as ShawRelative
from jaxattn._src.positions import sinusoidal as sinusoidal
from jaxattn._src.positions import T5Bias as T5Bias
from jaxattn._src.positions import T5Buckets as T5Buckets

__all__ = [
  "ALiBi",
  "ClippedDistance",
  "Scheme",
  "ShawRelative",
  "T5Bias",
  "T5Buckets",
  "alibi_slopes",
  "apply_rotary",
  "sinusoidal",
]
