"""Ways to bring a concept back, one per file."""
