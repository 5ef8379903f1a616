"""Configurations, one file per run."""
