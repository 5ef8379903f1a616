"""Promoters against what is set against them."""
