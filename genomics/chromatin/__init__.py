"""Chromatin profiles of sequences."""
