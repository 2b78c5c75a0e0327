"""What a closed form is asked for one concept: texts and settings instead of matrices.

So the concepts of several erasures can be solved again together, with kept prompts that name none
of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from expunge.closed_form import Ridge, Solver
from expunge.null_space import NullSpace
from expunge.settings import Hold, TokenChoice

SOLVERS: dict[str, type[Solver]] = {"ridge": Ridge, "null_space": NullSpace}


@dataclass(frozen=True)
class Request:
    """What a closed form is asked to do for one concept.

    Attributes:
        pairs: prompts with the concept, and those that take their place.
        names: the words that stand for the concept in them.
        kept: prompts that stay, or with `hold="names"` names.
        solver: how the rest is held.
        tokens: which embeddings carry the concept.
        hold: what of `kept` stays.
        strength: η, the share of the edit that is made.
        erase_weight: of the concept's embeddings.
        preserve_weight: of the kept ones.
        name_weight: of the states of the concept's name.
        padding_weight: of a state behind the end of its text, of what goes and of what is kept.
        collapse: send the difference of source and guide to zero instead of source to guide.
    """

    pairs: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    kept: tuple[str, ...]
    solver: Solver
    tokens: TokenChoice = "suffix"
    hold: Hold = "states"
    strength: float = 1.0
    erase_weight: float = 1.0
    preserve_weight: float = 1.0
    name_weight: float = 1.0
    padding_weight: float = 1.0
    collapse: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "solver": self.solver.record()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Request:
        """The request that `to_dict` described.

        Raises:
            ValueError: it does not describe one.
        """
        try:
            settings = dict(data["solver"])
            solver = SOLVERS[settings.pop("name")](**settings)
            pairs = tuple((str(text), str(other)) for text, other in data["pairs"])
            rest = {"names": tuple(data["names"]), "kept": tuple(data["kept"])}
            return cls(**{**data, "pairs": pairs, "solver": solver, **rest})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the record of a closed form is damaged: {error}") from None
