"""Erasers, one method per file."""

from expunge.eraser.speed import SPEED
from expunge.eraser.uce import UCE

__all__ = ["SPEED", "UCE"]
