"""What the papers' protocols share: one domain of concepts, erased one by one, asked in turn.

Lu et al. ("MACE", CVPR 2024) set the measures, and those that follow took them over: of what was
erased by its name (Acc_e) and by other names (Acc_g), and of everything else of the domain by its
own name (Acc_s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from expunge.concept import Concept, Kind
from expunge.vocabulary import Vocabulary, check_distinct

if TYPE_CHECKING:
    from expunge.auditing.protocols.figures import Figure, Key
    from expunge.auditing.protocols.seen import Seen
    from expunge.measure.harmonic import Estimate, Resamples

MEASURES = (
    *("acc_e", "acc_s", "acc_g", "h_o", "h_c", "face_rate", "style_removed", "detected"),
    *("h_fade", "fid", "clip", "broken", "seconds", "bytes"),
)
"""Everything a row can be about, in the order of tables."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One domain's protocol; settings, if it has any, are its fields.

    Attributes:
        kind: of its concepts.
        implied: whether concepts are asked for without being named too.
        also: what else is looked for in every picture.
    """

    kind: ClassVar[Kind]
    implied: ClassVar[bool] = False
    also: ClassVar[tuple[str, ...]] = ()

    def particular(self, seen: Sequence[Seen]) -> dict[Key, Figure | None]:
        """Rates of this domain alone, over all that was erased by one method."""
        return {}

    def means(self, seen: Seen, resamples: Resamples) -> dict[Key, Estimate | None]:
        """Harmonic means of this domain alone, of one erased concept."""
        return {}

    def concepts(self, vocabulary: Vocabulary, names: Sequence[str] = ()) -> list[Concept]:
        """What is erased, one after the other: what is named, or all of the domain.

        Raises:
            ValueError: a name is of another domain or given twice, or none is given and none known.
        """
        if not names:
            found = self._known(vocabulary)
            if not found:
                raise ValueError(
                    f"no concept of kind {self.kind!r} is known of this model; name what to erase "
                    "(--concepts)"
                )
            return found
        found = [vocabulary.resolve(name, self.kind) for name in names]
        check_distinct(found)
        return found

    def others(
        self, vocabulary: Vocabulary, concept: Concept, erased: Sequence[Concept]
    ) -> list[Concept]:
        """What must stay: all else of the domain; the concept's neighbours where there is none.

        Args:
            vocabulary: what the model is known to draw.
            concept: what goes.
            erased: all that goes in turn; what is no part of the vocabulary stays in the others'.

        Raises:
            ValueError: there is nothing else.
        """
        every = {each.name: each for each in (*self._known(vocabulary), *erased)}
        found = [each for each in every.values() if each.name != concept.name]
        alone = replace(concept, synonyms=(), neighbours=(), implied=())
        for name in concept.neighbours if not found else ():
            found.append(vocabulary.find(name) or replace(alone, name=name))
        if not found:
            raise ValueError(
                f"nothing else of the domain is known beside {concept.name!r}, so what stays could "
                "not be measured; name a second concept (--concepts)"
            )
        return found

    def _known(self, vocabulary: Vocabulary) -> list[Concept]:
        return [each for each in vocabulary.concepts.values() if each.kind == self.kind]
