"""JSON to frozen dataclasses and back: wrong types are named by their path."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
_LARGEST = 2**64  # whole numbers of files are counts and seeds
_SHOWN = 60  # characters of a wrong value that a message repeats


def read(kind: type[T], value: object, path: str = "", **given: object) -> T:
    """A dataclass from plain JSON, every leaf of the annotated type.

    Understood are dataclasses, `str`, `bool`, `int`, `float` (a whole number will do, NaN and
    infinity will not), `Literal`, unions, `tuple[X, ...]` and `tuple[X, Y]` (JSON lists),
    `Mapping[str, X]`, and `Any` (whatever JSON can hold, finite).

    Args:
        kind: a dataclass.
        value: what `json.loads` gave.
        path: where the value stands, for messages.
        given: fields that come from elsewhere and must not stand in the value.

    Raises:
        ValueError: a leaf of another type, a key too few or one too many, in one sentence that
            begins with its path.
    """
    found: T = _dataclass(kind, value, path, given)
    return found


def plain(value: Any) -> Any:
    """What `read` reads: dataclasses as JSON objects, tuples as lists."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def _wrong(path: str, wanted: str, value: object) -> ValueError:
    huge = isinstance(value, int) and abs(value) >= _LARGEST
    text = "a number of more than 19 digits" if huge else repr(value)
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return ValueError(f"{path or 'the log'} must be {wanted}, got {short}")


def _read(kind: Any, value: object, path: str) -> Any:
    origin, of = get_origin(kind), get_args(kind)
    if kind is Any:
        return _any(value, path)
    if origin is Literal:
        if not isinstance(value, str) or value not in of:
            raise _wrong(path, "one of " + ", ".join(of), value)
        return value
    if origin is types.UnionType:
        return _union(of, value, path)
    if origin is tuple:
        return _tuple(of, value, path)
    if origin in (Mapping, dict):
        return {
            key: _read(of[1], each, f"{path}.{key}") for key, each in _object(value, path).items()
        }
    return _dataclass(kind, value, path, {}) if is_dataclass(kind) else _leaf(kind, value, path)


def _any(value: object, path: str) -> Any:
    """JSON of any shape, but finite."""
    if isinstance(value, Mapping):
        return {key: _any(each, f"{path}.{key}") for key, each in _object(value, path).items()}
    if isinstance(value, list | tuple):
        return [_any(each, f"{path}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, float):
        return _leaf(float, value, path)
    if isinstance(value, int) and not isinstance(value, bool):
        return _leaf(int, value, path)
    if value is None or isinstance(value, str | bool):
        return value
    raise _wrong(path, "plain JSON", value)


def _leaf(kind: type, value: object, path: str) -> Any:
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise _wrong(path, _WORDS[kind], value)
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise _wrong(path, "a whole number below 2^64", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(path, "a finite number", value)
    return float(value) if kind is float else value  # type: ignore[arg-type]


def _union(kinds: tuple[Any, ...], value: object, path: str) -> Any:
    """`None` where it is allowed; mappings and numbers are told apart by what is given."""
    if value is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    mapped = [kind for kind in others if get_origin(kind) is Mapping]
    if mapped and isinstance(value, Mapping):
        return _read(mapped[0], value, path)
    return _read(others[0], value, path)


def _tuple(kinds: tuple[Any, ...], value: object, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(path, "a list", value)
    each = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
    if len(each) != len(value):
        raise _wrong(path, f"a list of {len(each)}", value)
    pairs = enumerate(zip(each, value, strict=True))
    return tuple(_read(kind, item, f"{path}[{index}]") for index, (kind, item) in pairs)


def _object(value: object, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _wrong(path, "an object", value)
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _dataclass(kind: Any, value: object, path: str, given: Mapping[str, object]) -> Any:
    found = _object(value, path)
    known = {each.name: each for each in fields(kind) if each.name not in given}
    where = f"{path} " if path else "the log "
    if unknown := [key for key in found if key not in known]:
        raise ValueError(f"{where}has an unknown key {unknown[0][:_SHOWN]!r}")
    for name, each in known.items():
        if name not in found and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{where}lacks {name}")
    hints = _hints(kind)
    dot = f"{path}." if path else ""
    return kind(**given, **{name: _read(hints[name], found[name], dot + name) for name in found})
