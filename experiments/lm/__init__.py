"""Byte- and token-level language modelling."""
