"""Effects of the variants of a file, by a run that has been trained."""
