from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from auditing.logs import EMBEDDING, attacked, demo, log_of, plain_part

from expunge.auditing import Log


def whole() -> Log:
    return log_of([*plain_part(), attacked()], attacks=[EMBEDDING])


def test_written_and_read_is_the_same(tmp_path: Path) -> None:
    log = whole()
    log.save(tmp_path)
    again = Log.load(tmp_path)
    assert again.to_dict() == log.to_dict()
    assert json.loads(json.dumps(log.summary())) == log.summary()
    assert not {"samples", "erasure"} & set(log.summary())


def test_repr_is_one_short_line() -> None:
    assert repr(whole()).startswith("<Log of cat of miniature-sd: 3 conditions, 1 attacks")
    assert len(repr(whole())) < 120


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of one leaf of every kind: of a list its first and last entry."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield (*path, key)
            yield from leaves(each, (*path, key))
    elif isinstance(value, list) and value:
        for index in {0, len(value) - 1}:
            yield (*path, index)
            yield from leaves(value[index], (*path, index))


def changed(data: Any, path: tuple[Any, ...], value: object) -> Any:
    data = copy.deepcopy(data)
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return data


FREE = ("sampling", "spec", "budget", "settings", "erasure")
"""Parts that may hold any JSON, as far as it is finite."""
NUMBERS = {"strength", "seconds", "conv", "broken"}
"""Leaves that may be any finite number."""


def refusal(data: Any, folder: Path) -> str | None:
    try:
        json.dumps(Log.from_dict(data, folder).to_dict(), allow_nan=False)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("hostile", [{"a": [1]}, [[]], math.nan, math.inf, 10**400, -1e308])
def test_a_hostile_leaf_is_one_sentence(hostile: object, tmp_path: Path) -> None:
    data = whole().to_dict()
    data["samples"] = data["samples"][:2]
    for path in leaves(data):
        said = refusal(changed(data, path, hostile), tmp_path)
        if said is None:
            free = any(step in FREE for step in path)
            assert free or (hostile == -1e308 and path[-1] in NUMBERS), path
        else:
            assert "\n" not in said
            assert len(said) < 300


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["cells"][3].update(rate="x"), r"cells\[3\].rate must be a number, got 'x'"),
        (lambda d: d["cells"][3].update(rate=True), r"cells\[3\].rate must be a number, got True"),
        (lambda d: d["cells"][3].update(n=2.5), r"cells\[3\].n must be a whole number"),
        (lambda d: d["cells"][0].update(rate=0.5), r"cells\[0\].rate must be k / n"),
        (lambda d: d["cells"][0].update(condition="x"), r"cells\[0\].condition must be one of"),
        (lambda d: d["cells"][0].pop("k"), r"cells\[0\] lacks k"),
        (lambda d: d["cells"][0].update(q=1), r"cells\[0\] has an unknown key 'q'"),
        (lambda d: d["cells"][0].update(ci=[0.1]), r"cells\[0\].ci must be a list of 2"),
        (lambda d: d["cells"][0].update(role="x"), r"cells\[0\].role must be one of target"),
        (lambda d: d.update(cells=[]), "cells must hold 'cat' asked by name"),
        (lambda d: d.update(attacks=[]), "attacks must hold 'plain'"),
        (lambda d: d["conditions"].pop(1), "conditions must hold 'erased'"),
        (lambda d: d["judges"].append(d["judges"][0]), "judges must have different names"),
        (lambda d: d["erasure"]["concepts"][0].pop("kind"), r"erasure.concepts\[0\].kind must be"),
        (lambda d: d["sampling"].update(a=[math.nan]), r"sampling.a\[0\] must be a finite number"),
        (lambda d: d["differences"][0].update(only_first=99), r"differences\[0\] holds counts"),
        (lambda d: d.update(schema="expunge.audit/3"), "upgrade Expunge"),
        (lambda d: d.update(schema="expunge.audit/1"), "audit again"),
        (lambda d: d.update(schema="expunge.erasure/1"), "pass an audit's log"),
        (lambda d: d.update(store="x"), "unknown key 'store'"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    data = whole().to_dict()
    change(data)
    with pytest.raises(ValueError, match=words):
        Log.from_dict(data, tmp_path)


@pytest.mark.parametrize("data", [None, 7, [], "x", {}])
def test_other_json_is_refused(data: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be an object|has schema"):
        Log.from_dict(data, tmp_path)


def test_cells_are_found_by_name() -> None:
    log = whole()
    assert log.cell().k == 0
    assert log.cell(condition="original").k == 40
    assert log.cell(attack="inversion", condition="control").k == 2
    assert log.cell(concept="fish").k == 12
    with pytest.raises(KeyError):
        log.cell(concept="wombat")


def test_an_unknown_kind_of_concept_unveils_nothing() -> None:
    assert demo(kind="explicit").kinds == {"cat": "explicit"}
