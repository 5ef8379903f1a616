"""The smoke configurations, and what changes in none of them."""

import importlib

PROGRAMS = ("promoter", "species", "chromatin", "genes", "pretrain")


def module(name):
  return importlib.import_module(f"genomics.{name}.train")


def config(name, method="dense", **changes):
  loaded = importlib.import_module(f"genomics.{name}.configs.smoke")
  found = loaded.get_config(method)
  found.mesh = "data=1,fsdp=1"  # Compiles faster than one over all devices.
  for field, value in changes.items():
    setattr(found, field, value)
  return found
