"""Summaries of long articles by an encoder-decoder."""
