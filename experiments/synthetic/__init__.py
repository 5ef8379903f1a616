"""Synthetic tasks, whose answers are known, for models that are not causal."""
