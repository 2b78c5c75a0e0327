"""One offline HTML file from the log of a watermark bench: what is left of a mark.

The log is the only input: nothing here loads a model, marks, edits or reads a mark. What is
computed here is the difference of stored pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.report import curves as lines
from expunge.report import scatter
from expunge.report.page import Form, write_page
from expunge.report.returns import returns
from expunge.report.strips import strips
from expunge.report.survival import cells, level, name, settings, standings, units

FORM = Form(
    "expunge.watermark/1",
    (
        *("pictures", "model", "schemes", "edits", "psnr", "false_positive_rate", "cells"),
        *("unmarked", "examples", "reported", "flags", "made"),
    ),
    "a watermark bench's log",
    "run the bench again",
)


def write_watermark_report(
    log: Mapping[str, Any], images: Path, out: Path, *, examples: int = 6
) -> Path:
    """Write the report of a watermark bench.

    Args:
        log: the bench's log, an object of schema `expunge.watermark/1`.
        images: the folder that the log's image paths are relative to.
        out: the HTML file to write; its folder is made where needed.
        examples: edited pictures shown for each scheme.

    Returns:
        `out`.

    Raises:
        ValueError: the log has another schema or lacks a part, or `examples` is below 1.
    """
    FORM.check(log, examples)
    found, counted = standings(log), units(log)
    return write_page(
        Path(out),
        "watermark.html.jinja",
        log=log,
        standings=found,
        strips={
            each.scheme["scheme"]: strips(each, log["examples"], Path(images), examples)
            for each in found
        },
        looks={each.scheme["scheme"]: lines.look(index) for index, each in enumerate(found)},
        returns=returns(log),
        curves=lines.curves(found),
        scatters=scatter.scatters(found, cells(log), counted),
        name=lambda cell: name(cell, counted),
        level=level,
        settings=settings,
        sizes={"curves": _size(lines), "scatter": _size(scatter)},
    )


def _size(plot: Any) -> dict[str, int]:
    """Width, height and margins of the panels of a kind of plot."""
    sides = ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")
    return {side.lower(): getattr(plot, side) for side in sides}
