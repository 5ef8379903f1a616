"""Speed and memory against length, beside what a user would take instead."""
