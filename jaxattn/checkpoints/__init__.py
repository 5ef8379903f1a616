"""Public checkpoints, read from local folders into this library's models."""
