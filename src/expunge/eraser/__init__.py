"""Erasers, one method per file; `expunge.names` knows them by name."""
