"""The papers' tables, on any model."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from expunge import names
from expunge.auditing.protocols.log import check_folder_is
from expunge.cli.app import (
    PATH,
    WHOLE,
    Json,
    Names,
    app,
    check_folder,
    check_number,
    command_line,
    print_json,
    resumable,
    say,
)
from expunge.cli.estimate import estimate
from expunge.cli.source import USUAL_SOURCE, Source
from expunge.concept_checks import MOST_PROMPTS

if TYPE_CHECKING:
    from expunge.auditing.protocols.log import BenchLog

_METHODS = ["uce", "esd", "trace"]


@app.command
def bench(
    protocol: Annotated[str, Parameter(help=f"{', '.join(names.PROTOCOLS)}.")],
    *,
    methods: Annotated[
        Names, Parameter(help="Erasers, with settings as in `esd:steps=200`.")
    ] = _METHODS,
    concepts: Annotated[
        Names,
        Parameter(help="What is erased, one after the other; by default all that is known."),
    ] = [],  # noqa: B006  never written to
    prompts: Annotated[
        int,
        WHOLE,
        Parameter(help="Distinct prompts for each concept and way of asking."),
    ] = 200,
    judge: Annotated[
        str | None, Parameter(help="Who looks; by default the model's own. As in `audit`.")
    ] = None,
    clip: Annotated[
        str | None,
        Parameter(help="Hub id or folder of the CLIP that scores; by default the model's own."),
    ] = None,
    steps: Annotated[
        int | None, WHOLE, Parameter(help="Denoising steps; the model's usual.")
    ] = None,
    preset: Annotated[
        bool, Parameter(help="Start from values tuned for the model, not from the methods' own.")
    ] = True,
    out: Annotated[
        Path | None, PATH, Parameter(help="Folder to write; runs/bench-PROTOCOL by default.")
    ] = None,
    store: Annotated[
        Path | None, PATH, Parameter(help="Folder for pictures that benches and audits share.")
    ] = None,
    source: Source = USUAL_SOURCE,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Say how many pictures and minutes it takes, and end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Erase concepts by several methods, and measure what the papers of the domain do.

    Every concept is erased alone; then it is asked for, and everything else of its domain. The
    same command goes on where a stopped one was, and with a method more does only that one.

    Example: `expunge bench objects --methods uce trace --concepts cat car --prompts 100`

    Example: `expunge bench people --methods uce --concepts "Ada Lindqvist" --dry-run`
    """
    names.check("protocol", protocol)
    protocol, asked = names.bare(protocol), names.listed(methods)
    folder = out or Path("runs") / f"bench-{protocol}"
    check_number("prompts", prompts, 1, MOST_PROMPTS)
    check_number("steps", steps, 1, 1000)
    if judge is not None:
        names.check("judge", judge)
    _check_early(protocol, asked, names.listed(concepts), folder, source)
    check_folder("store", folder if store is None else store)
    from expunge.auditing.protocols.run import lay_out, run_plan
    from expunge.judge.choose import judge as judge_of
    from expunge.run.store import Store

    backbone = source.load()
    sampling = backbone.profile.sampling
    laid = lay_out(
        backbone,
        protocol,
        asked,
        names.listed(concepts),
        prompts=prompts,
        judge=None if judge is None else judge_of(judge),
        clip=clip,
        sampling=sampling if steps is None else replace(sampling, num_inference_steps=steps),
        preset=preset,
        folder=folder,
    )
    costs = estimate(laid, backbone, Store(store or folder))
    waiting = sum(not erase.done for erase in laid.erasing)
    if dry_run and as_json:
        told = costs.to_dict()
        del told["attacks"]
        return print_json({**told, "erasures": len(laid.erasing), "erasures_left": waiting})
    more = f", and {waiting} erasures beforehand" if waiting else ""
    say(f"{costs}{more}")
    if dry_run:
        return None
    with resumable(folder, *([] if store is None else [store])):
        log = run_plan(laid, protocol, prompts, folder, store, command_line())
    _tell(log, folder, as_json)
    return None


def _check_early(
    protocol: str, methods: list[str], concepts: list[str], folder: Path, source: Source
) -> None:
    """Refuse what can be refused without torch.

    Raises:
        ValueError: a method, a concept, the model or the folder does not fit.
    """
    if not methods:
        raise ValueError("methods must name at least one; see expunge list erasers")
    for text in methods:
        found, given = names.parsed("eraser", text)
        found(**given)
        if methods.count(text) > 1:
            raise ValueError(f"the method {text} is named twice; name it once")
    profile = source.profile()
    domain = names.make("protocol", protocol)
    if concepts or profile.vocabulary.concepts:
        erased = domain.concepts(profile.vocabulary, concepts)
        for concept in erased:
            domain.others(profile.vocabulary, concept, erased)
    check_folder("out", folder)
    model = Path(source.named()[0])
    check_folder_is(folder, protocol, model.name if model.exists() else str(model))


def _tell(log: BenchLog, folder: Path, as_json: bool) -> None:
    """Write the tables, and show the means over concepts."""
    from expunge.report.bench import markdown
    from expunge.run.files import write_text

    write_text(folder / "bench.md", markdown(log.data))
    log.report(folder / "report.html")
    if as_json:
        return print_json(log.summary())
    Console().print(_table(log))
    for flag in log.data["flags"]:
        say(f"{'not measured' if flag['kind'] == 'unmeasured' else 'note'}: {flag['text']}")
    say(f"the tables are in {shlex.quote(str(folder))}: bench.md, report.html, bench.json")
    return None


def _table(log: BenchLog) -> Table:
    """Means over concepts, one row a measure and method; 80 columns hold it."""
    from expunge.report.bench import figure, place, told

    table = Table(title=f"{log.data['protocol']}, means over concepts", box=SIMPLE_HEAD)
    for column in ("measure", "method"):
        table.add_column(column, overflow="fold")
    for column in ("n", "measured [95 %]", "reported"):
        table.add_column(column, justify="right", overflow="fold")
    means: list[dict[str, Any]] = [row for row in log.data["rows"] if row["concept"] is None]
    for row in sorted(means, key=place):
        of = f", {row['scenario']}" if row["scenario"] else ""
        table.add_row(row["measure"] + of, row["method"], f"{row['n']:,}", figure(row), told(row))
    return table
