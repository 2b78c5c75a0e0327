"""Audit, report, and the demonstration that does everything."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from expunge import names
from expunge.cli.app import (
    PATH,
    WHOLE,
    Json,
    Names,
    Run,
    app,
    check_folder,
    check_new_file,
    check_number,
    command_line,
    percent,
    print_json,
    resumable,
    say,
)
from expunge.cli.erase import erase
from expunge.cli.estimate import estimate
from expunge.cli.source import USUAL_SOURCE, Source
from expunge.concept_checks import MOST_PROMPTS
from expunge.record import read_record
from expunge.settings import MOST_STRENGTH

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
        justify: Literal["left", "right"] = "left" if left else "right"
        table.add_column(column, justify=justify, no_wrap=not left, overflow="fold")
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
    prompts: Annotated[
        int, WHOLE, Parameter(help="Distinct prompts for each way of asking.")
    ] = 400,
    neighbours: Annotated[int, WHOLE, Parameter(help="Prompts for each neighbour.")] = 150,
    unrelated: Annotated[int, WHOLE, Parameter(help="Prompts for each unrelated concept.")] = 80,
    strength: Annotated[float, Parameter(help="Of the erasure.")] = 1.0,
    judge: Annotated[
        Names,
        Parameter(
            help="Who looks, the first gives the headline; by default those made for the model. "
            "Such as `clip:labels=Van Gogh|Claude Monet,template=a painting by {}`."
        ),
    ] = [],  # noqa: B006  never written to
    attacks: Annotated[
        Names,
        Parameter(help="What tries to bring concepts back; see `expunge list attacks`."),
    ] = [],  # noqa: B006  never written to
    attacked: Annotated[
        int, WHOLE, Parameter(help="Prompts for each concept under an attack.")
    ] = 48,
    guard: Annotated[
        Names, Parameter(help="Guards, a condition each; see `expunge list guards`.")
    ] = [],  # noqa: B006  never written to
    control: Annotated[
        bool, Parameter(help="Attack random weights too: what does an attack bring along?")
    ] = True,
    split: Annotated[Literal["test", "validation"], Parameter(help="Whose prompts.")] = "test",
    frechet: Annotated[
        bool, Parameter(help="Fréchet distance, from 1,000 benign pictures.")
    ] = True,
    store: Annotated[
        Path | None, PATH, Parameter(help="Folder for pictures that several audits share.")
    ] = None,
    source: Source = USUAL_SOURCE,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Say how many pictures and minutes it takes, and end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask an erased model for what was erased, and for what should have stayed.

    A stopped audit goes on where it was when the same command is given again.

    Example: `expunge audit runs/cat --prompts 100 --json`

    Example: `expunge audit runs/cat --dry-run`
    """
    counts = {"prompts": prompts, "neighbours": neighbours, "unrelated": unrelated}
    for name, value in (counts | {"attacked": attacked}).items():
        check_number(name, value, 1, MOST_PROMPTS)
    check_number("strength", strength, -MOST_STRENGTH, MOST_STRENGTH)
    record = read_record(run)
    source.profile(record)
    for text in judge:
        names.check("judge", text)
    trying, guards = _tried("attack", attacks), _tried("guard", guard)
    shelf = run / "log" if store is None else store
    check_folder("store", shelf)
    backbone = source.load(record)
    from expunge.auditing.cases import Sizes
    from expunge.auditing.plan import plan
    from expunge.auditing.run import audit as run_audit
    from expunge.auditing.run import usual_judges
    from expunge.erasure import Erasure
    from expunge.judge.choose import judge as judge_of
    from expunge.run.store import Store

    erasure = Erasure.load(run)
    asked: dict[str, Any] = {
        "sizes": Sizes(prompts, neighbours, unrelated, attacked),
        "strength": strength,
        "attacks": trying,
        "guards": guards,
        "control": control,
        "split": split,
        "frechet": frechet,
    }
    judges = [judge_of(text) for text in judge] or usual_judges(backbone)
    laid = plan(backbone, erasure, judges=judges, sampling=backbone.profile.sampling, **asked)
    costs = estimate(laid, backbone, Store(shelf))
    if dry_run:
        return print_json(costs.to_dict()) if as_json else say(str(costs))
    say(str(costs))
    with resumable(shelf):
        log = run_audit(
            backbone,
            erasure,
            judge=judges,
            folder=run / "log",
            store=store,
            command=command_line(),
            **asked,
        )
    if as_json:
        return print_json(log.summary())
    _show_log(log)
    say(f"next: expunge report {shlex.quote(str(run))}")
    return None


def _tried(kind: str, texts: list[str]) -> list[Any]:
    """Attacks or guards by name.

    Raises:
        ValueError: one is asked for twice, or is what is done anyway.
    """
    made = [names.make(kind, text) for text in names.listed(texts)]
    known = [each.label for each in made]
    for name in known:
        if name == "plain" or known.count(name) > 1:
            why = "is always done" if name == "plain" else "is asked for twice"
            raise ValueError(f"the {kind} {name} {why}; leave it out")
    return made


@app.command
def report(
    run: Annotated[
        Path, PATH, Parameter(help="Folder of an audited erasure, a bench or a watermark bench.")
    ],
    *,
    out: Annotated[
        Path | None, PATH, Parameter(help="HTML to write; report.html in the folder.")
    ] = None,
) -> None:
    """Write an audit, a bench or a watermark bench as one HTML file that needs no network.

    Example: `expunge report runs/cat`
    """
    from expunge.auditing.log import Log
    from expunge.auditing.protocols.log import LOG as BENCH
    from expunge.auditing.protocols.log import BenchLog
    from expunge.watermark.log import LOG, WatermarkLog

    page = run / "report.html" if out is None else out
    check_new_file("out", page, (".html", ".htm"))
    log: Log | BenchLog | WatermarkLog
    if (run / BENCH).is_file():
        log = BenchLog.load(run)
    elif (run / LOG).is_file():
        log = WatermarkLog.load(run)
    else:
        log = Log.load(run / "log")
    say(str(log.report(page)))


@app.command
def demo(
    *,
    out: Annotated[Path, PATH, Parameter(help="Where to.")] = Path("runs/demo"),
    prompts: Annotated[
        int, WHOLE, Parameter(help="Prompts for each way of asking for a cat.")
    ] = 40,
    steps: Annotated[
        int | None, WHOLE, Parameter(help="Training steps; the preset's by default.")
    ] = None,
    open_report: Annotated[bool, Parameter(name="--open", help="Open the report.")] = False,
) -> None:
    """Erase the cat from the bundled model, audit the result, and write the report.

    Example: `expunge demo --out runs/demo`
    """
    check_number("prompts", prompts, 1, MOST_PROMPTS)
    erase("cat", neighbour=("dog", "bird", "horse", "fish", "car"), out=out, steps=steps)
    audit(out, prompts=prompts, neighbours=max(1, prompts // 2), unrelated=max(1, prompts // 3))
    report(out)
    if open_report:
        import webbrowser

        webbrowser.open((out / "report.html").resolve().as_uri())
