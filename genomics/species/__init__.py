"""Species of stretches of DNA."""
