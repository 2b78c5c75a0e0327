"""Prompts: the patterns they are written as, and the split each belongs to.

A prompt template is a pattern: `[red|blue|]` stands for one of the alternatives (the last one here
is "nothing"), `{}` for the concept. Patterns keep a few hundred prompts in one readable line.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

from expunge.mentions import ARTICLES, brief

Split = Literal["train", "validation", "test"]
"""Erasers learn on `train`, choices are made on `validation`, audits report on `test`."""

_DETERMINERS = ARTICLES | frozenset((
    "this", "that", "these", "those", "my", "your", "his", "her", "its", "our", "their", "no",
    "every", "each", "one", "another",
))  # fmt: skip
_BREAKS = frozenset((
    "of", "in", "on", "at", "by", "with", "without", "from", "to", "into", "onto", "over",
    "under", "near", "beside", "behind", "before", "after", "between", "and", "or", "but", "for",
    "as", "like", "than", "is", "are", "was", "were", "that", "which", "who", "next", "against",
    "through", "around", "inside", "outside", "above", "below", "across", "along", "during",
    "toward", "towards", "showing", "depicting", "featuring", "containing", "wearing", "holding",
    "riding",
))  # fmt: skip
"""Words that end a noun phrase: an article before them is not the slot's."""

_AN = re.compile(
    r"(?!(?:uni(?!n|m)|us[aeiu]|usb\b|ut[eio]|uk|ubi|unani|ufo|ur[aei]|u\b|eu|ew|one\b|once|ouija))"
    r"[aeiou]|hour|honest|honou?r|heir|8|11(?!\d)|18(?!\d)",
    re.IGNORECASE,
)
_SPELLED = re.compile(r"[FHLMNRSX](?![a-z])[A-Z0-9]{0,2}(?![A-Za-z0-9])")
"""Letters spoken one by one, beginning with a vowel's sound: an MRI scan, an X-ray."""


def _agree(article: str, word: str) -> str:
    word = word.lstrip("\"'“‘([*")
    an = bool(_AN.match(word) or _SPELLED.match(word))
    return article[0] + ("n" if an else "")


def _article(words: Sequence[str]) -> int | None:
    """Where the article (or the like) stands that is open at the end of these words."""
    for at, word in reversed(list(enumerate(words))):
        if word.casefold() in _BREAKS or word[-1] in ".,:;!?":
            return None
        if word.casefold() in _DETERMINERS:
            return at
    return None


def _bare(phrase: str) -> str:
    """A phrase without its own article."""
    first, _, rest = phrase.strip().partition(" ")
    return rest if rest and first.casefold() in ARTICLES else phrase


def fill(template: str, name: str = "") -> str:
    """Put a name in a template's place, with single spaces and one article, the right one.

    A phrase that brings its own article gives it up where the template has one: "an object" in
    "a photo of a small {}" is "a photo of a small object".
    """
    words: list[str] = []
    articles: list[int] = []
    for word in template.split():
        first = len(words)
        if "{}" in word:
            phrase = name if _article(words) is None else _bare(name)
            words += word.replace("{}", phrase).split()
        else:
            words.append(word)
        # "A" within a sentence is a letter: vitamin A intake.
        opens = first == 0 or words[first - 1][-1] in ".,:;!?"
        if words[first:] and words[first] in ("a", "an", *(("A", "An") if opens else ())):
            articles.append(first)
    for at in articles:
        if at + 1 < len(words):
            words[at] = _agree(words[at], words[at + 1])
    return " ".join(words)


def for_many(template: str) -> str:
    """A template with room for a plural: "a photo of a small {}" is "a photo of small {}" then."""
    words = template.split()
    slot = next((at for at, word in enumerate(words) if "{}" in word), 0)
    article = _article(words[:slot])
    if article is not None and words[article].casefold() in ("a", "an"):
        del words[article]
    return " ".join(words)


def alternatives(pattern: str) -> list[list[str]]:
    """The pattern's parts in order, each with its alternatives.

    Raises:
        ValueError: a bracket is not closed or not opened, or a bar stands outside of brackets.
    """
    parts = re.split(r"\[([^\[\]]*)\]", pattern)
    # Parts take turns: outside of brackets, inside, outside.
    if any(set("[]|") & set(part) for part in parts[::2]):
        raise ValueError(
            "a pattern's alternatives stand in [brackets|parted by bars], one bracket after the "
            f"other, got {brief(pattern)}"
        )
    return [part.split("|") for part in parts]


def count(pattern: str) -> int:
    """How many templates a pattern stands for."""
    return math.prod(map(len, alternatives(pattern)))


@lru_cache(maxsize=256)
def expand(pattern: str) -> tuple[str, ...]:
    """Every template a pattern stands for, in a fixed order."""
    choices = itertools.product(*alternatives(pattern))
    return tuple(" ".join("".join(choice).split()) for choice in choices)


def digest(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to, by its own hash: the same prompt never lands in two."""
    share = digest(prompt)[0] / 256
    return "train" if share < 0.5 else "validation" if share < 0.65 else "test"


def spread(
    prompts: Iterable[str], split: Split | None = None, limit: int | None = None
) -> list[str]:
    """Distinct prompts of one split, in an order that mixes their templates, at most `limit`."""
    chosen = {text for text in prompts if split is None or split_of(text) == split}
    return sorted(chosen, key=lambda text: digest(f"order {text}"))[:limit]


def draw(
    patterns: Sequence[str],
    split: Split,
    *,
    names: Sequence[str] = ("",),
    without: Callable[[str], bool] = lambda _: False,
) -> Iterator[str]:
    """Distinct prompts of one split, the same ones every time, as many as are asked for.

    For patterns that stand for too many prompts to write all of them out. It ends where 500
    attempts in a row bring nothing new.

    Args:
        patterns: take turns.
        split: the only one prompts come from.
        names: what slots are filled with, by chance.
        without: prompts for which this is true are left out.
    """
    rng = random.Random(0)
    parts = [alternatives(pattern) for pattern in patterns]
    turns = itertools.cycle(parts if names else ())
    seen: set[str] = set()
    fruitless = 0
    for part in turns:
        template = "".join(rng.choice(words) for words in part)
        text = fill(template, rng.choice(names) if len(names) > 1 else names[0])
        fruitless += 1
        if text not in seen and split_of(text) == split and not without(text):
            seen.add(text)
            fruitless = 0
            yield text
        if fruitless == 500:
            return
