"""Models built of `jaxattn.nn.linen` layers, for any attention method."""
