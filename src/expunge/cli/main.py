"""The entry point: run a command line, and turn errors into one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App

from expunge import __version__
from expunge.cli import audit, bench, cite, draw, exports, listing, watermark, world  # noqa: F401  they register their commands
from expunge.cli.app import app, say
from expunge.cli.erase import asked_method, with_options
from expunge.cli.errors import sentence
from expunge.run.stop import end_as_interrupt

_OPTIONS: dict[str, Any] = {
    "exit_on_error": False,
    "print_error": False,
    "result_action": "return_value",
}


def run(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        if tokens and tokens[0] == "erase":
            _eraser(tokens[1:])(tokens[1:], **_OPTIONS)
        else:
            app(tokens, **_OPTIONS)
    except KeyboardInterrupt as error:
        say(f"\nexpunge: {str(error) or 'stopped; nothing was kept'}")
        return 130
    except Exception as error:
        told = sentence(error)
        if told is None:
            raise
        say(f"expunge: {told}")
        return 2
    return 0


def _eraser(tokens: Sequence[str]) -> App:
    """`erase` with the options of the method that is asked for."""
    found = App(
        name="expunge erase",
        version=__version__,
        help_format="markdown",
        suppress_keyboard_interrupt=False,
    )
    found.default(with_options(asked_method(tokens)))
    return found


def main() -> None:
    """Entry point of the `expunge` command."""
    end_as_interrupt()
    raise SystemExit(run(sys.argv[1:]))
