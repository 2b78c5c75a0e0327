"""A file of what is to go: many concepts at once, in YAML or CSV.

YAML is a list, each entry a name or a mapping; CSV has one row a concept, its lists parted by `;`:

    - cat                                  name,kind,synonyms,anchor,neighbours
    - name: Vincent van Gogh               cat,,kitten;feline,,dog
      kind: style                          Vincent van Gogh,style,van Gogh,,Claude Monet
      synonyms: [van Gogh]
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from expunge.concept import Concept, Kind
from expunge.mentions import brief, plain
from expunge.vocabulary import Vocabulary

TEXTS = ("name", "kind", "anchor")
LISTS = ("synonyms", "neighbours")
MOST_ROWS = 1_000
"""Concepts of one file."""
LARGEST = 1_000_000
"""Bytes of one file."""

Row = tuple[str, Mapping[Any, Any]]
"""Where it stands, and what it says."""


@dataclass(frozen=True)
class Request:
    """One concept somebody asks for.

    Attributes:
        name: what goes.
        kind: None for the model's own, or an object.
        changes: synonyms, anchor and neighbours, where the file gives them.
    """

    name: str
    kind: Kind | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def resolve(self, vocabulary: Vocabulary) -> Concept:
        """The concept, with what a model's vocabulary knows of it.

        Raises:
            ValueError: as `Vocabulary.resolve`.
        """
        return vocabulary.resolve(self.name, self.kind, **self.changes)


def read_concepts(path: str | Path) -> list[Request]:
    """Read a file of concepts: `.yaml`, `.yml` or `.csv`, in UTF-8.

    Keys and columns are name, kind, synonyms, anchor and neighbours; all but the name may be left
    out, and a name the model knows brings its own.

    Raises:
        ValueError: the file cannot be read, is larger than 1 MB, holds no concept or more than
            1,000; or an entry has an unknown key, a value of the wrong type, or a concept that
            makes no sense or is there before.
    """
    path = Path(path)
    readers = {".yaml": _yaml_rows, ".yml": _yaml_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise ValueError(f"a file of concepts ends in .yaml, .yml or .csv, got {brief(path.name)}")
    rows = readers[path.suffix.lower()](_text(path), path.name)
    if not rows:
        raise ValueError(f"{path.name} holds no concept; give it at least one")
    if len(rows) > MOST_ROWS:
        raise ValueError(
            f"{path.name} holds {len(rows):,} concepts, and at most {MOST_ROWS:,} can go at once"
        )
    found = [_request(path.name, row) for row in rows]
    _check_distinct(path.name, rows, found)
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.name} is larger than {LARGEST // 10**6} MB")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{brief(str(path))} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is no text in UTF-8; save it as UTF-8") from None


def _yaml_rows(text: str, file: str) -> list[Row]:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise ValueError(f"{file} must be a list, with a dash before each concept")
        return [_yaml_row(loader, item, number, file) for number, item in enumerate(node.value, 1)]
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ValueError(f"{file} is no valid YAML{where}: {brief(problem)}") from None


def _yaml_row(loader: Any, node: Any, number: int, file: str) -> Row:
    where = f"entry {number} (line {node.start_mark.line + 1})"
    if isinstance(node, yaml.MappingNode):
        _check_node(node, f"{file}, {where}")
    value = None if isinstance(node, yaml.SequenceNode) else loader.construct_document(node)
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise ValueError(
            f"{file}, {where}: expected a name or a mapping, got {brief(node.value)}; "
            "put a name that looks like a number in quotes"
        )
    return where, value


def _check_node(node: Any, where: str) -> None:
    """Refuse what YAML would drop or multiply in silence: a key twice, merges, deeper nesting."""
    seen: set[str] = set()
    for key, value in node.value:
        inner = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(each, yaml.ScalarNode) for each in (key, *inner)):
            raise ValueError(f"{where}: values are texts or lists of texts, not nested any deeper")
        if key.value in seen:
            raise ValueError(f"{where}: the key {brief(key.value)} is there twice")
        if key.tag.endswith(":merge"):
            raise ValueError(f"{where}: merging with << is not supported; write it out")
        seen.add(key.value)


def _csv_rows(text: str, file: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise ValueError(f"{file} is no valid CSV at line {reader.line_num}: {error}") from None
    if not lines:
        return []
    header = [column.strip() for column in lines[0][1]]
    if "name" not in header or len(set(header)) < len(header):
        raise ValueError(
            f"the first line of {file} must name its columns, parted by commas, each once and one "
            f"of them 'name', got {brief(','.join(header))}"
        )
    return [_csv_row(file, header, number, cells) for number, cells in lines[1:]]


def _csv_row(file: str, header: Sequence[str], number: int, cells: Sequence[str]) -> Row:
    where = f"line {number}"
    if len(cells) > len(header):
        raise ValueError(
            f"{file}, {where}: {len(cells)} values for {len(header)} columns; put a value with "
            "commas in quotes, and part lists by ;"
        )
    said = {key: cell.strip() for key, cell in zip(header, cells, strict=False)}
    row: dict[str, Any] = {key: cell for key, cell in said.items() if cell or key == "name"}
    for key in set(LISTS) & set(row):
        row[key] = [each.strip() for each in row[key].split(";") if each.strip()]
    return where, row


def _request(file: str, row: Row) -> Request:
    where, said = row
    try:
        _check_types(said)
        changes: dict[str, Any] = {
            key: tuple(value) if key in LISTS else value
            for key, value in said.items()
            if key not in ("name", "kind")
        }
        # Made once to be checked: a model's vocabulary may add to it later.
        Concept(said["name"], said.get("kind", "object"), **changes)
    except ValueError as error:
        raise ValueError(f"{file}, {where}: {error}") from None
    return Request(said["name"].strip(), said.get("kind"), changes)


def _check_types(said: Mapping[Any, Any]) -> None:
    known = (*TEXTS, *LISTS)
    for key, value in said.items():
        if key not in known:
            near = difflib.get_close_matches(str(key)[:80], known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise ValueError(f"unknown key {brief(key)}{hint}")
        if key in TEXTS and not isinstance(value, str):
            raise ValueError(f"{key} must be text, got {brief(value)}; put it in quotes")
        if key in LISTS and not isinstance(value, list):
            raise ValueError(f"{key} must be a list, got {brief(value)}; write [one, another]")
    if "name" not in said:
        raise ValueError("it has no name")


def _names(found: Sequence[Request]) -> Iterator[tuple[str, int]]:
    for index, request in enumerate(found):
        for name in (request.name, *request.changes.get("synonyms", ())):
            yield name, index


def _check_distinct(file: str, rows: Sequence[Row], found: Sequence[Request]) -> None:
    """Refuse a name that another entry has, or goes by."""
    asked: dict[str, int] = {}
    for index, request in enumerate(found):
        first = asked.setdefault(plain(request.name), index)
        if first != index:
            raise ValueError(
                f"{file}, {rows[index][0]}: {brief(request.name)} is there before, "
                f"in {rows[first][0]}"
            )
    for name, index in _names(found):
        other = asked.get(plain(name), index)
        if other != index:
            raise ValueError(
                f"{file}, {rows[index][0]}: the synonym {brief(name)} is a concept of its own, "
                f"in {rows[other][0]}"
            )
