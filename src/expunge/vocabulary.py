"""The concepts a model is known to draw."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.concept import Concept, Kind
from expunge.concept_checks import check_name
from expunge.mentions import brief, plain


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
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
            raise ValueError(f"{path} is no JSON list of concepts: {error}") from None

    def find(self, name: str) -> Concept | None:
        """The concept of that name or synonym, or the only one whose name begins with that word."""
        asked = plain(name)
        names = {plain(alias): c for c in self.concepts.values() for alias in c.synonyms}
        names |= {plain(c.name): c for c in self.concepts.values()}
        if asked in names:
            return names[asked]
        longer = [c for c in self.concepts.values() if plain(c.name).startswith(f"{asked} ")]
        return longer[0] if len(longer) == 1 else None

    def resolve(self, name: str, kind: Kind | None = None, **changes: Any) -> Concept:
        """The known concept of that name, or a generic one of that kind; `changes` override fields.

        Raises:
            ValueError: the name is empty or looks like a known one mistyped, or the known concept
                is of another kind.
        """
        check_name("a concept's name", name)
        found = self.find(name)
        if found is None:
            self._refuse_typo(name)
            return Concept(name=name.strip(), kind=kind or "object", **changes)
        if kind and kind != found.kind:
            # An unknown kind is told as such before it is told to differ.
            Concept(name=name, kind=kind)
            raise ValueError(f"{found.name!r} is of kind {found.kind!r} here, got {kind!r}")
        return dataclasses.replace(found, **changes)

    def _refuse_typo(self, name: str) -> None:
        names = {plain(alias): alias for c in self.concepts.values() for alias in c.names}
        near = difflib.get_close_matches(plain(name), names, 1, 0.65)
        if near:
            raise ValueError(
                f"this model is known to draw {len(self.concepts)} concepts, and {brief(name)} is "
                f"none of them; did you mean {names[near[0]]!r}?"
            )


def check_distinct(concepts: Sequence[Concept]) -> None:
    """Refuse concepts that go together and are the same thing.

    Raises:
        ValueError: a concept is there twice, or is another one's synonym.
    """
    names: dict[str, Concept] = {}
    for concept in concepts:
        if plain(concept.name) in names:
            raise ValueError(f"{brief(concept.name)} is asked for twice; ask for it once")
        names[plain(concept.name)] = concept
    for concept in concepts:
        for synonym in concept.synonyms:
            if plain(synonym) in names:
                raise ValueError(
                    f"{brief(synonym)} is a synonym of {brief(concept.name)} and also asked for "
                    "by itself; ask for one of them"
                )
