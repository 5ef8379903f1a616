r"""Seconds on a CPU: rows that hold several short contigs of a made-up genome.

Command:
  python -m genomics.pretrain.main --workdir=runs/smoke_packed \
    --config=genomics/pretrain/configs/packed_smoke.py
"""

import dataclasses

from genomics.pretrain import train
from genomics.pretrain.configs import smoke

_SIZES = (20, 33, 62, 25)


def _regions(first: int, count: int) -> str:
  """Regions of some sizes, a thousand bases from each other."""
  places = []
  for i in range(count):
    low = first + 1000 * i
    places.append(f"chr1:{low}-{low + _SIZES[i % len(_SIZES)] - 1}")
  return ",".join(places)


def get_config(method: str = "dense") -> train.PackedConfig:
  """The configuration, with the attention method that `method` names."""
  config = smoke.get_config(method)
  fields = {x.name: getattr(config, x.name) for x in dataclasses.fields(config)}
  fields |= {
    "train": _regions(1, 79),
    "valid": _regions(80_001, 8),
    "test": _regions(100_001, 8),
  }
  return train.PackedConfig(**fields, least_bases=20)
