"""What every command shares: the application, common options, ways of saying things."""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console

from expunge import HOMES

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone

METHODS = {
    name.lower(): f"{home}:{name}" for name, home in HOMES.items() if home == "expunge.eraser"
}
"""Every eraser by the name the command line knows it by."""

app = App(
    name="expunge",
    help="Erase concepts from text-to-image diffusion models, and prove how far they are gone.",
    version="0.1.0",
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)
miniature = App(name="miniature", help="The bundled world and its models: train, show, check.")
app.command(miniature)

Model = Annotated[str, Parameter(help="Bundled name, diffusers folder, hub id or .safetensors.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]
Run = Annotated[Path, Parameter(help="Folder that `expunge erase` wrote.")]


def say(text: str) -> None:
    """Tell a person, on standard error."""
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def print_json(data: object) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def backbone_of(model: str, config: str | None = None) -> Backbone:
    """The backbone of a model by name, loaded without progress bars."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    from expunge.backbone.load import as_backbone, load

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return as_backbone(load(model, config=config))


def command_line() -> str:
    """How this command was called."""
    return shlex.join(["expunge", *sys.argv[1:]])


def near(kind: str, name: str, known: Sequence[str]) -> ValueError:
    """What to raise where a name is unknown, with the nearest one."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"no {kind} {name!r}, expected one of {', '.join(known)}{hint}")


def percent(rate: float, interval: Sequence[float]) -> str:
    """A rate with its interval."""
    low, high = interval
    return f"{100 * rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
