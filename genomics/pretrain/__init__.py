"""Language models of DNA, masked and causal."""
