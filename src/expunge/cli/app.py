"""What every command shares: the application, ways of saying things, checks of what is given."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, Token
from rich.console import Console

from expunge import __version__
from expunge.settings import shown

GO_ON = "stopped; the same command goes on where it was"

app = App(
    name="expunge",
    help="Erase concepts from text-to-image diffusion models, and prove how far they are gone.",
    version=__version__,
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)


def _whole(_: object, tokens: Sequence[Token]) -> int:
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"a whole number was expected, got {shown(tokens[0].value)}") from None


def _path(_: object, tokens: Sequence[Token]) -> Path:
    text = tokens[0].value
    if not text.strip() or "\0" in text:
        raise ValueError(f"it must name a file or a folder, got {shown(text)}")
    return Path(text)


WHOLE = Parameter(converter=_whole)
"""For every count: 1.5 is no number of pictures."""
PATH = Parameter(converter=_path)
"""For every path: an empty one would be the folder one stands in."""
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]
Run = Annotated[Path, PATH, Parameter(help="Folder that `expunge erase` wrote.")]
Names = Annotated[list[str], Parameter(consume_multiple=True, negative="")]


def say(text: str) -> None:
    """Tell a person, on standard error."""
    readable = text.encode("utf-8", "backslashreplace").decode()
    Console(stderr=True, highlight=False).print(readable, markup=False, soft_wrap=True)


def print_json(data: object) -> None:
    """Print one JSON object on standard output; a number that is none is an error."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")


def command_line() -> str:
    """How this command was called."""
    line = shlex.join(["expunge", *sys.argv[1:]])
    return line.encode("utf-8", "backslashreplace").decode()


def percent(rate: float, interval: Sequence[float], digits: int = 1) -> str:
    """A rate with its interval."""
    value, low, high = (f"{100 * each:.{digits}f}" for each in (rate, *interval))
    return f"{value} [{low}, {high}]"


def check_number(
    name: str, value: float | None, least: float = -math.inf, most: float = math.inf
) -> None:
    """Refuse a number that is not finite or out of range, under the name the user wrote.

    Raises:
        ValueError: names the option and the range.
    """
    if value is None:
        return
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    if value < least:
        raise ValueError(f"{name} must be at least {least:g}, got {value:g}")
    if value > most:
        raise ValueError(f"{name} must be at most {most:g}, got {value:g}")


def check_folder(name: str, folder: Path) -> None:
    """Refuse what cannot become a folder, before anything is written.

    Raises:
        ValueError: a file lies there.
    """
    there = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    if not there.is_dir():
        raise ValueError(f"{name} cannot be {shown(str(folder))}: {shown(str(there))} is a file")


def check_new_file(name: str, path: Path, endings: Sequence[str]) -> None:
    """Refuse a file that could not be written, before any work.

    Raises:
        ValueError: it has another ending, is a folder, or its folder cannot be written.
    """
    if path.suffix.lower() not in endings:
        raise ValueError(f"{name} must end in {', '.join(endings)}, got {shown(path.name)}")
    if path.is_dir():
        raise ValueError(f"{name} cannot be {path}: that is a folder")
    check_folder(name, path.parent)


@contextlib.contextmanager
def resumable(*kept: Path) -> Iterator[None]:
    """Within this context a stop says that the same command goes on, if something was kept.

    Args:
        kept: folders where finished work lies.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        found = any(path.is_file() for folder in kept for path in folder.rglob("*"))
        raise KeyboardInterrupt(str(error) or (GO_ON if found else "")) from None
