"""Audit, report, and the demonstration that does everything."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
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
    """The verdict, one row a concept and way of asking, and the notes."""
    from expunge.report.verdict import verdict

    say(f"{verdict(log)}\n")
    Console().print(_table(log))
    for flag in log.flags:
        say(f"{'not measured' if flag.kind == 'unmeasured' else 'note'}: {flag.text}")


def _table(log: Log) -> Table:
    """Counts before and after, and paired differences in points; 80 columns hold it."""
    others = [each.name for each in log.conditions if each.role in ("erased", "guarded")]
    columns = ("asked for", "how", *(("model",) if len(others) > 1 else ()), "n", "before", "after")
    table = Table(title="pictures that show what was asked for", box=SIMPLE_HEAD, pad_edge=False)
    for column in (*columns, "difference, points"):
        left = column in ("asked for", "how", "model")
        table.add_column(column, justify="left" if left else "right", no_wrap=not left)
    for row in log.differences:
        if row.first == "original" and row.second in others and row.judge == log.judge.name:
            table.add_row(
                row.concept,
                row.probe if row.attack == "plain" else row.attack,
                *((row.second,) if len(others) > 1 else ()),
                *(str(n) for n in (row.n, round(row.first_rate * row.n))),
                str(round(row.second_rate * row.n)),
                percent(row.difference, row.ci),
            )
    return table


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
