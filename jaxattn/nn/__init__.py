"""Attention layers for Flax: `jaxattn.nn.linen` and `jaxattn.nn.nnx`.

This package itself imports no Flax; import the module of the API you use.
"""

from jaxattn.nn.attention_fn import as_attention_fn as as_attention_fn

__all__ = ["as_attention_fn"]
