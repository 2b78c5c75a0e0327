"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put text in place atomically, UTF-8."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", newline="\n")

    write_atomically(path, write)


def check_writable(folder: Path, room: int = 1 << 20) -> None:
    """Say before any heavy work that a folder cannot be written.

    Args:
        folder: made if it is not there.
        room: bytes that must fit.

    Raises:
        OSError: it cannot be made or written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(room))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise OSError(
            f"the output folder {folder} cannot be written ({error.strerror}); free space, change "
            "its permissions or choose another folder"
        ) from error
