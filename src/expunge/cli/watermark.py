"""What is left of a watermark: bench, the erased model's pictures, training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from rich.box import SIMPLE
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
    check_number,
    command_line,
    percent,
    print_json,
    resumable,
    say,
)
from expunge.cli.source import USUAL_SOURCE, Source
from expunge.record import read_record
from expunge.settings import MOST_STRENGTH

if TYPE_CHECKING:
    from expunge.watermark.edit.base import Edit
    from expunge.watermark.log import WatermarkLog
    from expunge.watermark.scheme.base import Scheme

watermark = App(name="watermark", help="What is left of a watermark after pictures are edited.")
app.command(watermark)

_SCHEMES = ["learned", "learned-vae"]
_EDITS = ["none", "jpeg", "crop", "noise", "vae", "regeneration:0.1", "regeneration"]
_EDITS_OF_ERASED = ["none", "jpeg", "vae", "regeneration", "img2img", "img2img:0.8"]
UNMARKED_FROM = 1_000_000
"""Number of the first render that is read unmarked, far from those that are marked."""


def show_log(log: WatermarkLog) -> None:
    """Print the figures, a table a scheme; each fits into 80 columns."""
    for scheme in dict.fromkeys(cell["scheme"] for cell in log.data["cells"]):
        cells = [cell for cell in log.data["cells"] if cell["scheme"] == scheme]
        table = Table(
            title=f"{scheme}: bits in % (chance is 50), the rest in % of {cells[0]['n']} pictures",
            box=SIMPLE,
            padding=(0, 1, 0, 0),
        )
        table.add_column("edit", overflow="fold")
        for column in ("bits", "payload", "detected", "dB"):
            table.add_column(column, justify="right", no_wrap=True)
        for cell in cells:
            level = "" if cell["level"] is None else f" {cell['level']:.3g}"
            box = " (white box)" if cell["white_box"] else ""
            table.add_row(
                f"{cell['edit']}{level}{box}",
                percent(cell["bit_accuracy"], cell["ci"]) if cell["ci"] else "",
                percent(cell["payload_rate"], cell["payload_ci"], 0) if cell["payload_ci"] else "",
                percent(cell["detection_rate"], cell["detection_ci"], 0),
                f"{cell['psnr']:.1f}",
            )
        Console().print(table)
    for row in log.data["unmarked"]:
        say(
            f"{row['scheme']}: {row['n']} unmarked pictures, {row['keys']} fixed keys: taken for "
            f"marked in {row['mean']:.4%} (fair coins: {row['law']:.4%}), worst key "
            f"{row['worst']:.2%} (fair coins: {row['law_worst']:.2%})"
        )
    for flag in log.data["flags"]:
        say(f"note: {flag['text']}")


@watermark.command
def bench(
    *,
    schemes: Annotated[
        Names, Parameter(help="Names, with settings as in `learned:psnr=38`.")
    ] = _SCHEMES,
    edits: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="Names, with levels as in `jpeg:20`; `jpeg+crop` chains two. By default a few of "
            "each sort, guided removal where every scheme has a decoder to follow.",
        ),
    ] = None,
    images: Annotated[
        Path | None, PATH, Parameter(help="Folder of pictures; the miniature world by default.")
    ] = None,
    source: Source = USUAL_SOURCE,
    count: Annotated[
        int | None, WHOLE, Parameter(help="Pictures marked; by default 60, or all of a folder.")
    ] = None,
    size: Annotated[
        int, WHOLE, Parameter(help="Pixels along a side of the world's pictures.")
    ] = 64,
    unmarked: Annotated[
        int,
        WHOLE,
        Parameter(help="Unmarked pictures that check detection's threshold; 0 for none."),
    ] = 3000,
    false_positive_rate: Annotated[float, Parameter(help="Of detection.")] = 1e-3,
    psnr: Annotated[
        float | None, Parameter(help="Scale every scheme's change to lie at so many dB.")
    ] = None,
    examples: Annotated[
        int, WHOLE, Parameter(help="Pictures shown in the report, at most 12.")
    ] = 6,
    out: Annotated[
        Path, PATH, Parameter(help="Where to; a stopped run goes on from there.")
    ] = Path("runs/watermark"),
    as_json: Json = False,
) -> None:
    """Mark pictures with random payloads, edit them, and read what is left.

    Example: `expunge watermark bench --schemes learned --edits none jpeg:20 regeneration:0.3`
    """
    asked = _checked(schemes, _EDITS if edits is None else edits, out)
    for name, value, least in (("count", count, 1), ("unmarked", unmarked, 0), ("size", size, 16)):
        check_number(name, value, least, 1_000_000)
    check_number("psnr", psnr, 10, 60)
    check_number("examples", examples, 0, 12)
    if images is not None and not images.is_dir():
        raise ValueError(f"no folder {images}")
    source.profile()
    from expunge.watermark import pictures
    from expunge.watermark.benchmark import bench as run_bench
    from expunge.watermark.scheme.base import DifferentiableScheme

    chosen, done = _made(*asked)
    if edits is None and all(isinstance(scheme, DifferentiableScheme) for scheme in chosen):
        done += _made([], ["guided"])[1]
    if images is None:
        hosts = pictures.world(count or 60, size)
        plain = pictures.world(unmarked, size, UNMARKED_FROM)
    else:
        hosts = pictures.folder(images)
        plain = hosts[:unmarked]
        hosts = hosts[:count]
    with resumable(out):
        log = run_bench(
            chosen,
            done,
            hosts,
            pipe=source.load(),
            unmarked=plain,
            false_positive_rate=false_positive_rate,
            psnr=psnr,
            examples=examples,
            folder=out,
            command=command_line(),
        )
    _tell(log, out, as_json)


def _checked(
    schemes: Sequence[str], edits: Sequence[str], out: Path
) -> tuple[list[str], list[str]]:
    """Names of schemes and edits.

    Raises:
        ValueError: there is none of them, or something has no such name; found out without torch.
    """
    check_folder("out", out)
    asked = {"scheme": names.listed(schemes), "edit": names.listed(edits)}
    for kind, texts in asked.items():
        if not texts:
            raise ValueError(f"{kind}s must name at least one; see expunge list {kind}s")
        for text in texts:
            for part in text.split("+") if kind == "edit" else [text]:
                names.check(kind, part)
    return asked["scheme"], asked["edit"]


def _made(schemes: Sequence[str], edits: Sequence[str]) -> tuple[list[Scheme], list[Edit]]:
    from expunge.watermark import names as made

    return [made.scheme(text) for text in schemes], [made.edit(text) for text in edits]


def _tell(log: WatermarkLog, out: Path, as_json: bool) -> None:
    if as_json:
        print_json(log.summary())
    else:
        show_log(log)
        say(f"next: expunge report {out}")


@watermark.command
def erased(
    run: Run,
    *,
    schemes: Annotated[
        Names, Parameter(help="Names, with settings as in `learned:psnr=38`.")
    ] = _SCHEMES,
    edits: Annotated[
        Names, Parameter(help="Names, with levels as in `img2img:0.8`.")
    ] = _EDITS_OF_ERASED,
    source: Source = USUAL_SOURCE,
    count: Annotated[int, WHOLE, Parameter(help="Pictures of each erased concept.")] = 60,
    strength: Annotated[float, Parameter(help="Of the erasure.")] = 1.0,
    out: Annotated[
        Path | None, PATH, Parameter(help="Where to; `watermark` in the run's folder by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Both layers at once: pictures an erased model draws are marked, then edited.

    Does the mark survive, and does the edit bring the concept back? Every edit is done twice, by
    the original model and by the erased one.

    Example: `expunge watermark erased runs/cat --count 40`
    """
    folder = run / "watermark" if out is None else out
    asked = _checked(schemes, edits, folder)
    check_number("count", count, 1, 1_000_000)
    check_number("strength", strength, -MOST_STRENGTH, MOST_STRENGTH)
    record = read_record(run)
    source.profile(record)
    from expunge.erasure import Erasure
    from expunge.watermark.both_layers import layers

    chosen, done = _made(*asked)
    with resumable(folder):
        log = layers(
            source.load(record),
            Erasure.load(run),
            chosen,
            done,
            count=count,
            strength=strength,
            folder=folder,
            command=command_line(),
        )
    _tell(log, folder, as_json)


