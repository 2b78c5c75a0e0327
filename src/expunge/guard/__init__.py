"""Defences at inference, one per file."""
