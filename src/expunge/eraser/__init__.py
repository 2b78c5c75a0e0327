"""Erasers, one method per file."""

from expunge.eraser.esd import ESD
from expunge.eraser.fade import FADE
from expunge.eraser.receler import Receler
from expunge.eraser.speed import SPEED
from expunge.eraser.spm import SPM
from expunge.eraser.trace import TRACE
from expunge.eraser.uce import UCE

__all__ = ["ESD", "FADE", "SPEED", "SPM", "TRACE", "UCE", "Receler"]
