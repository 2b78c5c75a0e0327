"""Judges: from a picture to a score, with a threshold, a version and a hash."""
