"""What a concept may say: types, lengths and patterns, each wrong one told in a sentence."""

from __future__ import annotations

import difflib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence

from expunge.mentions import brief, plain
from expunge.prompts import alternatives, count

LONGEST_NAME = 200
"""Characters of a name; text encoders read about 77 tokens."""
LONGEST_PATTERN = 20_000
MOST_PROMPTS = 100_000
"""Prompts that templates may stand for: all of them are written out."""


def check_text(what: str, text: object, longest: int) -> None:
    """Refuse what is no text, or one that is empty, too long or unprintable."""
    if not isinstance(text, str):
        raise ValueError(f"{what} must be text, got {brief(text)}")
    if not text.strip():
        raise ValueError(f"{what} must not be empty")
    if len(text) > longest:
        raise ValueError(f"{what} may have at most {longest} characters, got {len(text)}")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ValueError(
            f"{what} must not hold line breaks, control characters or broken Unicode, "
            f"got {brief(text)}"
        )


def check_name(what: str, text: object) -> None:
    """Refuse what cannot be a name."""
    check_text(what, text, LONGEST_NAME)


def check_kind(kind: object, kinds: Sequence[str]) -> None:
    """Refuse what is no kind of concept."""
    if kind not in kinds:
        near = difflib.get_close_matches(str(kind)[:LONGEST_NAME], kinds, 1, 0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {brief(kind)}{hint}")


def several(what: str, texts: object) -> tuple[str, ...]:
    """The texts of one field, each of them checked."""
    if isinstance(texts, str):
        raise ValueError(
            f"{what} must be a tuple of texts, got the text {brief(texts)}; write ({brief(texts)},)"
        )
    if not isinstance(texts, (tuple, list)):
        raise ValueError(f"{what} must be a tuple of texts, got {brief(texts)}")
    longest = LONGEST_NAME if what in ("synonyms", "neighbours", "unrelated") else LONGEST_PATTERN
    for text in texts:
        check_text(f"each of {what}", text, longest)
    return tuple(texts)


def check_distinct_names(name: str, synonyms: Sequence[str], neighbours: Sequence[str]) -> None:
    """Refuse a name given twice, and a neighbour that is to go."""
    seen = {plain(name)}
    for synonym in synonyms:
        if plain(synonym) in seen:
            raise ValueError(f"{brief(name)} has the name {brief(synonym)} twice")
        seen.add(plain(synonym))
    for neighbour in neighbours:
        if plain(neighbour) in seen:
            raise ValueError(f"{brief(neighbour)} is to go, so it cannot be a neighbour that stays")


def check_patterns(
    templates: Sequence[str], implied: Sequence[str], preserve: Sequence[str]
) -> None:
    """Refuse patterns that cannot be read, have a wrong slot, or stand for too many prompts."""
    for pattern in templates:
        if "{}" not in pattern:
            raise ValueError(f"a template needs a slot {{}} for the concept, got {brief(pattern)}")
    for pattern in (*implied, *preserve):
        alternatives(pattern)
        if "{}" in pattern:
            raise ValueError(
                f"an implied or preserve pattern names no concept, so it has no slot {{}}, "
                f"got {brief(pattern)}"
            )
    total = sum(map(count, (*templates, *implied)))
    if total > MOST_PROMPTS:
        raise ValueError(
            f"templates and implied patterns may stand for at most {MOST_PROMPTS:,} prompts, got "
            f"{brief(total)}; give fewer alternatives"
        )


def pieces(patterns: Sequence[str]) -> Iterator[str]:
    """What stands in patterns, without digits that may be half of a number."""
    for pattern in patterns:
        for piece in itertools.chain.from_iterable(alternatives(pattern)):
            yield re.sub(r"^\d+|\d+$", "", piece)
