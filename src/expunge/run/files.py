"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:24] or "host"
_COUNT = itertools.count()
_PARTIAL = re.compile(r"\..+\.[A-Za-z0-9]+-\d+-\d+-\d+\.partial")
_LEFT_OVER = 3600
"""Seconds after which nobody is still writing a temporary file."""


def refuse_pickle(path: Path) -> None:
    """Refuse a file that could run code when it is read.

    Raises:
        ValueError: its ending is a pickle's.
    """
    if path.suffix in PICKLES:
        raise ValueError(f"{path.name} is a pickle, which can run code; only safetensors are read")


def check_file(path: Path) -> None:
    """Refuse what is no file, or a pickle.

    Raises:
        ValueError: says what it is.
    """
    refuse_pickle(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the .safetensors file in it")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then put it in place.

    The name of the temporary file differs between machines, processes and threads, and the file
    gets the permissions that the user's mask gives to any file.

    Raises:
        OSError: one sentence on why it cannot be written; nothing has changed.
    """
    part = f"{_HOST}-{os.getpid()}-{threading.get_ident()}-{next(_COUNT)}"
    temporary = path.with_name(f".{path.name}.{part}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as handle:
            mode = os.fstat(handle.fileno()).st_mode & 0o777
        write(temporary)
        with temporary.open("r+b") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(mode)  # some writers make a new file that is theirs alone
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put text in place atomically, UTF-8."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", newline="\n")

    write_atomically(path, write)


def check_writable(folder: Path, room: int = 1 << 20) -> None:
    """Say before any heavy work that a folder cannot be written; clear what killed runs left.

    Args:
        folder: made if it is not there.
        room: bytes that must fit.

    Raises:
        OSError: it cannot be made or written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(room))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise _unwritable(folder, error) from error


def _clear(folder: Path) -> None:
    """Remove temporary files that nobody has written to for an hour."""
    for path in folder.glob(".*.partial"):
        if _PARTIAL.fullmatch(path.name) and time.time() - path.stat().st_mtime > _LEFT_OVER:
            path.unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> OSError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return OSError(
        f"{path} cannot be written ({reason}); free space, change its permissions or choose "
        "another folder"
    )
