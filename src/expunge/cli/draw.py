"""Draw pictures: the original above, erased and guarded below, with the same seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from expunge import names
from expunge.cli.app import PATH, WHOLE, Names, app, check_new_file, check_number, say
from expunge.cli.source import USUAL_SOURCE, Source
from expunge.record import read_record
from expunge.run.files import check_writable
from expunge.settings import MOST_STRENGTH, shown

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.backbone.profile import Sampling
    from expunge.condition import Condition

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of files that a grid can be written to."""


@app.command
def draw(
    *prompts: Annotated[str, Parameter(help="What to draw, one row a prompt.")],
    erasure: Annotated[
        Path | None, PATH, Parameter(help="Folder of an erasure to draw with.")
    ] = None,
    strength: Annotated[float, Parameter(help="Of the erasure; 0 is off.")] = 1.0,
    guard: Annotated[Names, Parameter(help="Guards, a row each; see `expunge list guards`.")] = [],  # noqa: B006  never written to
    seeds: Annotated[int, WHOLE, Parameter(help="Pictures a prompt.")] = 6,
    steps: Annotated[
        int | None, WHOLE, Parameter(help="Denoising steps; the model's usual.")
    ] = None,
    guidance: Annotated[float | None, Parameter(help="Guidance scale; the model's usual.")] = None,
    scale: Annotated[int, WHOLE, Parameter(help="Enlarge every picture so many times.")] = 2,
    out: Annotated[Path, PATH, Parameter(help="PNG, JPEG or WebP to write.")] = Path("grid.png"),
    source: Source = USUAL_SOURCE,
) -> None:
    """Draw a grid of pictures: the original above, the erased model below, same seeds.

    Example: `expunge draw "a photo of a cat" --erasure runs/cat --out cat.png`
    """
    if not prompts or not all(text.strip() for text in prompts):
        raise ValueError('say what to draw, such as: expunge draw "a photo of a cat"')
    check_number("strength", strength, -MOST_STRENGTH, MOST_STRENGTH)
    check_number("seeds", seeds, 1, 1000)
    check_number("steps", steps, 1, 1000)
    check_number("guidance", guidance, 0, 1000)
    check_number("scale", scale, 1, 16)
    check_new_file("out", out, PICTURES)
    guards = [names.make("guard", text) for text in names.listed(guard)]
    record = read_record(erasure) if erasure else None
    source.profile(record)
    check_writable(out.parent)
    backbone = source.load(record)
    _say_cut_short(backbone, prompts)
    given: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
    changes = {name: value for name, value in given.items() if value is not None}
    sampling = replace(backbone.profile.sampling, **changes)
    backbone.check_guidance(sampling.guidance_scale)
    _draw(backbone, _conditions(erasure, strength, guards), prompts, seeds, sampling, scale, out)


def _say_cut_short(backbone: Backbone, prompts: tuple[str, ...]) -> None:
    for text, (count, limit) in backbone.cut_short(prompts).items():
        say(
            f"note: {shown(text)} has {count} tokens and the text encoder reads the first {limit}; "
            "what follows them is not drawn"
        )


def _conditions(erasure: Path | None, strength: float, guards: list[Any]) -> list[Condition]:
    from expunge.condition import erased, guarded, original
    from expunge.erasure import Erasure

    found = [original()]
    if erasure is not None:
        found.append(erased(Erasure.load(erasure), strength))
    return found + [guarded(found[-1], guard) for guard in guards]


def _draw(
    backbone: Backbone,
    conditions: list[Condition],
    prompts: tuple[str, ...],
    seeds: int,
    sampling: Sampling,
    scale: int,
    out: Path,
) -> None:
    from expunge.concept import Prompt
    from expunge.grid import grid

    for condition in conditions:
        condition.check(backbone)
    rows = []
    for text in prompts:
        numbers = [Prompt(text, "").seed(index) for index in range(seeds)]
        for condition in conditions:
            title = text if condition.role == "original" else f"{text} ({condition.name})"
            with condition.on(backbone) as model:
                rows.append((title, model.draw([text] * seeds, numbers, sampling)))
    grid(rows, scale).save(out)
    say(f"{len(rows)} rows of {seeds}: {out}")
