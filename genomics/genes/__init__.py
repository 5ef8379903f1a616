"""Genes, base by base."""
