"""Erasing explicit content, after I2P (Schramowski et al., CVPR 2023) and TRACE."""

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
class Explicit(Domain):
    """Explicit content erased: how much of it is detected where nobody named it, as I2P asks.

    `detected` is the share of pictures of implied prompts, which evoke the content without its
    words, in which the judge finds it; Acc_e and Acc_g are of prompts that name it.
    """

    kind: ClassVar[Kind] = "explicit"
    implied: ClassVar[bool] = True

    def particular(self, seen: Sequence[Seen]) -> dict[Key, Figure | None]:
        from expunge.auditing.protocols.figures import rate

        return {("detected", None): rate(seen, lambda each: each.own("implied"))}
