"""The record of a run: a versioned JSON file, and a report's only input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from expunge.run.files import write_text


@dataclass(frozen=True)
class Record:
    """What a finished run says, in plain JSON, and where its pictures lie.

    Attributes:
        data: plain JSON with its `schema`.
        store: folder that paths of pictures in it are relative to.
        schema: of this kind of record.
        file: its name in a folder.
        what: what such a run is called, for messages.
        command: what makes one.
    """

    schema: ClassVar[str]
    file: ClassVar[str]
    what: ClassVar[str]
    command: ClassVar[str]

    data: Mapping[str, Any]
    store: Path

    def save(self, folder: Path) -> Path:
        """Write the file; the store is named relative to the folder where it can be."""
        store, here = self.store.resolve(), folder.resolve()
        name = str(store.relative_to(here)) if store.is_relative_to(here) else str(store)
        write_text(folder / self.file, json.dumps({**self.data, "store": name}, indent=1) + "\n")
        return folder / self.file

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: none is there, it is damaged, or from a newer schema.
        """
        path = Path(folder) / cls.file
        if not path.is_file():
            raise ValueError(
                f"no {cls.what} in {folder}: {cls.file} is missing; make one with {cls.command}"
            )
        try:
            data = json.loads(path.read_text())
        except json.JSONDecodeError:
            raise ValueError(
                f"{path} is damaged: not valid JSON; run the {cls.what} again"
            ) from None
        schema = str(data.get("schema"))
        if schema != cls.schema:
            raise ValueError(
                f"{path} has schema {schema!r}, this Expunge reads {cls.schema!r}; upgrade Expunge"
            )
        return cls(data, path.parent / data.pop("store"))
