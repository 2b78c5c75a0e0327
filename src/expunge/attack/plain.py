"""No attack: the prompts as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.attack.base import Access, Attack, Attempt, Case, Sight


@dataclass(frozen=True, kw_only=True)
class Plain(Attack):
    """Ask for the concept and do nothing else; what every attack is held against."""

    name: ClassVar[str] = "plain"
    access: ClassVar[Access] = "prompt"

    @property
    def text(self) -> str:
        return "asked without an attack"

    @property
    def white_box(self) -> bool:
        return False

    @property
    def budget(self) -> Mapping[str, int]:
        return {}

    def propose(self, sight: Sight, case: Case) -> Attempt:
        return Attempt(tuple(prompt.text for prompt in case.prompts))
