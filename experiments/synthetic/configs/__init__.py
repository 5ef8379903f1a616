"""Configurations of runs on synthetic tasks."""