@watermark.command
def train(
    *,
    out: Annotated[Path, PATH, Parameter(help="Where to; a stopped run goes on from there.")],
    variant: Annotated[
        Literal["learned", "learned-vae"],
        Parameter(help="`learned-vae` has a model's autoencoder in the loop."),
    ] = "learned",
    bits: Annotated[int, WHOLE, Parameter(help="Of a payload.")] = 32,
    model: Annotated[str, Parameter(help="Whose autoencoder `learned-vae` meets.")] = (
        "miniature-sd"
    ),
    share: Annotated[float, Parameter(help="Share of the full steps, to try it out.")] = 1.0,
) -> None:
    """Make the learned scheme from nothing; the distortions are part of every step.

    Half an hour on two CPU cores for each variant. Use it as `learned:weights=FILE`.

    Example: `expunge watermark train --out runs/mark --variant learned`
    """
    check_folder("out", out)
    check_number("bits", bits, 1, 1024)
    check_number("share", share, 1e-6, 1)
    import torch

    from expunge.backbone.load import load
    from expunge.watermark.learned.training import make

    vae = None
    if variant == "learned-vae":
        vae = load(model, device="cpu", dtype=torch.float32).vae  # pictures are there as well
    say(str(make(out, variant, bits=bits, vae=vae, share=share)))
