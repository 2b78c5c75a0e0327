"""Write an erasure for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from expunge.erasure import Erasure
from expunge.formats import lora, weights
from expunge.formats.card import write_card
from expunge.record import RECORD
from expunge.settings import Format

FORMATS: tuple[str, ...] = get_args(Format)
LORAS = ("lora", "diffusers", "kohya")
WITHOUT_BASE = (*LORAS, "full")
"""Formats that hold changes only."""


def export(
    erasure: Erasure,
    folder: str | Path,
    format: Format = "lora",
    pipe: Any = None,
    rank: int | None = None,
) -> Path:
    """Write an erasure in another tool's format.

    Args:
        erasure: what to write.
        folder: where to.
        format: changes only: `lora` for the LoRA file that most programs read, `diffusers` and
            `kohya` for one with those names, `full` for whole differences. With the changes built
            in: `merged` for a whole model, `components` for its changed networks, `single` for one
            checkpoint file (Stable Diffusion 1.x, 2.x and XL).
        pipe: the base model, needed where changes are built in.
        rank: of a LoRA, most columns of a layer; what is lost is stated in the file. None for all.

    Returns:
        The file, or for `merged` and `components` the folder.

    Raises:
        ValueError: there is no such format, it needs the base model or takes no rank, or it cannot
            say what the erasure does.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if rank is not None and format not in LORAS:
        raise ValueError(
            f"the format {format!r} takes no rank, got {rank}; it is for {', '.join(LORAS)}"
        )
    if format in WITHOUT_BASE:
        path = _write_changes(erasure, folder, format, rank)
        if not (folder / RECORD).is_file():  # the erasure's own folder has its card
            write_card(erasure, folder, format)
        return path
    if pipe is None:
        raise ValueError(f"the format {format!r} needs the base model, got no pipe")
    write = {
        "merged": weights.write_merged,
        "components": weights.write_components,
        "single": weights.write_single,
    }[format]
    return write(erasure, folder, pipe)


def _write_changes(erasure: Erasure, folder: Path, format: str, rank: int | None) -> Path:
    if format == "full":
        return lora.write_full(erasure, folder)
    write = {
        "lora": lora.write_lora,
        "diffusers": lora.write_diffusers,
        "kohya": lora.write_kohya,
    }[format]
    return write(erasure, folder, rank)
