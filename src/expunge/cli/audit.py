"""Audit, report, and the demonstration that does everything."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from expunge.cli.app import (
    Json,
    Run,
    app,
    backbone_of,
    command_line,
    percent,
    print_json,
    say,
)
from expunge.cli.erase import erase

if TYPE_CHECKING:
    from expunge.auditing import Log


def _show_log(log: Log) -> None:
    """One row a concept and way of asking; figures are counts, for intervals are in the report."""
    table = Table(title=f"{', '.join(log.target.concepts)}: pictures that show the concept")
    for column in ("asked for", "how", "role", "original", "erased", "difference"):
        table.add_column(column, justify="left" if column in {"asked for", "how"} else "right")
    for row in log.differences:
        if row.first == "original" and row.judge == log.judge.name:
            counts = (
                f"{round(rate * row.n)}/{row.n}" for rate in (row.first_rate, row.second_rate)
            )
            how = row.probe if row.attack == "plain" else row.attack
            table.add_row(row.concept, how, row.role, *counts, percent(row.difference, row.ci))
    Console().print(table)
    for flag in log.flags:
        say(f"note: {flag.text}")


@app.command
def audit(
    run: Run,
    *,
    model: Annotated[str | None, Parameter(help="The original; the record's by default.")] = None,
    prompts: Annotated[int, Parameter(help="Distinct prompts for each way of asking.")] = 400,
    neighbours: Annotated[int, Parameter(help="Prompts for each neighbour.")] = 150,
    unrelated: Annotated[int, Parameter(help="Prompts for each unrelated concept.")] = 80,
    strength: Annotated[float, Parameter(help="Of the erasure.")] = 1.0,
    split: Annotated[Literal["test", "validation"], Parameter(help="Whose prompts.")] = "test",
    frechet: Annotated[
        bool, Parameter(help="Fréchet distance, from 1,000 benign pictures.")
    ] = True,
    store: Annotated[Path | None, Parameter(help="Share pictures between audits here.")] = None,
    as_json: Json = False,
) -> None:
    """Ask an erased model for what was erased, and for what should have stayed.

    A stopped audit goes on where it was when the same command is given again.

    Example: `expunge audit runs/cat --prompts 100 --json`
    """
    from expunge.auditing import audit as run_audit
    from expunge.auditing.cases import Sizes
    from expunge.erasure import Erasure

    sizes = Sizes(prompts, neighbours, unrelated)
    erasure = Erasure.load(run)
    log = run_audit(
        backbone_of(model or erasure.record["model"]),
        erasure,
        sizes=sizes,
        strength=strength,
        split=split,
        frechet=frechet,
        folder=run / "log",
        store=store,
        command=command_line(),
    )
    if as_json:
        print_json(log.summary())
    else:
        _show_log(log)
        say(f"next: expunge report {shlex.quote(str(run))}")


@app.command
def report(
    run: Annotated[Path, Parameter(help="Folder of an audited erasure or a watermark bench.")],
    *,
    out: Annotated[Path | None, Parameter(help="HTML to write; report.html in the folder.")] = None,
) -> None:
    """Write an audit or a watermark bench as one HTML file that needs no network.

    Example: `expunge report runs/cat`
    """
    from expunge.auditing import Log
    from expunge.watermark.log import LOG, WatermarkLog

    watermark = (run / LOG).is_file()
    log = WatermarkLog.load(run) if watermark else Log.load(run / "log")
    say(str(log.report(out or run / "report.html")))


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Where to.")] = Path("runs/demo"),
    prompts: Annotated[int, Parameter(help="Prompts for each way of asking for a cat.")] = 40,
    steps: Annotated[int | None, Parameter(help="Training steps; the preset's by default.")] = None,
    open_report: Annotated[bool, Parameter(name="--open", help="Open the report.")] = False,
) -> None:
    """Erase the cat from the bundled model, audit the result, and write the report.

    Example: `expunge demo --out runs/demo`
    """
    erase("cat", neighbour=("dog", "bird", "horse", "fish", "car"), out=out, steps=steps)
    audit(out, prompts=prompts, neighbours=max(1, prompts // 2), unrelated=max(1, prompts // 3))
    report(out)
    if open_report:
        import webbrowser

        webbrowser.open((out / "report.html").resolve().as_uri())
