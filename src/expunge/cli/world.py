"""The bundled world and its models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from expunge.cli.app import (
    PATH,
    WHOLE,
    Json,
    app,
    check_folder,
    check_number,
    percent,
    print_json,
    say,
)
from expunge.cli.source import USUAL_SOURCE, Source

miniature = App(name="miniature", help="The bundled world and its models: train, show, check.")
app.command(miniature)


@miniature.command(name="train")
def miniature_train(
    *,
    out: Annotated[Path, PATH, Parameter(help="Where to; a stopped run goes on from there.")],
    model: Annotated[
        Literal["miniature-sd", "miniature-flux"],
        Parameter(help="`miniature-flux` takes over CLIP and autoencoder of `miniature-sd`."),
    ] = "miniature-sd",
    device: Annotated[str | None, Parameter(help="cpu or cuda; a GPU if there is one.")] = None,
    share: Annotated[float, Parameter(help="Share of the full steps, to try it out.")] = 1.0,
) -> None:
    """Make a bundled model from nothing: `miniature-sd` with its judges, or `miniature-flux`.

    Hours on two CPU cores. Ctrl-C and the same command later is fine.

    Example: `expunge miniature train --out runs/miniature`
    """
    check_folder("out", out)
    check_number("share", share, 1e-6, 1)
    from expunge.miniature import flux
    from expunge.miniature.train import Plans, train

    if model == "miniature-sd":
        made = [train(out, Plans().shortened(share), device)]
    else:
        made = flux.train(out, flux.Plans().shortened(share), device)
    for folder in made:
        say(str(folder))


@miniature.command(name="show")
def miniature_show(
    *,
    out: Annotated[Path, PATH, Parameter(help="Folder for the sheets.")] = Path(
        "runs/miniature-show"
    ),
    source: Source = USUAL_SOURCE,
    count: Annotated[int, WHOLE, Parameter(help="Pictures a sheet.")] = 60,
) -> None:
    """Make contact sheets of the world, and of what a model draws for the same captions.

    Example: `expunge miniature show --out sheets`
    """
    check_folder("out", out)
    check_number("count", count, 1, 10_000)
    source.profile()
    from expunge.miniature.show import show

    for path in show(source.load(), out, count):
        say(str(path))


@miniature.command(name="check")
def miniature_check(
    *,
    source: Source = USUAL_SOURCE,
    prompts: Annotated[int, WHOLE, Parameter(help="Distinct held-out prompts a domain.")] = 1000,
    judges: Annotated[
        Path | None, PATH, Parameter(help="Folder of the judges; the bundled ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what the bundled model and judges can do, with intervals.

    Example: `expunge miniature check --prompts 200`
    """
    check_number("prompts", prompts, 1, 100_000)
    source.profile()
    from expunge.miniature.check import check

    figures = check(source.load(), prompts, judges)
    if as_json:
        return print_json(figures)
    table = Table("figure", "of", "n", "measured", "wanted", "met")
    for row in figures["figures"]:
        shown = percent(row["value"], row["ci"]) if row["unit"] == "rate" else f"{row['value']:.2f}"
        wanted = f"≥ {100 * row['wanted']:.0f}" if row["unit"] == "rate" else f"≥ {row['wanted']}"
        met = "yes" if row["met"] else "no"
        table.add_row(row["figure"], row["of"], str(row["n"]), shown, wanted, met)
    Console().print(table)
    return None
