"""Erasers, one method per file."""

from expunge.erase.esd import ESD
from expunge.erase.trace import TRACE
from expunge.erase.uce import UCE

__all__ = ["ESD", "TRACE", "UCE"]
