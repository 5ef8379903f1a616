"""Trains the pieces of a tokenizer."""
