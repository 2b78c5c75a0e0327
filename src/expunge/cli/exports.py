"""Write for other tools, and check what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from expunge.cli.app import PATH, WHOLE, Json, Run, app, check_folder, check_number, print_json, say
from expunge.cli.source import USUAL_SOURCE, Source
from expunge.record import read_record
from expunge.run.files import check_file
from expunge.settings import Format


@app.command
def export(
    run: Run,
    *,
    format: Annotated[
        Format,
        Parameter(
            help="Changes only: a LoRA as `erase` writes it (`lora`), with the names of one reader "
            "(`diffusers`, `kohya`), or whole differences (`full`). With the changes built in: a "
            "whole model (`merged`), its changed networks (`components`), one checkpoint file "
            "(`single`)."
        ),
    ] = "lora",
    rank: Annotated[
        int | None, WHOLE, Parameter(help="Columns of a layer that a LoRA keeps; all by default.")
    ] = None,
    out: Annotated[Path | None, PATH, Parameter(help="Folder; the run's own by default.")] = None,
    source: Source = USUAL_SOURCE,
) -> None:
    """Write an erasure for other tools.

    Example: `expunge export runs/cat --format kohya --rank 8`
    """
    check_number("rank", rank, 1)
    record = read_record(run)
    source.profile(record)
    check_folder("out", run if out is None else out)
    from expunge.erasure import Erasure
    from expunge.formats import WITHOUT_BASE, lost_at
    from expunge.formats import export as write

    erasure = Erasure.load(run)
    alone = format in WITHOUT_BASE
    pipe = None if alone else source.load(record).pipe
    folder = out or (run if alone else run / format)
    path = write(erasure, folder, format, pipe, rank)
    if rank is not None:
        say(f"lost at rank {rank}: {lost_at(erasure, rank)} (relative Frobenius norm)")
    say(str(path))


@app.command
def verify(
    path: Annotated[Path, PATH, Parameter(help="What `expunge export` or `expunge erase` wrote.")],
    *,
    source: Source = USUAL_SOURCE,
    as_json: Json = False,
) -> None:
    """Load an export through plain diffusers: does it change the model as recorded?

    Exit code 1 if it does not.

    Example: `expunge verify runs/cat`
    """
    if not path.is_dir():
        check_file(path)
    source.check()
    from expunge.verification import NotReadError, recorded
    from expunge.verification import verify as check

    try:
        result = check(path, source.load(recorded(path)))
    except NotReadError as error:
        say(str(error))
        raise SystemExit(1) from None
    if as_json:
        print_json(result)
    else:
        for part in ("weights", "others", "predictions"):
            if result[part] is not None:
                word = "as recorded" if result[part]["agree"] else "NOT as recorded"
                say(f"{_PARTS[part]}: {word} (largest difference {result[part]['worst']:.1e})")
        say(f"read by {result['reader']}")
    if not result["agree"]:
        raise SystemExit(1)


_PARTS = {"weights": "weights", "others": "all other weights", "predictions": "predictions"}
