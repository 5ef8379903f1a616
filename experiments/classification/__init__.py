"""Long documents and their classes, with any attention of encoders."""
