"""What a run leaves on disk: one JSON file per unit, and images named by their content."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from PIL import Image
from torch import Tensor

from expunge.run.digest import canonical, digest, digest_bytes, parse
from expunge.run.files import check_writable, write_atomically

Record = dict[str, Any]
"""What is known of a finished unit, of JSON values."""
_IMAGE = re.compile(r"images/[0-9a-f]{32}\.png")
_TENSORS = re.compile(r"tensors/[0-9a-f]{32}\.safetensors")


class StoreError(ValueError):
    """A file of the store is damaged, or the store cannot be written."""


class UnwritableError(StoreError):
    """Nothing can be kept: the folder cannot be made or written, or the disk is full."""


class Store:
    """A folder of finished units: `units/<id>.json`, and `images/<digest>.png` beside them.

    A unit's id is the digest of its spec, which names all that determines it; the file holds the
    spec, the record and a digest of what it says, so that a changed byte is noticed. Every file is
    written whole or not at all, and writing one twice changes nothing, so a killed run loses at
    most the unit in flight. Put the images of a unit first, its record last.

    Args:
        folder: where the files lie; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check_writable(self) -> None:
        """Find out before heavy work that nothing can be kept; clear what killed runs left.

        Raises:
            UnwritableError: the folder cannot be made or written, or the disk is full.
        """
        with _told():
            for name in ("units", "images"):
                check_writable(self.folder / name)

    def once(self, spec: Mapping[str, Any], work: Callable[[], Record]) -> Record:
        """The record of a unit: what is kept, or else what `work` makes of it, kept from now on.

        Raises:
            ValueError: spec or record hold something that JSON cannot express, NaN included.
            StoreError: its file is damaged or cannot be read.
            UnwritableError: its file cannot be written.
        """
        done = self.get(digest(spec, "spec"))
        return self.put(spec, work()) if done is None else done

    def get(self, unit: str, made_from: Mapping[str, str] | None = None) -> Record | None:
        """The record of a unit; None when it is not done, or a picture it names is not whole.

        Args:
            unit: digest of its spec.
            made_from: digests of the records it must have been made from, by unit; it is not done
                where it was made from others. None where that does not matter.

        Raises:
            StoreError: its file is damaged or cannot be read.
        """
        path = self._unit(unit)
        if not path.exists():
            return None
        try:
            kept = parse(_read(path))
            record, basis = dict(kept["record"]), kept["made_from"]
            whole = digest(kept["spec"]) == unit and digest([record, basis]) == kept["digest"]
        except StoreError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(path, "no record of a unit") from error
        if not whole:
            raise _damaged(path, "its content does not match its name or its digest")
        outdated = made_from is not None and basis != made_from
        return None if outdated or not self.intact(_files(record)) else record

    def put(
        self,
        spec: Mapping[str, Any],
        record: Mapping[str, Any],
        made_from: Mapping[str, str] | None = None,
    ) -> Record:
        """Keep the record of a finished unit, in place of any before it.

        Args:
            spec: all that determines the unit, of JSON values.
            record: JSON values; numpy's numbers become plain ones.
            made_from: digests of the records it was made from, by unit.

        Returns:
            The record as it can be read.

        Raises:
            ValueError: something that JSON cannot express, NaN included.
            UnwritableError: the file cannot be written.
        """
        plain: Record = parse(canonical(record, "record"))
        basis = dict(made_from or {})
        unit = digest(spec, "spec")
        kept = {"spec": spec, "made_from": basis, "record": plain, "digest": digest([plain, basis])}
        self._write(self._unit(unit), canonical(kept))
        return plain

    def forget(self, unit: str) -> None:
        """Let a unit be done again, where something it left outside of the store is gone."""
        self._unit(unit).unlink(missing_ok=True)

    def put_image(self, image: Image.Image) -> str:
        """Keep an image as PNG, once however often it is put.

        Returns:
            Its path relative to the folder: `images/<SHA-256 of the file, 32 digits>.png`.

        Raises:
            UnwritableError: the file cannot be written.
        """
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        name = f"images/{digest_bytes(buffer.getvalue())}.png"
        if not self.intact([name]):
            self._write(self.folder / name, buffer.getvalue())
        return name

    def image(self, path: str) -> Image.Image:
        """Read an image, its pixels loaded.

        Args:
            path: what `put_image` returned.

        Raises:
            StoreError: the file is missing, its content is not what its name says, or the path is
                none of an image of the store.
        """
        file = self.folder / path
        if not _IMAGE.fullmatch(path):
            raise StoreError(f"{path[:80]!r} is no image of a store; expected images/<digest>.png")
        data = _read(file)
        if digest_bytes(data) != file.stem:
            raise _damaged(file, "its content does not match its name")
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    def put_tensors(self, tensors: Mapping[str, Tensor]) -> str:
        """Keep tensors as safetensors, once however often they are put.

        Returns:
            Their path in the folder: `tensors/<SHA-256 of the file, 32 digits>.safetensors`.

        Raises:
            StoreError: the file cannot be written.
        """
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(plain)
        name = f"tensors/{digest_bytes(data)}.safetensors"
        if not self.intact([name]):
            self._write(self.folder / name, data)
        return name

    def tensors(self, path: str) -> dict[str, Tensor]:
        """Read tensors.

        Args:
            path: what `put_tensors` returned.

        Raises:
            StoreError: the file is missing, its content is not what its name says, or the path is
                none of tensors of the store.
        """
        file = self.folder / path
        if not _TENSORS.fullmatch(path):
            raise StoreError(f"{path[:80]!r} holds no tensors of a store")
        data = _read(file)
        if digest_bytes(data) != file.stem:
            raise _damaged(file, "its content does not match its name")
        found: dict[str, Tensor] = safetensors.torch.load(data)
        return found

    def intact(self, paths: Iterable[str]) -> bool:
        """Whether every file is there and is what its name says.

        Raises:
            StoreError: one is there and cannot be read.
        """
        files = [self.folder / path for path in paths]
        return all(file.exists() and digest_bytes(_read(file)) == file.stem for file in files)

    def _unit(self, unit: str) -> Path:
        return self.folder / "units" / f"{unit}.json"

    def _write(self, path: Path, data: bytes) -> None:
        def write(temporary: Path) -> None:
            temporary.write_bytes(data)

        with _told():
            write_atomically(path, write)


def _files(value: Any) -> Iterator[str]:
    """Every image of the store that a record names, however deep."""
    if isinstance(value, str) and (_IMAGE.fullmatch(value) or _TENSORS.fullmatch(value)):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _files(inner)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror})") from error


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is damaged ({why}); delete it and the same command does it again")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnwritableError(str(error)) from error
