"""Layers that are more than a function of query, key and value."""
