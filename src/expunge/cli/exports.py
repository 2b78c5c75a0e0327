"""Write for other tools, and check what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from expunge.cli.app import (
    Json,
    Run,
    app,
    backbone_of,
    print_json,
    say,
)


@app.command
def export(
    run: Run,
    *,
    format: Annotated[
        Literal["diffusers", "kohya", "merged", "denoiser", "single"],
        Parameter(
            help="A LoRA file (`diffusers`, `kohya`), or with the changes built in: a whole model "
            "(`merged`), its UNet or transformer (`denoiser`), one checkpoint file (`single`)."
        ),
    ] = "diffusers",
    out: Annotated[Path | None, Parameter(help="Folder; the run's own by default.")] = None,
    model: Annotated[str | None, Parameter(help="The original; the record's by default.")] = None,
) -> None:
    """Write an erasure for other tools.

    Example: `expunge export runs/cat --format kohya`
    """
    from expunge.erasure import Erasure
    from expunge.exports import WITHOUT_BASE
    from expunge.exports import export as write

    erasure = Erasure.load(run)
    alone = format in WITHOUT_BASE
    pipe = None if alone else backbone_of(model or erasure.record["model"]).pipe
    folder = out or (run / format if format in ("merged", "denoiser") else run)
    say(str(write(erasure, folder, format, pipe)))


@app.command
def verify(
    path: Annotated[Path, Parameter(help="File or folder that `expunge export` wrote.")],
    *,
    model: Annotated[str | None, Parameter(help="The original; the record's by default.")] = None,
    as_json: Json = False,
) -> None:
    """Load an export through plain diffusers: does it change the model as recorded?

    Exit code 1 if it does not.

    Example: `expunge verify runs/cat/pytorch_lora_weights.safetensors`
    """
    from expunge.verification import recorded
    from expunge.verification import verify as check

    result = check(path, backbone_of(model or recorded(path)["model"]))
    if as_json:
        print_json(result)
    else:
        for part in ("weights", "predictions"):
            word = "as recorded" if result[part]["agree"] else "NOT as recorded"
            say(f"{part}: {word} (largest relative difference {result[part]['worst']:.1e})")
    if not result["agree"]:
        raise SystemExit(1)
