"""What a run leaves on disk: one JSON file per unit, and images named by their content."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from expunge.run.files import check_writable, write_atomically

_DIGITS = 32  # of SHA-256 in hexadecimal: 128 bits


class StoreError(ValueError):
    """A file of the store is damaged, or the store cannot be written."""


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _to_json(name: str, value: Mapping[str, Any]) -> bytes:
    """Canonical JSON: keys sorted, no spaces, ASCII, numpy's numbers as plain ones."""
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must hold only what JSON can express (finite numbers, text, booleans, None, "
            f"lists, objects): {error}"
        ) from error
    return text.encode("ascii")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def unit_id(spec: Mapping[str, Any]) -> str:
    """Name a unit by all that determines it.

    Args:
        spec: what determines the unit, of JSON values. The order of keys does not matter; 4 and
            4.0 are different.

    Returns:
        32 hexadecimal digits of the SHA-256 of the canonical JSON.

    Raises:
        ValueError: something that JSON cannot express, NaN included.
    """
    return _digest(_to_json("spec", spec))


class Store:
    """A folder of finished units: `units/<id>.json`, and `images/<digest>.png` beside them.

    Every file is written whole or not at all, and writing one twice changes nothing, so a killed
    run loses at most the unit in flight. Put the images of a unit first, its record last.

    Args:
        folder: where the files lie; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check_writable(self) -> None:
        """Write and delete one mebibyte, to find out before heavy work that nothing can be kept.

        Raises:
            StoreError: the folder cannot be made or written, or the disk is full.
        """
        for name in ("units", "images"):
            try:
                check_writable(self.folder / name)
            except OSError as error:
                raise StoreError(str(error)) from error

    def get(self, unit: str) -> dict[str, Any] | None:
        """The record of a unit, None when it is not done.

        Raises:
            StoreError: its file is damaged or cannot be read.
        """
        path = self._unit(unit)
        with _reading(path):
            if not path.exists():
                return None
            data = path.read_bytes()
        try:
            record = json.loads(data)
        except ValueError as error:
            raise StoreError(
                f"{path} is damaged ({error}); delete it and the same command does it again"
            ) from error
        if not isinstance(record, dict):
            raise StoreError(
                f"{path} is damaged (it holds no JSON object); delete it and the same command "
                "does it again"
            )
        return record

    def put(self, unit: str, record: Mapping[str, Any]) -> None:
        """Keep the record of a finished unit, in place of any before it.

        Args:
            unit: from `unit_id`.
            record: JSON values; numpy's numbers become plain ones.

        Raises:
            ValueError: something that JSON cannot express, NaN included.
            StoreError: the file cannot be written.
        """
        self._write(self._unit(unit), _to_json("record", record))

    def put_image(self, image: Image.Image) -> str:
        """Keep an image as PNG, once however often it is put.

        Returns:
            Its path relative to the folder: `images/<SHA-256 of the file, 32 digits>.png`.

        Raises:
            StoreError: the file cannot be written.
        """
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        name = f"images/{_digest(buffer.getvalue())}.png"
        if not (self.folder / name).exists():
            self._write(self.folder / name, buffer.getvalue())
        return name

    def image(self, path: str) -> Image.Image:
        """Read an image, its pixels loaded.

        Args:
            path: what `put_image` returned.

        Raises:
            StoreError: the file is missing, or its content is not what its name says.
        """
        file = self.folder / path
        with _reading(file):
            data = file.read_bytes()
        if _digest(data) != file.stem:
            raise StoreError(
                f"{file} is damaged (its content does not match its name); delete it and the "
                "records in units that name it, and the same command draws it again"
            )
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    def _unit(self, unit: str) -> Path:
        return self.folder / "units" / f"{unit}.json"

    def _write(self, path: Path, data: bytes) -> None:
        def write(temporary: Path) -> None:
            temporary.write_bytes(data)

        try:
            write_atomically(path, write)
        except OSError as error:
            raise StoreError(
                f"the output folder {self.folder} cannot be written ({error.strerror}); free "
                "space, change its permissions or choose another folder"
            ) from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror})") from error
