"""Names in texts: how they are compared, quoted and found, in any case, singular or plural."""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)
"""Scripts that write words without spaces, or (Korean) hang particles on them."""

ARTICLES = frozenset({"a", "an", "the", "some", "any"})

_IRREGULAR = {
    "person": "people", "child": "children", "mouse": "mice", "louse": "lice", "goose": "geese",
    "man": "men", "foot": "feet", "tooth": "teeth", "ox": "oxen", "die": "dice", "quiz": "quizzes",
}  # fmt: skip
_SINGULAR = {plural: singular for singular, plural in _IRREGULAR.items()}
_ENDINGS = (
    ("y", "ies"), ("f", "ves"), ("fe", "ves"), ("us", "i"), ("um", "a"), ("on", "a"), ("is", "es"),
    ("ix", "ices"), ("ex", "ices"), ("eau", "eaux"), ("man", "men"), ("", "s"), ("", "es"),
)  # fmt: skip
_NEVER_SINGULAR = ("ss", "us", "is", "news")


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 70
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = 2


def brief(value: object) -> str:
    """How a message quotes what it was given: at most about 70 characters of it."""
    return _BRIEF.repr(value)


def folded(text: str) -> str:
    """NFKC, casefolded, with a single space for whatever is no letter, mark or number."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join("".join(kept).split())


def plain(name: str) -> str:
    """A name as names are compared: NFKC, casefolded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


@lru_cache(maxsize=4096)
def forms(word: str) -> frozenset[str]:
    """A word, its plurals, and what it might be the plural of.

    English. A form too many costs one kept prompt; a form too few keeps what is to go.
    """
    found = {word, _IRREGULAR.get(word, word), _SINGULAR.get(word, word)}
    for one, many in _ENDINGS:
        if word.endswith(one) and len(word) > max(len(one), 1):
            found.add(word.removesuffix(one) + many)
        if word.endswith(many) and len(word) > len(many) + 2 and not word.endswith(_NEVER_SINGULAR):
            found.add(word.removesuffix(many) + one)
    return frozenset(found)


_SAME = frozenset({"sheep", "fish", "deer", "series", "species", "aircraft", "fruit"})
_MANY = (
    (r"(?<=[^aeiou])y$", "ies"), (r"(?<=[sxz])$|(?<=[cs]h)$", "es"),
    (r"(?<=l)f$|(?<=[eo]a)f$|(?<=i)fe$", "ves"),
    (r"(?<!hu)(?<!ger)(?<!ro)(?<!sha)man$", "men"), (r"$", "s"),
)  # fmt: skip


def plural(name: str) -> str:
    """The usual English plural of a name without its article: "a police man" is "police men".

    A name of a script without spaces stays as it is.
    """
    words = name.split()
    if len(words) > 1 and words[0].casefold() in ARTICLES:
        words = words[1:]
    if not words or _UNSPACED.search(name):
        return name
    head = words.index("of") - 1 if "of" in words[1:] else len(words) - 1
    word = words[head]
    if word in _SAME:
        return " ".join(words)
    ending, many = next(rule for rule in _MANY if re.search(rule[0], word))
    words[head] = _IRREGULAR.get(word) or re.sub(ending, many, word, count=1)
    return " ".join(words)


def _phrases(name: str) -> Iterable[tuple[str, ...]]:
    """The ways to write a name: as it is, its last word in other forms, and the head of an `of`."""
    words = folded(name).split()
    if len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    if not words:
        return
    heads = {len(words) - 1} | ({words.index("of") - 1} if "of" in words[1:] else set())
    for head in heads:
        for form in forms(words[head]):
            yield (*words[:head], form, *words[head + 1 :])


class Mentions:
    """Finds any of many names in texts.

    Args:
        names: what to look for.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        self._phrases = {phrase for name in names for phrase in _phrases(name)}
        self._longest = max(map(len, self._phrases), default=0)
        # A name of signs alone ("☃") has no words, so it is looked for as it is written.
        self._anywhere = {
            plain(name) for name in names if _UNSPACED.search(name) or not folded(name)
        }

    def __call__(self, text: str) -> bool:
        """Whether the text names one of them."""
        words = tuple(folded(text).split())
        runs = (
            words[start : start + length]
            for length in range(1, self._longest + 1)
            for start in range(len(words) - length + 1)
        )
        if any(run in self._phrases for run in runs):
            return True
        return bool(self._anywhere) and any(name in plain(text) for name in self._anywhere)


def occurrences(text: str, name: str) -> list[tuple[int, int]]:
    """Where a text names something, as where it begins and ends, in any form of the name.

    Raises:
        ValueError: the name is empty.
    """
    if not name.strip():
        raise ValueError(f"name must hold a word, got {name!r}")
    literal = re.escape(name.strip())
    if not _UNSPACED.search(name):
        literal = rf"(?<!\w){literal}(?!\w)"
    found = {match.span() for match in re.finditer(literal, text, re.IGNORECASE)}
    phrases = set(_phrases(name))
    words = [(folded(match.group()), match.span()) for match in re.finditer(r"\w+", text)]
    for length in {len(phrase) for phrase in phrases}:
        for start in range(len(words) - length + 1):
            run = words[start : start + length]
            if tuple(word for word, _ in run) in phrases:
                found.add((run[0][1][0], run[-1][1][1]))
    return sorted(found)
