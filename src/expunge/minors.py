"""Explicit work never names minors: texts are made plain, then words and ages are looked for.

The words and the ways to tell an age, in many languages, stand in `minors.toml` beside this file.
A word in disguise (other letters, separators, digits for letters) is read as a person reads it.
What is refused too much costs a phrase; adult phrases known to be read wrongly are listed there.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

_MARKS = re.compile(
    r"[\u0300-\u036f\u0483-\u0487\u064b-\u065f\u0670\u06d6-\u06ed\u1ab0-\u1aff\u1dc0-\u1dff"
    r"\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f]"
)
"""Marks that letters are read without. Those that are vowels (Devanagari, Bengali) stay."""
_FILLERS = dict.fromkeys((0x115F, 0x1160, 0x3164, 0xFFA0))
_SIGNS = {"0": "o", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "@": "a", "$": "s", "€": "e"}
_LEET = tuple(str.maketrans({**_SIGNS, "1": one, "!": one, "|": one}) for one in "il")
"""Digits and signs that stand for letters; a 1 is either of two."""
_LOOKALIKES = str.maketrans(
    dict(zip("асеорхуіѕјԁһкмтвαοειυρκνχτɑɡ", "aceopxyisjdhkmtbaoeiupkvxtag", strict=True))
)
"""Cyrillic and Greek letters that look like Latin ones."""
_NUMBER = r"(?<!\d)(?<!\d[.,])0*(?:1[0-7]|\d)(?:[.,]\d+)?(?!\d)"
_EIGHTEEN = r"(?<!\d)(?:1[0-8]|\d)(?!\d)"
_LONGEST = 5
"""Words of the longest phrase."""


def _letters(text: str) -> str:
    """One spelling for every letter: compatibility forms, case, digits of all scripts."""
    text = unicodedata.normalize("NFKC", text).translate(_FILLERS).casefold()
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    # The tilde of ñ is kept: "años" are years, and "niña" is not the name Nina.
    parts = re.split("(n\u0303)", unicodedata.normalize("NFKD", text))
    text = "".join("ñ" if part == "n\u0303" else _MARKS.sub("", part) for part in parts)
    text = unicodedata.normalize("NFC", text).replace("ı", "i")
    return "".join(str(unicodedata.digit(c, c)) for c in text)


def _apart(text: str, between: str) -> str:
    """Letters, marks and digits; `between` for a sign within a word, a space for others."""
    text = re.sub(r"(?<=\d)\s*[-‐-―~〜]\s*(?=\d)", " to ", text)
    text = re.sub(r"(?<!\d)[.,]|[.,](?!\d)|['’]", between, text)
    kept = (c if unicodedata.category(c)[0] in "LMN" or c in ".," else between for c in text)
    return " ".join("".join(c if c != "\n" else " " for c in kept).split())


def _joined(text: str) -> str:
    """Letters written one by one, as one word."""
    return re.sub(r"(?<!\S)\w(?: \w){2,}(?!\S)", lambda m: m[0].replace(" ", ""), text)


def _readings(text: str) -> Iterator[str]:
    """The ways a person might read a text; the first is the plain one."""
    letters = _letters(text)
    for spelled in {letters: 0, letters.translate(_LOOKALIKES): 0}:
        # Spaces stay what they are; only signs within words are read as nothing.
        spaced = _apart(spelled, " ")
        yield spaced
        yield re.sub(r"(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)", " ", spaced)  # 1girl
        close = " ".join(_apart(word, "\0").replace("\0", "") for word in spelled.split())
        signs = (_mixed(spelled, table) for table in _LEET)
        for each in (_joined(spaced), close, *signs):
            yield each
            yield re.sub(r"(\w)\1{2,}", r"\1", each)
            yield re.sub(r"(\w)\1{2,}", r"\1\1", each)


def _mixed(text: str, table: dict[int, str]) -> str:
    """Digits and signs as letters, in words that also have letters."""
    words = re.split(r"[\s_.\-]+", text)
    read = (w.translate(table) if re.search(r"[^\W\d_]", w) else w for w in words)
    return _apart(" ".join(read), " ")


def _folded(entry: str) -> str:
    return _apart(_letters(entry), " ")


def _words(numbers: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, map(_folded, numbers)), key=len, reverse=True))


def _age_patterns(told: dict[str, Any]) -> Iterator[re.Pattern[str]]:
    left = told.get("left", r"(?<![^\W\d_])")
    words = _words(told["numbers"])
    before = _words(told["before"])
    # "forty-five" is no five: a number with a ten before it is read, and let go.
    more = rf"|(?P<more>{left}(?:{before})) (?:{words})" if before else ""
    small = rf"(?:{_NUMBER}|{left}(?:{words}){more})"
    grown = rf"(?:{_EIGHTEEN}|{left}(?:{words}|{_folded(told['eighteen'])}))"
    for pattern in told["patterns"]:
        yield re.compile(pattern.replace("{n}", small).replace("{m}", grown))


@dataclass(frozen=True)
class _Known:
    words: frozenset[str]
    beginnings: tuple[str, ...]
    anywhere: tuple[str, ...]
    alone: frozenset[str]
    adult: frozenset[str]
    ages: tuple[re.Pattern[str], ...]


@cache
def _known() -> _Known:
    data = tomllib.loads(Path(__file__).with_name("minors.toml").read_text(encoding="utf-8"))
    words = [word for listed in data["words"].values() for word in listed]
    phrase = {word: _folded(word.removesuffix("*")).replace(" ", "") for word in words}
    return _Known(
        frozenset(phrase.values()),
        tuple({p for word, p in phrase.items() if word.endswith("*")}),
        tuple(_folded(w).replace(" ", "") for each in data["anywhere"].values() for w in each),
        frozenset(_folded(word) for listed in data["alone"].values() for word in listed),
        frozenset(_folded(p).replace(" ", "") for p in data["adult"]["phrases"]),
        tuple(pattern for told in data["ages"].values() for pattern in _age_patterns(told)),
    )


def _runs(words: list[str]) -> Iterator[tuple[int, int, str]]:
    for length in range(1, _LONGEST + 1):
        for start in range(len(words) - length + 1):
            yield start, start + length, "".join(words[start : start + length])


def _has_word(text: str, known: _Known) -> bool:
    runs = list(_runs(text.split()))
    grown = [(start, stop) for start, stop, run in runs if run in known.adult]
    return any(
        (run in known.words or (stop - start == 1 and run.startswith(known.beginnings)))
        and not any(first <= start and stop <= last for first, last in grown)
        for start, stop, run in runs
    )


def _has_age(text: str, known: _Known) -> bool:
    return any(
        not match.groupdict().get("more") for age in known.ages for match in age.finditer(text)
    )


@lru_cache(maxsize=65536)
def names_minor(text: str) -> bool:
    """Whether a text names a minor, in any spelling `minors.toml` and this file know."""
    known = _known()
    for reading in dict.fromkeys(_readings(text)):
        close = reading.replace(" ", "")
        if reading in known.alone or any(part in close for part in known.anywhere):
            return True
        if _has_word(reading, known) or _has_age(reading, known):
            return True
    return False


def refuse_minors(kind: str, texts: Iterable[str]) -> None:
    """Refuse explicit work that names minors; other kinds are not affected.

    Raises:
        ValueError: `kind` is `explicit` and a text names a minor.
    """
    if kind == "explicit" and any(map(names_minor, texts)):
        raise ValueError("concepts of kind 'explicit' must not name minors; Expunge refuses this")
