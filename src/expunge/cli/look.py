"""Draw pictures, and list what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from expunge.cli.app import (
    METHODS,
    Json,
    Model,
    app,
    backbone_of,
    print_json,
    say,
)


@app.command
def draw(
    *prompts: Annotated[str, Parameter(help="What to draw, one row a prompt.")],
    model: Annotated[str | None, Parameter(help="The model; the erasure's own by default.")] = None,
    erasure: Annotated[Path | None, Parameter(help="Folder of an erasure to draw with.")] = None,
    strength: Annotated[float, Parameter(help="Of the erasure; 0 is off.")] = 1.0,
    seeds: Annotated[int, Parameter(help="Pictures a prompt.")] = 6,
    scale: Annotated[int, Parameter(help="Enlarge every picture so many times.")] = 2,
    out: Annotated[Path, Parameter(help="PNG to write.")] = Path("grid.png"),
) -> None:
    """Draw a grid of pictures: the original above, the erased model below, same seeds.

    Example: `expunge draw "a photo of a cat" --erasure runs/cat --out cat.png`
    """
    from expunge.concept import Prompt
    from expunge.erasure import Erasure
    from expunge.grid import grid

    if not prompts:
        raise ValueError('say what to draw, such as: expunge draw "a photo of a cat"')
    loaded = Erasure.load(erasure) if erasure else None
    named = model or (loaded.record["model"] if loaded else "miniature-sd")
    backbone = backbone_of(named)
    for text, (count, limit) in backbone.cut_short(prompts).items():
        say(f"the text encoder reads {limit} of the {count} tokens of {text!r}; the rest is lost")
    rows = []
    for text in prompts:
        numbers = [Prompt(text, "").seed(index) for index in range(seeds)]
        rows.append((text, backbone.draw([text] * seeds, numbers)))
        if loaded:
            with loaded.applied(backbone, strength):
                rows.append((f"{text} (erased)", backbone.draw([text] * seeds, numbers)))
    grid(rows, scale).save(out)
    say(f"{len(rows)} rows of {seeds}: {out}")


@app.command(name="list")
def list_(
    *,
    model: Model = "miniature-sd",
    as_json: Json = False,
) -> None:
    """List the methods, the bundled models, and the concepts a model is known to draw.

    Example: `expunge list --json`
    """
    from expunge.backbone.profile import BUNDLED, Profile

    profile = Profile.read(BUNDLED.get(model, Path(model))) or Profile()
    vocabulary = profile.vocabulary
    concepts = {name: concept.kind for name, concept in vocabulary.concepts.items()}
    found = {"methods": list(METHODS), "models": list(BUNDLED), "concepts": concepts}
    if as_json:
        return print_json(found)
    table = Table("kind", "concepts of " + model)
    for kind in dict.fromkeys(concepts.values()):
        table.add_row(kind, ", ".join(name for name, other in concepts.items() if other == kind))
    Console().print(f"methods: {', '.join(METHODS)}\nmodels: {', '.join(BUNDLED)}", table)
    return None
