"""Erasing people, after MACE (Lu et al., CVPR 2024) and TRACE, which adds the rate of faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from expunge.auditing.protocols.base import Domain
from expunge.concept import Kind

if TYPE_CHECKING:
    from expunge.auditing.protocols.figures import Figure, Key
    from expunge.auditing.protocols.seen import Look, Seen
    from expunge.measure.harmonic import Estimate, Resamples

FACE = "face"
WITH_FACE = "with a face"


@dataclass(frozen=True, kw_only=True)
class People(Domain):
    """One person erased at a time: are they gone, is someone still drawn, do all others stay?

    H_c = 2 / ((1 − Acc_e)⁻¹ + Acc_s⁻¹) (MACE, sec. 4.2). MACE counts only pictures in which a face
    is found, so that a model which draws no faces any more scores well: both are given, of all
    pictures and, as the scenario "with a face", of those. The rate of faces is that of pictures
    asked for the erased person.
    """

    kind: ClassVar[Kind] = "identity"
    also: ClassVar[tuple[str, ...]] = (FACE,)

    def particular(self, seen: Sequence[Seen]) -> dict[Key, Figure | None]:
        from expunge.auditing.protocols.figures import rate

        def own(each: Seen) -> list[Look]:
            return each.own("plain")

        return {
            ("face_rate", None): rate(seen, own, FACE),
            ("acc_e", WITH_FACE): rate(seen, own, within=FACE),
            ("acc_s", WITH_FACE): rate(seen, lambda each: each.others(), within=FACE),
        }

    def means(self, seen: Seen, resamples: Resamples) -> dict[Key, Estimate | None]:
        from expunge.auditing.protocols.figures import harmonic, share

        return {
            ("h_c", scenario): harmonic(
                share(seen.own("plain"), resamples, within=within, against=True),
                share(seen.others(), resamples, within=within),
            )
            for scenario, within in ((None, None), (WITH_FACE, FACE))
        }
