"""The command line: names to objects, and figures to people or to JSON."""

from expunge.cli.app import METHODS
from expunge.cli.erase import eraser_class
from expunge.cli.main import main, run

__all__ = ["METHODS", "eraser_class", "main", "run"]
