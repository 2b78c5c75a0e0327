"""From an audit's log to one HTML file that opens anywhere, without a network."""

from __future__ import annotations

from expunge.report.html import write_report

__all__ = ["write_report"]
