"""The command line: names to objects, and figures to people or to JSON."""

from expunge.cli.main import main, run

__all__ = ["main", "run"]
