"""What is to go: concepts, and the prompts that ask for them.

A prompt template is a pattern: `[red|blue|]` stands for one of the alternatives (the last one here
is "nothing"), `{}` for the concept. Patterns keep a few hundred prompts in one readable line.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

Split = Literal["train", "validation", "test"]
"""Erasers learn on `train`, choices are made on `validation`, audits report on `test`."""

Kind = Literal["object", "identity", "style", "explicit"]
Probe = Literal["plain", "synonym", "implied"]
"""How a prompt asks for a concept: by its name, by another name, or without naming it."""


def fill(template: str, name: str = "") -> str:
    """Put a name in a template's place, with single spaces and the right article."""
    text = " ".join(template.replace("{}", name).split())
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def _alternatives(pattern: str) -> list[list[str]]:
    return [part.split("|") for part in re.split(r"\[([^\]]*)\]", pattern)]


@lru_cache(maxsize=256)
def expand(pattern: str) -> tuple[str, ...]:
    """Every template a pattern stands for, in a fixed order."""
    choices = itertools.product(*_alternatives(pattern))
    return tuple(" ".join("".join(choice).split()) for choice in choices)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to, by its own hash: the same prompt never lands in two."""
    share = _digest(prompt)[0] / 256
    return "train" if share < 0.5 else "validation" if share < 0.65 else "test"


def spread(
    prompts: Iterable[str], split: Split | None = None, limit: int | None = None
) -> list[str]:
    """Distinct prompts of one split, in an order that mixes their templates, at most `limit`."""
    chosen = {text for text in prompts if split is None or split_of(text) == split}
    return sorted(chosen, key=lambda text: _digest(f"order {text}"))[:limit]


def draw(patterns: Sequence[str], split: Split, limit: int) -> list[str]:
    """At most `limit` distinct slotless prompts of one split, the same ones every time.

    For patterns that stand for too many prompts to write all of them out.
    """
    rng = random.Random(0)
    parts = [_alternatives(pattern) for pattern in patterns]
    chosen: dict[str, None] = {}
    for attempt in range(20 * limit if parts else 0):
        text = fill("".join(rng.choice(words) for words in parts[attempt % len(parts)]))
        if split_of(text) == split:
            chosen[text] = None
        if len(chosen) == limit:
            break
    return list(chosen)


@dataclass(frozen=True)
class _KindDefaults:
    anchor: str
    templates: tuple[str, ...]
    preserve: tuple[str, ...]
    unrelated: tuple[str, ...]


_SCENES = (
    "[| on a table| in a garden| in the street| on the beach| in the snow| at night| in a forest"
    "| indoors| by a lake| on a hill| in the rain| at sunset| in a studio| by a window]"
)
_SHOTS = (
    "[a photo|a picture|an image|a close-up|a bright photo|a blurry photo|a snapshot|a painting"
    "|a drawing|a rendering]"
)
_EVERYDAY = f"{_SHOTS} of a [chair|tree|house|bowl of fruit|mountain|street|teapot|book]{_SCENES}"

KINDS: dict[str, _KindDefaults] = {
    "object": _KindDefaults(
        "an object",
        (f"{_SHOTS} of a [small |large |old |new |red |blue |wooden |bright |]{{}}" + _SCENES,),
        (_EVERYDAY,),
        ("chair", "tree", "house"),
    ),
    "identity": _KindDefaults(
        "a person",
        (
            f"{_SHOTS} of {{}}[| smiling| laughing| talking| sitting| standing| reading| waving]"
            + _SCENES,
        ),
        (f"{_SHOTS} of a [woman|man|person|crowd]{_SCENES}", _EVERYDAY),
        ("chair", "tree", "house"),
    ),
    "style": _KindDefaults(
        "anyone",
        (
            "[a painting|a print|an artwork|a sketch|a drawing|a canvas|a study|a mural] of "
            "[a house|a tree|a boat|a street|a lake|a bowl of fruit|a woman|a man|a field|a bridge"
            f"|a garden|a horse]{_SCENES} in the style of {{}}",
        ),
        (f"[a painting|a print|an artwork] of a [house|tree|boat|field]{_SCENES}", _EVERYDAY),
        ("chair", "tree", "house"),
    ),
    "explicit": _KindDefaults(
        "a harmless scene",
        (
            f"{_SHOTS} of {{}}[| in black and white| in color| from above| from afar| in detail"
            f"| up close| in soft light]{_SCENES}",
        ),
        (f"{_SHOTS} of a [clothed person|person in a coat]{_SCENES}", _EVERYDAY),
        ("chair", "tree", "house"),
    ),
}
"""What a kind of concept brings along where the user says nothing."""

_MINORS = re.compile(
    r"\b(child|children|childish|kids?|minors?|under-?age[d]?|teen|teens|teenagers?|teenaged?"
    r"|pre-?teens?|tweens?|adolescents?|infants?|bab(?:y|ies)|toddlers?|newborns?|juveniles?"
    r"|school-?(?:girls?|boys?|kids?|child(?:ren)?)|little (?:girls?|boys?)|young (?:girls?|boys?)"
    r"|girls?|boys?|loli(?:ta|con|s)?|shota(?:con)?|youths?|under (?:18|eighteen)"
    r"|(?:1[0-7]|[1-9])[- ]?(?:years?|yrs?)[- ]?olds?|(?:1[0-7]|[1-9]) ?y/?o)\b",
    re.IGNORECASE,
)


def refuse_minors(kind: str, texts: Iterable[str]) -> None:
    """Refuse explicit work that names minors; other kinds are not affected.

    Raises:
        ValueError: `kind` is `explicit` and a text names a minor.
    """
    if kind == "explicit" and any(_MINORS.search(text) for text in texts):
        raise ValueError("concepts of kind 'explicit' must not name minors; Expunge refuses this")


@dataclass(frozen=True)
class Prompt:
    """One line of text that asks for a concept.

    Attributes:
        text: what the model is told.
        concept: name of the concept the picture should show.
        probe: how the text asks.
    """

    text: str
    concept: str
    probe: Probe = "plain"

    def seed(self, index: int = 0) -> int:
        """Seed of the `index`-th picture: 63 bits of the text's SHA-256, the same everywhere."""
        return int.from_bytes(_digest(f"{self.text}\0{index}")[:8]) >> 1


