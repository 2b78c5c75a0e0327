"""Figures that papers report, for a column of their own."""

from __future__ import annotations

from typing import Any

SOURCE = "Vanishing Watermarks, Table 1: decoding accuracy in %, 500 COCO pictures, SD 1.5"
NOTE = (
    "The paper calls these figures decoding accuracy. Where they lie far below 50 % they cannot be "
    "bit accuracy, since a destroyed mark still gets half of its bits right, so they can only be "
    "payload success; its VINE has no error correction. The PSNR of 31.8 dB it gives for "
    "regeneration is above what Stable Diffusion's autoencoder alone reaches at 256 x 256 (about "
    "23 dB): compare the edit vae."
)
_EDITS: tuple[tuple[str, float | None], ...] = (
    ("none", None),
    ("jpeg", 50),
    ("crop", 0.1),
    ("noise", 10 / 255),
    ("regeneration", 0.3),
    ("guided", 0.3),
)
_TABLE = {
    "stegastamp": (99.8, 92.5, 88.1, 90.3, 7.4, 0.0),
    "trustmark": (99.9, 94.7, 91.2, 95.5, 12.8, 0.0),
    "vine": (100.0, 96.4, 93.0, 97.8, 24.5, 1.6),
}


def reported(scheme: str, edit: str, level: float | None) -> float | None:
    """The paper's figure for a scheme under an edit, in %, None where it gives none."""
    for (name, at), figure in zip(_EDITS, _TABLE.get(scheme, ()), strict=False):
        same = at is None if level is None else at is not None and abs(level - at) < 1e-3
        if name == edit and same:
            return figure
    return None


def table() -> dict[str, Any]:
    """The whole table, for a report."""
    return {
        "source": SOURCE,
        "note": NOTE,
        "edits": [{"edit": edit, "level": level} for edit, level in _EDITS],
        "schemes": {scheme: list(figures) for scheme, figures in _TABLE.items()},
        "quality": {
            "regeneration": {"psnr": 31.8, "ssim": 0.95, "lpips": 0.03},
            "guided": {"psnr": 30.5, "ssim": 0.93, "lpips": 0.05},
        },
    }
