from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from expunge.run.log import Record


@dataclass(frozen=True)
class Diary(Record):
    schema: ClassVar[str] = "expunge.diary/1"
    file: ClassVar[str] = "diary.json"
    what: ClassVar[str] = "diary"
    command: ClassVar[str] = "expunge write"
    holds: ClassVar[Mapping[str, type]] = {"days": list}


GOOD = {"schema": Diary.schema, "days": [1.5, "é"]}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = Diary(GOOD, tmp_path / "pictures").save(tmp_path)
    assert json.loads(path.read_text())["store"] == "pictures"
    found = Diary.load(tmp_path)
    assert found.data == GOOD
    assert found.store == tmp_path / "pictures"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}])
def test_only_strict_json_is_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"diary holds what JSON cannot express .* not written"):
        Diary({**GOOD, "days": [value]}, tmp_path).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": 1e999}', "not valid JSON"),
        (b"[]", "no JSON object"),
        (b"7", "no JSON object"),
        (b'{"schema": "expunge.diary/1", "days": []}', "store is missing or no text"),
        (b'{"schema": "expunge.diary/1", "days": [], "store": 7}', "store is missing or no text"),
        (b'{"schema": "expunge.diary/1", "store": "."}', "days is missing or no list"),
        (b'{"schema": "expunge.diary/1", "days": 7, "store": "."}', "days is missing or no list"),
    ],
)
def test_a_damaged_record_is_one_sentence(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "diary.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"diary\.json is damaged: .*{why}; run the diary again"):
        Diary.load(tmp_path)


@pytest.mark.parametrize("schema", ["expunge.diary/2", None, [], "x" * 100_000])
def test_another_schema_is_named(tmp_path: Path, schema: object) -> None:
    (tmp_path / "diary.json").write_text(json.dumps({**GOOD, "schema": schema}))
    with pytest.raises(ValueError, match=r"reads 'expunge\.diary/1'; upgrade Expunge or") as error:
        Diary.load(tmp_path)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_none_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make one with expunge write"):
        Diary.load(tmp_path)
