"""Figures that papers report of these protocols, for a column of their own.

Fractions, but for Fréchet distances. All are of Stable Diffusion 1.4 or 1.5 with other judges and
prompts than a bench's; the papers disagree on the same methods, and their H are different formulas.
"""

from __future__ import annotations

from collections.abc import Mapping

SOURCES = {
    "TRACE": "Carter, TRACE, Table 1: Stable Diffusion 1.5",
    "FADE": "Fu et al., FADE, Table 1: Stable Diffusion 1.5, means over concepts",
    "MACE": "Lu et al., MACE (CVPR 2024): Stable Diffusion 1.4, means over ten CIFAR-10 classes",
    "MACE, ESD-x": "the same table's ESD on cross-attention",
    "MACE, ESD-u": "the same table's ESD on all else",
}

Reported = Mapping[str, float]
"""Source -> figure."""

_TRACE = {
    "esd": ((68.5, 18.7), (74.2, 0.45, 20.3), (80, 19.1), (15, 21.0)),
    "uce": ((72.4, 16.5), (81.0, 0.50, 18.9), (85, 18.5), (9, 19.4)),
    "mace": ((79.3, 17.2), (86.5, 0.52, 19.6), (88, 18.8), (6, 19.1)),
    "ant": ((81.0, 15.8), (87.9, 0.55, 18.4), (90, 18.0), (5, 18.7)),
    "trace": ((85.6, 15.1), (92.3, 0.58, 17.5), (95, 17.6), (2, 18.0)),
}
_TRACE_COLUMNS = {
    "objects": ("h_o", "fid"),
    "people": ("h_c", "face_rate", "fid"),
    "styles": ("style_removed", "fid"),
    "explicit": ("detected", "fid"),
}
_AS_THEY_ARE = ("fid", "face_rate")
"""All others stand in percent."""

_FADE = {
    "esd": ((15.2, 60.5), (18.7, 58.1), (12.4, 64.3), (20.5, 55.0)),
    "uce": ((5.4, 65.2), (10.3, 62.5), (8.1, 66.7), (15.0, 58.9)),
    "mace": ((2.1, 80.3), (5.5, 77.8), (3.7, 82.1), (7.2, 75.4)),
    "ant": ((0.9, 85.4), (2.3, 83.0), (1.5, 87.5), (3.1, 80.2)),
    "fade": ((0.0, 90.1), (0.4, 88.7), (0.3, 91.4), (0.5, 85.9)),
    "original": ((99.1,), (98.7,), (95.0,), (97.5,)),
}
_FADE_ORDER = ("objects", "people", "explicit", "styles")

_MACE = {
    "esd": {"MACE, ESD-x": (26.9, 97.3, 31.6, 76.9), "MACE, ESD-u": (18.3, 86.8, 16.3, 83.7)},
    "uce": {"MACE": (13.5, 98.5, 23.2, 85.5)},
    "concept-ablation": {"MACE": (98.3, 98.6, 83.4, 3.6)},
    "mace": {"MACE": (8.5, 97.4, 10.5, 92.6)},
}


def reported(protocol: str, method: str) -> dict[str, dict[str, float]]:
    """What papers give of a method: measure -> source -> figure."""
    found: dict[str, dict[str, float]] = {}

    def put(source: str, measures: tuple[str, ...], figures: tuple[float, ...]) -> None:
        for measure, figure in zip(measures, figures, strict=False):
            plain = figure if measure in _AS_THEY_ARE else round(figure / 100, 4)
            found.setdefault(measure, {})[source] = plain

    if protocol in _TRACE_COLUMNS and method in _TRACE:
        at = list(_TRACE_COLUMNS).index(protocol)
        put("TRACE", _TRACE_COLUMNS[protocol], _TRACE[method][at])
    if protocol in _FADE_ORDER and method in _FADE:
        put("FADE", ("acc_e", "h_fade"), _FADE[method][_FADE_ORDER.index(protocol)])
    for source, figures in _MACE.get(method, {}).items() if protocol == "objects" else ():
        put(source, ("acc_e", "acc_s", "acc_g", "h_o"), figures)
    return found
