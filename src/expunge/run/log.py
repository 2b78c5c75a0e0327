"""The record of a run: a versioned JSON file, and a report's only input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from expunge.run.digest import parse
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
        holds: what the data must hold, and of which type each is.
    """

    schema: ClassVar[str]
    file: ClassVar[str]
    what: ClassVar[str]
    command: ClassVar[str]
    holds: ClassVar[Mapping[str, type]] = {}

    data: Mapping[str, Any]
    store: Path

    def save(self, folder: Path) -> Path:
        """Write the file; the store is named relative to the folder where it can be.

        Raises:
            ValueError: the data holds what JSON cannot express, NaN included.
            OSError: the file cannot be written.
        """
        store, here = self.store.resolve(), folder.resolve()
        name = str(store.relative_to(here)) if store.is_relative_to(here) else str(store)
        try:
            text = json.dumps({**self.data, "store": name}, indent=1, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"the {self.what} holds what JSON cannot express ({error}), so {self.file} is not "
                "written"
            ) from error
        write_text(folder / self.file, text + "\n")
        return folder / self.file

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: none is there, it is damaged, of another schema, or lacks something.
        """
        path = Path(folder) / cls.file
        if not path.is_file():
            raise ValueError(
                f"no {cls.what} in {folder}: {cls.file} is missing; make one with {cls.command}"
            )
        try:
            data = parse(path.read_bytes())
        except ValueError:
            raise cls._damaged(path, "not valid JSON") from None
        if not isinstance(data, dict):
            raise cls._damaged(path, "it holds no JSON object")
        schema = str(data.get("schema"))
        if schema != cls.schema:
            raise ValueError(
                f"{path} has schema {schema[:60]!r}, this Expunge reads {cls.schema!r}; upgrade "
                f"Expunge or run the {cls.what} again"
            )
        for name, kind in {**cls.holds, "store": str}.items():
            if not isinstance(data.get(name), kind):
                raise cls._damaged(path, f"{name} is missing or no {_KINDS[kind]}")
        return cls(data, path.parent / data.pop("store"))

    @classmethod
    def _damaged(cls, path: Path, why: str) -> ValueError:
        return ValueError(f"{path} is damaged: {why}; run the {cls.what} again")


_KINDS: dict[type, str] = {dict: "object", list: "list", str: "text"}
