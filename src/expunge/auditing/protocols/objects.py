"""Erasing objects, after MACE (Lu et al., CVPR 2024), whose measures TRACE and others use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from expunge.auditing.protocols.base import Domain
from expunge.concept import Kind

if TYPE_CHECKING:
    from expunge.auditing.protocols.figures import Key
    from expunge.auditing.protocols.seen import Seen
    from expunge.measure.harmonic import Estimate, Resamples


@dataclass(frozen=True, kw_only=True)
class Objects(Domain):
    """One object erased at a time: is it gone, by synonyms too, and do all others stay?

    H_o = 3 / ((1 − Acc_e)⁻¹ + Acc_s⁻¹ + (1 − Acc_g)⁻¹) (MACE, eq. 8), of each object; over several
    the mean of theirs, as MACE's tables have it. FADE scores the same pictures by another H.
    """

    kind: ClassVar[Kind] = "object"

    def means(self, seen: Seen, resamples: Resamples) -> dict[Key, Estimate | None]:
        from expunge.auditing.protocols.figures import harmonic, share

        erased = share(seen.own("plain"), resamples, against=True)
        stays = share(seen.others(), resamples)
        general = share(seen.own("synonym"), resamples, against=True)
        return {("h_o", None): harmonic(erased, stays, general)}
