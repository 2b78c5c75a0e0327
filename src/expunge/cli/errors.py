"""From an exception to the sentence a person reads; what no user can cause stays a traceback."""

from __future__ import annotations

import errno
import re

from cyclopts import CycloptsError

LONGEST_WORD, LONGEST = 80, 600
"""Characters that a message repeats of one word it was given, and in all."""

_MEMORY = ("out of memory", "can't allocate memory", "defaultcpuallocator", "bad_alloc")
_DEVICE = (
    "torch not compiled with",
    "cuda driver",
    "no cuda gpus",
    "invalid device",
    "mps backend",
)


def sentence(error: BaseException) -> str | None:
    """What to tell of an error, None where only a traceback helps."""
    found = _sentence(error)
    return None if found is None else brief(found)


def brief(text: str) -> str:
    """One line of readable characters, long words and long texts cut."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    line = re.sub(rf"(\S{{{LONGEST_WORD}}})\S+", r"\1…", line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _sentence(error: BaseException) -> str | None:
    text, kind = str(error), type(error).__name__
    if isinstance(error, CycloptsError):
        return text.splitlines()[-1]
    if isinstance(error, UnicodeError):
        return "a text on the command line or in a file is not valid Unicode; write it as UTF-8"
    if isinstance(error, MemoryError) or any(word in text.lower() for word in _MEMORY):
        return (
            "out of memory: try --offload model (or layers), --dtype bfloat16, --quantize int8, "
            "or for training a smaller --batch-size or --resolution"
        )
    if isinstance(error, OSError):
        return _of_system(error)
    if kind == "SafetensorError":
        return f"a safetensors file is damaged, or the disk is full: {text}"
    if kind in ("LinAlgError", "_LinAlgError"):
        return f"the closed form has no solution ({text}); raise --ridge"
    if isinstance(error, RecursionError):
        return "an input is nested too deeply to be read"
    if kind == "NotFeltError" or isinstance(error, (ValueError, ArithmeticError)):
        return text or kind
    if isinstance(error, (AssertionError, RuntimeError)) and any(
        w in text.lower() for w in _DEVICE
    ):
        return f"this device cannot be used ({text}); say --device cpu, or name one that is here"
    return None


def _of_system(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"no space is left on the disk ({error.filename or 'while writing'}); free some"
    if error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
