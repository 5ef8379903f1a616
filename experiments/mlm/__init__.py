"""Masked language modelling: encoders pretrained on local text."""
