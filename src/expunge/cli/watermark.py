"""What is left of a watermark: bench, the erased model's pictures, training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from expunge.cli.app import (
    Json,
    Model,
    Run,
    app,
    backbone_of,
    command_line,
    percent,
    print_json,
    say,
)

if TYPE_CHECKING:
    from expunge.watermark.log import WatermarkLog

watermark = App(name="watermark", help="What is left of a watermark after pictures are edited.")
app.command(watermark)

Names = Annotated[list[str], Parameter(consume_multiple=True, negative="")]
_SCHEMES = ["learned", "learned-vae"]
_EDITS = ["none", "jpeg", "crop", "noise", "vae", "regeneration:0.1", "regeneration"]
_EDITS_OF_ERASED = ["none", "jpeg", "vae", "regeneration", "img2img", "img2img:0.8"]
UNMARKED_FROM = 1_000_000
"""Number of the first render that is read unmarked, far from those that are marked."""


def show_log(log: WatermarkLog) -> None:
    """Print the figures as tables."""
    table = Table(title="bits in % (chance is 50), the rest in % of pictures")
    for column in ("scheme", "edit", "level", "n", "bits", "payload", "detected", "PSNR"):
        named = column in {"scheme", "edit"}
        table.add_column(
            column, justify="left" if named else "right", overflow="fold", no_wrap=not named
        )
    for cell in log.data["cells"]:
        table.add_row(
            cell["scheme"],
            cell["edit"] + (" (white box)" if cell["white_box"] else ""),
            "" if cell["level"] is None else f"{cell['level']:.3g}",
            str(cell["n"]),
            percent(cell["bit_accuracy"], cell["ci"]) if cell["ci"] else "",
            percent(cell["payload_rate"], cell["payload_ci"]) if cell["payload_ci"] else "",
            percent(cell["detection_rate"], cell["detection_ci"]),
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
        Path | None, Parameter(help="Folder of pictures; the miniature world by default.")
    ] = None,
    model: Model = "miniature-sd",
    config: Annotated[str | None, Parameter(help="Of a single-file model.")] = None,
    count: Annotated[
        int | None, Parameter(help="Pictures marked; by default 60, or all of a folder.")
    ] = None,
    size: Annotated[int, Parameter(help="Pixels along a side of the world's pictures.")] = 64,
    unmarked: Annotated[
        int, Parameter(help="Unmarked pictures that check detection's threshold; 0 for none.")
    ] = 3000,
    false_positive_rate: Annotated[float, Parameter(help="Of detection.")] = 1e-3,
    psnr: Annotated[
        float | None, Parameter(help="Scale every scheme's change to lie at so many dB.")
    ] = None,
    examples: Annotated[int, Parameter(help="Pictures shown in the report, at most 12.")] = 6,
    out: Annotated[Path, Parameter(help="Where to; a stopped run goes on from there.")] = Path(
        "runs/watermark"
    ),
    as_json: Json = False,
) -> None:
    """Mark pictures with random payloads, edit them, and read what is left.

    Example: `expunge watermark bench --schemes learned --edits none jpeg:20 regeneration:0.3`
    """
    from expunge.names import listed
    from expunge.watermark import names, pictures
    from expunge.watermark.benchmark import bench as run_bench
    from expunge.watermark.scheme.base import DifferentiableScheme

    chosen = [names.scheme(text) for text in listed(schemes)]
    done = [names.edit(text) for text in listed(_EDITS if edits is None else edits)]
    if edits is None and all(isinstance(scheme, DifferentiableScheme) for scheme in chosen):
        done.append(names.edit("guided"))
    for name, value, least in (("count", count, 1), ("unmarked", unmarked, 0), ("size", size, 16)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if images is None:
        hosts = pictures.world(count or 60, size)
        plain = pictures.world(unmarked, size, UNMARKED_FROM)
    else:
        hosts = pictures.folder(images)
        plain = hosts[:unmarked]
        hosts = hosts[:count]
    log = run_bench(
        chosen,
        done,
        hosts,
        pipe=backbone_of(model, config),
        unmarked=plain,
        false_positive_rate=false_positive_rate,
        psnr=psnr,
        examples=examples,
        folder=out,
        command=command_line(),
    )
    _tell(log, out, as_json)


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
    model: Annotated[str | None, Parameter(help="The original; the record's by default.")] = None,
    count: Annotated[int, Parameter(help="Pictures of each erased concept.")] = 60,
    strength: Annotated[float, Parameter(help="Of the erasure.")] = 1.0,
    out: Annotated[
        Path | None, Parameter(help="Where to; `watermark` in the run's folder by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Both layers at once: pictures an erased model draws are marked, then edited.

    Does the mark survive, and does the edit bring the concept back? Every edit is done twice, by
    the original model and by the erased one.

    Example: `expunge watermark erased runs/cat --count 40`
    """
    from expunge.erasure import Erasure
    from expunge.names import listed
    from expunge.watermark import names
    from expunge.watermark.both_layers import layers

    erasure = Erasure.load(run)
    log = layers(
        backbone_of(model or erasure.record["model"]),
        erasure,
        [names.scheme(text) for text in listed(schemes)],
        [names.edit(text) for text in listed(edits)],
        count=count,
        strength=strength,
        folder=out or run / "watermark",
        command=command_line(),
    )
    _tell(log, out or run / "watermark", as_json)


@watermark.command
def train(
    *,
    out: Annotated[Path, Parameter(help="Where to; a stopped run goes on from there.")],
    variant: Annotated[
        Literal["learned", "learned-vae"],
        Parameter(help="`learned-vae` has a model's autoencoder in the loop."),
    ] = "learned",
    bits: Annotated[int, Parameter(help="Of a payload.")] = 32,
    model: Annotated[str, Parameter(help="Whose autoencoder `learned-vae` meets.")] = (
        "miniature-sd"
    ),
    share: Annotated[float, Parameter(help="Share of the full steps, to try it out.")] = 1.0,
) -> None:
    """Make the learned scheme from nothing; the distortions are part of every step.

    Half an hour on two CPU cores for each variant. Use it as `learned:weights=FILE`.

    Example: `expunge watermark train --out runs/mark --variant learned`
    """
    import torch

    from expunge.backbone.load import load
    from expunge.watermark.learned.training import make

    vae = None
    if variant == "learned-vae":
        vae = load(model, device="cpu", dtype=torch.float32).vae  # pictures are there as well
    say(str(make(out, variant, bits=bits, vae=vae, share=share)))
