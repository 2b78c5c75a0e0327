"""Diffusers pipelines as mathematics."""
