"""Question answering over long documents: files and scores."""