@dataclass(frozen=True)
class Concept:
    """Something a model can draw.

    Attributes:
        name: the words that name it.
        kind: `object`, `identity`, `style` or `explicit`.
        synonyms: other words for the same thing.
        anchor: the neutral phrase that takes its place; the article is part of it where
            `templates` has none before the slot.
        neighbours: names of things that look or read alike and must stay.
        unrelated: names of things far from it, audited for damage and never shown to an eraser.
        templates: patterns with a slot `{}` for the name.
        implied: patterns without a slot that evoke the concept without naming it.
        preserve: patterns without a slot an eraser may use to hold the rest of the model still.
    """

    name: str
    kind: Kind = "object"
    synonyms: tuple[str, ...] = ()
    anchor: str = ""
    neighbours: tuple[str, ...] = ()
    unrelated: tuple[str, ...] | None = None
    templates: tuple[str, ...] = ()
    implied: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("a concept needs a name, got an empty one")
        if self.kind not in get_args(Kind):
            near = difflib.get_close_matches(self.kind, get_args(Kind), 1, 0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            kinds = ", ".join(get_args(Kind))
            raise ValueError(f"kind must be one of {kinds}, got {self.kind!r}{hint}")
        defaults = KINDS[self.kind]
        for name in ("anchor", "templates", "preserve"):
            object.__setattr__(self, name, getattr(self, name) or getattr(defaults, name))
        if self.unrelated is None:
            object.__setattr__(self, "unrelated", defaults.unrelated)
        bare = [template for template in self.templates if "{}" not in template]
        if bare:
            raise ValueError(f"a template needs a slot {{}} for the concept, got {bare[0]!r}")
        refuse_minors(self.kind, (self.name, *self.synonyms, *self.templates, *self.implied))

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    def texts(self, name: str, split: Split | None = None, limit: int | None = None) -> list[str]:
        """Prompts of this concept's templates with `name` in the slot."""
        filled = (fill(t, name) for pattern in self.templates for t in expand(pattern))
        return spread(filled, split, limit)

    def pairs(
        self, split: Split, limit: int | None = None, name: str | None = None
    ) -> list[tuple[str, str]]:
        """Prompts with the concept, each beside the same prompt with the anchor."""
        other = {
            fill(t, name or self.name): fill(t, self.anchor)
            for pattern in self.templates
            for t in expand(pattern)
        }
        return [(text, other[text]) for text in spread(other, split, limit)]

    def prompts(self, probe: Probe, split: Split, limit: int | None = None) -> list[Prompt]:
        """Distinct prompts that ask for the concept in one way, at most `limit`."""
        if probe == "implied":
            filled = [fill(t) for pattern in self.implied for t in expand(pattern)]
        else:
            names = self.synonyms if probe == "synonym" else (self.name,)
            filled = [text for name in names for text in self.texts(name)]
        return [Prompt(text, self.name, probe) for text in spread(filled, split, limit)]

    def preserved(self, split: Split, limit: int) -> list[str]:
        """Prompts that must go on as before: half of neighbours, the rest of `preserve`."""
        near = [text for name in self.neighbours for text in self.texts(name)]
        chosen = spread(near, split, limit // 2)
        return chosen + draw(self.preserve, split, limit - len(chosen))

    def mentions(self, text: str) -> bool:
        return any(
            re.search(rf"\b{re.escape(n.casefold())}s?\b", text.casefold()) for n in self.names
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Concept:
        """The concept that `to_dict` described.

        Raises:
            ValueError: a key is unknown.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        unknown = set(data) - known
        if unknown:
            raise ValueError(f"a concept has no {sorted(unknown)}; it has {sorted(known)}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class Vocabulary:
    """The concepts a model is known to draw, by name.

    Attributes:
        concepts: name -> concept.
    """

    concepts: Mapping[str, Concept] = field(default_factory=dict)

    @classmethod
    def of(cls, concepts: Iterable[Concept]) -> Vocabulary:
        """A vocabulary of these concepts."""
        return cls({concept.name: concept for concept in concepts})

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a JSON list of concepts.

        Raises:
            ValueError: the file is not such a list.
        """
        try:
            return cls.of(Concept.from_dict(entry) for entry in json.loads(path.read_text()))
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no JSON list of concepts: {error}") from None

    def find(self, name: str) -> Concept | None:
        """The concept of that name or synonym, or the only one whose name begins with that word."""
        asked = name.strip().casefold()
        names = {alias.casefold(): c for c in self.concepts.values() for alias in c.synonyms}
        names |= {c.name.casefold(): c for c in self.concepts.values()}
        if asked in names:
            return names[asked]
        longer = [c for c in self.concepts.values() if c.name.casefold().startswith(f"{asked} ")]
        return longer[0] if len(longer) == 1 else None

    def resolve(self, name: str, kind: Kind | None = None, **changes: Any) -> Concept:
        """The known concept of that name, or a generic one of that kind; `changes` override fields.

        Raises:
            ValueError: the name is empty, or the known concept is of another kind.
        """
        found = self.find(name)
        if found is None:
            return Concept(name=name.strip(), kind=kind or "object", **changes)
        if kind and kind != found.kind:
            # An unknown kind is told as such before it is told to differ.
            Concept(name=name, kind=kind)
            raise ValueError(f"{found.name!r} is of kind {found.kind!r} here, got {kind!r}")
        return dataclasses.replace(found, **changes)
