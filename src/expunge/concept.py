"""What is to go: concepts, the prompts that ask for them, and the prompts that must stay."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from expunge.concept_checks import (
    check_distinct_names,
    check_kind,
    check_name,
    check_patterns,
    pieces,
    several,
)
from expunge.kinds import KINDS
from expunge.mentions import Mentions, brief, plain, plural
from expunge.minors import refuse_minors
from expunge.prompts import Split, digest, draw, expand, fill, for_many, spread

Kind = Literal["object", "identity", "style", "explicit"]
Probe = Literal["plain", "synonym", "implied"]
"""How a prompt asks for a concept: by its name, by another name, or without naming it."""


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
        return int.from_bytes(digest(f"{self.text}\0{index}")[:8]) >> 1


@dataclass(frozen=True)
class Concept:
    """Something a model can draw.

    Attributes:
        name: the words that name it, at most 200 characters, like all names here.
        kind: `object`, `identity`, `style` or `explicit`.
        synonyms: other words for the same thing.
        anchor: the neutral phrase that takes its place; its article gives way to a template's.
        neighbours: names of things that look or read alike and must stay.
        unrelated: names of things far from it, audited for damage and never shown to an eraser.
        templates: patterns with a slot `{}` for the name.
        implied: patterns without a slot that evoke the concept without naming it.
        preserve: patterns without a slot an eraser may use to hold the rest of the model still.

    Raises:
        ValueError: a text is of the wrong type, empty, too long or unprintable; a name is given
            twice; a pattern cannot be read; a text of kind `explicit` names a minor.
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
        check_name("name", self.name)
        check_kind(self.kind, get_args(Kind))
        defaults = KINDS[self.kind]
        for name in ("anchor", "templates", "preserve"):
            object.__setattr__(self, name, getattr(self, name) or getattr(defaults, name))
        if self.unrelated is None:
            object.__setattr__(self, "unrelated", defaults.unrelated)
        for name in ("synonyms", "neighbours", "unrelated", "templates", "implied", "preserve"):
            object.__setattr__(self, name, several(name, getattr(self, name)))
        check_name("anchor", self.anchor)
        check_distinct_names(self.name, self.synonyms, self.neighbours)
        check_patterns(self.templates, self.implied, self.preserve)
        others = (self.anchor, *self.neighbours, *(self.unrelated or ()))
        refuse_minors(self.kind, (*self.names, *others))
        refuse_minors(self.kind, pieces(self.templates + self.implied + self.preserve))

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    def mentions(self, text: str) -> bool:
        """Whether a text names the concept: a name or synonym, singular or plural, in any case."""
        return _mentions(self.names)(text)

    def _told(self, texts: Sequence[str]) -> list[str]:
        """Texts a model may be told: what patterns assemble is looked at as a whole."""
        refuse_minors(self.kind, texts)
        return list(texts)

    def texts(self, name: str, split: Split | None = None, limit: int | None = None) -> list[str]:
        """Prompts of this concept's templates with `name` in the slot."""
        filled = (fill(t, name) for pattern in self.templates for t in expand(pattern))
        return self._told(spread(filled, split, limit))

    def pairs(
        self,
        split: Split,
        limit: int | None = None,
        name: str | None = None,
        *,
        many: bool = False,
    ) -> list[tuple[str, str]]:
        """Prompts with the concept, each beside the same prompt with the anchor.

        Args:
            split: where prompts come from.
            limit: pairs; None for all.
            name: one of the concept's, None for `name`.
            many: ask for several of it, in the plural; the anchor is in the plural then too.

        Raises:
            ValueError: the anchor names the concept, so that nothing would change.
        """
        if self.mentions(self.anchor):
            raise ValueError(
                f"the anchor {brief(self.anchor)} names {brief(self.name)} itself, so nothing "
                "would change; give it another anchor"
            )
        name, anchor = name or self.name, self.anchor
        templates = [t for pattern in self.templates for t in expand(pattern)]
        if many:
            name, anchor, templates = plural(name), plural(anchor), list(map(for_many, templates))
        other = {fill(t, name): fill(t, anchor) for t in templates}
        asked = self._told(spread(other, split, limit))
        return list(zip(asked, self._told([other[text] for text in asked]), strict=True))

    def training_pairs(
        self, limit: int, *, synonyms: bool, plurals: bool = False, split: Split = "train"
    ) -> list[tuple[str, str]]:
        """At most `limit` pairs, names taking turns; a name with fewer prompts leaves its turns.

        Args:
            limit: pairs.
            synonyms: whether synonyms are asked for too, or the name alone.
            plurals: whether plurals are asked for too; objects alone have them.
            split: where prompts come from.

        Raises:
            ValueError: the templates give no prompt of that split.
        """
        names = self.names if synonyms else (self.name,)
        forms = (False, True) if plurals and self.kind == "object" else (False,)
        each = [self.pairs(split, limit, name, many=many) for many in forms for name in names]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*each))
        found = dict(pair for pair in turns if pair is not None)
        if not found and limit > 0:
            raise ValueError(
                f"the templates of {brief(self.name)} give no {split} prompt; give it templates "
                "with more alternatives"
            )
        return list(found.items())[:limit]

    def prompts(self, probe: Probe, split: Split, limit: int | None = None) -> list[Prompt]:
        """Distinct prompts that ask for the concept in one way, at most `limit`."""
        if probe == "implied":
            filled = [fill(t) for pattern in self.implied for t in expand(pattern)]
        else:
            names = self.synonyms if probe == "synonym" else (self.name,)
            filled = [fill(t, n) for n in names for p in self.templates for t in expand(p)]
        told = self._told(spread(filled, split, limit))
        if probe == "implied" and any(map(self.mentions, told)):
            named = next(filter(self.mentions, told))
            raise ValueError(
                f"an implied prompt must not name {brief(self.name)}, got {brief(named)}"
            )
        return [Prompt(text, self.name, probe) for text in told]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Concept:
        """The concept that `to_dict` described.

        Raises:
            ValueError: it is no such description.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or "name" not in data:
            raise ValueError(f"a concept is an object with a name, got {brief(data)}")
        unknown = set(data) - known
        if unknown:
            raise ValueError(f"a concept has no {brief(sorted(unknown))}; it has {sorted(known)}")
        return cls(**data)


@lru_cache(maxsize=4096)
def _mentions(names: tuple[str, ...]) -> Mentions:
    return Mentions(names)


def kept_names(concepts: Sequence[Concept]) -> list[str]:
    """Names of neighbours that must stay: of all concepts, none of which they name."""
    gone = Mentions(name for concept in concepts for name in concept.names)
    near = {plain(name): name for concept in concepts for name in concept.neighbours}
    return [name for name in near.values() if not gone(name)]


def kept_prompts(concepts: Sequence[Concept], split: Split, limit: int) -> list[str]:
    """Prompts that must go on as before, none of which names any of the concepts that go.

    Concepts take turns, each with a prompt of a neighbour and one of its `preserve` patterns, so
    that none is held more than others; a prompt of two concepts counts once.

    Args:
        concepts: all that go together: what one keeps must not be what another erases.
        split: where prompts come from.
        limit: prompts; fewer come where no more are left.

    Raises:
        ValueError: `limit` is negative, or a prompt names a minor beside an explicit concept.
    """
    if limit < 0:
        raise ValueError(f"limit must not be negative, got {limit}")
    gone = Mentions(name for concept in concepts for name in concept.names)
    shared: dict[tuple[tuple[str, ...], tuple[str, ...]], Iterator[str]] = {}
    turns: deque[Iterator[str]] = deque()
    for concept in concepts:
        near = tuple(name for name in concept.neighbours if not gone(name))
        for key in ((concept.templates, near), (concept.preserve, ("",))):
            # Concepts with the same patterns go through them together, or all would say the same.
            turns.append(shared.setdefault(key, draw(key[0], split, names=key[1], without=gone)))
    chosen: dict[str, None] = {}
    while turns and len(chosen) < limit:
        text = next(turns[0], None)
        if text is None:
            turns.popleft()
            continue
        chosen[text] = None
        turns.rotate(-1)
    if any(concept.kind == "explicit" for concept in concepts):
        refuse_minors("explicit", chosen)
    return list(chosen)


def slug(name: str) -> str:
    """A name fit for files and adapters: `[a-z0-9-]` and a short hash."""
    return f"{_dashed(name)[:40]}-{_short_hash(name)}".lstrip("-")


def _dashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _short_hash(text: str) -> str:
    return digest(text).hex()[:6]


_RESERVED = re.compile(r"con|prn|aux|nul|(?:com|lpt)\d")
"""Names that Windows keeps for devices."""


def run_folder(names: Sequence[str]) -> str:
    """Default folder name of a run that erases these: `[a-z0-9-]`, at most 60 characters.

    "cat" and "cat-dog" speak for themselves; where letters are lost or concepts left out, a hash
    of all names keeps runs apart, as in "cat-dog-and-28-more-1a2b3c".
    """
    told = "-".join(filter(None, map(_dashed, names if len(names) <= 3 else names[:2])))
    more = f"-and-{len(names) - 2}-more" if len(names) > 3 else ""
    whole = all(re.fullmatch(r"[a-z0-9 -]+", name.lower()) for name in names)
    if whole and not more and told and len(told) <= 60 and not _RESERVED.fullmatch(told):
        return told
    hashed = f"{more}-{_short_hash(chr(0).join(names))}"
    return (told[: 60 - len(hashed)].rstrip("-") + hashed).lstrip("-")
