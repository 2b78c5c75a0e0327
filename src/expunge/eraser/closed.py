"""What closed forms share: which embeddings go where, and what stays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.concept import Concept, kept_prompts
from expunge.eraser.base import Eraser, Result
from expunge.settings import Hold, TokenChoice, check_choice, check_counts, check_numbers

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.closed_form import Solver
    from expunge.request import Request


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Eraser):
    """A method that says where embeddings go, and solves for it in every layer that reads text.

    Targets are products with a layer's weight alone, so its bias counts once.

    Attributes:
        prompts: prompts with the concept that embeddings are taken from; 0 for the bare name.
        tokens: `last` is the name's last token; `concept` all of the name's; `suffix` also
            everything that follows; `end` the end-of-text token alone.
        synonyms: whether the concept's synonyms go as well.
        to_anchor: send to the concept's anchor; otherwise to the empty prompt, which stands for
            the state that begins every text.
        preserved: prompts that stay, or with `hold="names"` the most names; 0 for none.
        hold: what stays of them: all their `states`, or the last token of neighbours' `names`.
        name_weight: of the states of the concept's name beside all others that carry it.
        padding_weight: of a state behind the end of its text, of what goes and of what stays: there
            are dozens in a prompt, and models may hardly look at them.
    """

    prompts: int = 0
    tokens: TokenChoice = "last"
    synonyms: bool = False
    to_anchor: bool = False
    preserved: int = 0
    hold: Hold = "states"
    name_weight: float = 1.0
    padding_weight: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "prompts", "preserved")
        check_numbers(self, "name_weight", above=0)
        check_numbers(self, "padding_weight", least=0)
        check_choice(self, tokens=TokenChoice, hold=Hold)

    @abstractmethod
    def solver(self) -> Solver:
        """How the rest of the model is held."""

    def request(self, concept: Concept) -> Request:
        """Where which embeddings of a concept go, and what stays."""
        weights = {"name_weight": self.name_weight, "padding_weight": self.padding_weight}
        return request(concept, self.solver(), self, **weights)

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        return solved(backbone, concepts, {c.name: self.request(c) for c in concepts})


def solved(
    backbone: Backbone, concepts: Sequence[Concept], requests: Mapping[str, Request]
) -> Result:
    """What a closed form alone makes."""
    from expunge.erasure import Part
    from expunge.text_edit import solve

    changes = solve(backbone, requests, concepts)
    return Result([Part(c, closed=changes[c.name]) for c in concepts], requests)


def request(concept: Concept, solver: Solver, settings: Any, **more: Any) -> Request:
    """A concept's request, with the texts that a method's settings choose.

    Args:
        concept: what goes.
        solver: how the rest is held.
        settings: an eraser with the attributes of `ClosedForm`.
        more: further fields of the request.
    """
    from expunge.request import Request
    from expunge.text_rows import EMPTY

    names = concept.names if settings.synonyms else (concept.name,)
    pairs = [
        (text, anchor if settings.to_anchor else EMPTY)
        for name in names
        for text, anchor in (
            concept.pairs("train", settings.prompts, name)
            if settings.prompts
            else [(name, concept.anchor)]
        )
    ]
    kept: Sequence[str] = concept.neighbours[: settings.preserved]
    if settings.hold == "states":
        kept = kept_prompts([concept], "train", settings.preserved)
    return Request(
        tuple(pairs),
        tuple(names),
        tuple(kept),
        solver,
        tokens=settings.tokens,
        hold=settings.hold if kept else "none",
        **more,
    )
