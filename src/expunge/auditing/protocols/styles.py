"""Erasing artists' styles, after ESD (Gandikota et al., ICCV 2023) and TRACE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from expunge.auditing.protocols.base import Domain
from expunge.concept import Kind

if TYPE_CHECKING:
    from expunge.auditing.protocols.figures import Figure, Key
    from expunge.auditing.protocols.seen import Seen


@dataclass(frozen=True, kw_only=True)
class Styles(Domain):
    """One style erased at a time: the share of pictures without it, and whether all others stay.

    A style counts as shown by the judge's first choice. Published "CLIP accuracies" of styles are
    sometimes means of probabilities, which are no shares of pictures.
    """

    kind: ClassVar[Kind] = "style"

    def particular(self, seen: Sequence[Seen]) -> dict[Key, Figure | None]:
        from expunge.auditing.protocols.figures import rate

        gone = rate(seen, lambda each: each.own("plain"), against=True)
        return {("style_removed", None): gone}
