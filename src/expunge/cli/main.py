"""The entry point: run a command line, and turn errors into one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError

from expunge.backbone.memory import memory_advice
from expunge.cli import audit, exports, look, watermark, world  # noqa: F401  they register their commands
from expunge.cli.app import app, say
from expunge.cli.erase import asked_method, eraser_class, with_options
from expunge.run.stop import end_as_interrupt

STOPPED = "stopped; the same command does again only what was not kept"


def _fail(text: str) -> int:
    say(f"expunge: {' '.join(text.split())}")
    return 2


def run(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    options: dict[str, Any] = {
        "exit_on_error": False,
        "print_error": False,
        "result_action": "return_value",
    }
    try:
        with memory_advice():
            _dispatch(tokens, options)
    except CycloptsError as error:
        return _fail(str(error).splitlines()[-1])
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        say(f"\nexpunge: {str(error) or STOPPED}")
        return 130
    return 0


def _dispatch(tokens: Sequence[str], options: dict[str, Any]) -> None:
    """To `erase`, whose options depend on its method, or to any other command."""
    if tokens and tokens[0] == "erase":
        eraser = App(
            name="expunge erase", help_format="markdown", suppress_keyboard_interrupt=False
        )
        eraser.default(with_options(eraser_class(asked_method(tokens))))
        eraser(tokens[1:], **options)
    else:
        app(tokens, **options)


def main() -> None:
    """Entry point of the `expunge` command."""
    end_as_interrupt()
    raise SystemExit(run(sys.argv[1:]))
