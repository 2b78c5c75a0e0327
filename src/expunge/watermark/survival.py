"""From what was read of every picture to rates with intervals, and what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.backbone.base import Backbone
from expunge.measure.rates import Rate
from expunge.watermark.edit.base import Edit
from expunge.watermark.edit.guided import Guided
from expunge.watermark.edit.redraw import Redraw
from expunge.watermark.reported import reported
from expunge.watermark.scheme.base import Bits, Reading, Scheme

Record = dict[str, Any]
"""What one unit found, one entry a picture in each list."""

PAIRS = ("original_marked", "marked_edited", "original_edited")
CONTENT_FLOOR = 15.0
"""dB between marked and edited picture; below it a redrawn picture shows something else."""


def outcomes(scheme: Scheme, reading: Reading, payloads: Bits, rate: float) -> Record:
    """What a reading says of each picture, given the payloads that were embedded."""
    found: Record = {"detected": scheme.detect(reading, payloads, rate).tolist()}
    if not scheme.payload_bits:
        assert reading.p_values is not None
        return found | {"p_value": reading.p_values.tolist()}
    right = (reading.bits == scheme.code.encode(payloads)).sum(axis=1)
    decoded = scheme.code.decode(reading.bits)
    whole = (decoded.payloads == payloads).all(axis=1)
    return found | {
        "right": right.tolist(),
        "whole": (decoded.sure & whole).tolist(),
        "wrong": (decoded.sure & ~whole).tolist(),
    }


def cell(scheme: Scheme, edit: Edit, record: Record, backbone: Backbone | None) -> dict[str, Any]:
    """The figures of one scheme under one edit; all rates are fractions with 95 % intervals."""
    detected = Rate.of(np.array(record["detected"], np.bool_))
    found: dict[str, Any] = {
        "scheme": scheme.label,
        "edit": edit.label,
        "level": edit.strength,
        "unit": edit.unit,
        "log_snr": _log_snr(edit, backbone),
        "n": detected.n,
        "bit_accuracy": None,
        "ci": None,
        "advantage": None,
        "payload_rate": None,
        "payload_ci": None,
        "wrong_payload_rate": None,
        "declared_failure_rate": None,
        "detection_rate": detected.value,
        "detection_ci": list(detected.interval()),
        "white_box": isinstance(edit, Guided),
        "psnr": float(np.mean(record["quality"]["marked_edited"]["psnr"])),
        "quality": {pair: _means(record["quality"][pair]) for pair in PAIRS},
        "reported": reported(scheme.name, edit.label, edit.strength),
    }
    if "right" not in record:
        return found
    n = detected.n
    bits = Rate.of_counts(record["right"], [scheme.raw_bits] * n)
    whole, wrong = (Rate.of(np.array(record[key], np.bool_)) for key in ("whole", "wrong"))
    return found | {
        "bit_accuracy": bits.value,
        "ci": list(bits.interval()),
        "advantage": 2 * bits.value - 1,
        "payload_rate": whole.value,
        "payload_ci": list(whole.interval()),
        "wrong_payload_rate": wrong.value,
        "declared_failure_rate": 1 - whole.value - wrong.value,
    }


def _log_snr(edit: Edit, backbone: Backbone | None) -> float | None:
    if backbone is None or edit.unit != "noise level" or not edit.strength:
        return None
    found = backbone.log_snr(edit.strength)
    return found if np.isfinite(found) else None


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Mean of every measure, and half the width of PSNR's 95 % interval."""
    means: dict[str, Any] = {
        name: float(np.mean(each)) if each else None for name, each in values.items()
    }
    spread: NDArray[np.float64] = np.asarray(values["psnr"], np.float64)
    half = 1.96 * spread.std(ddof=1) / len(spread) ** 0.5 if len(spread) > 1 else None
    return means | {"psnr_half_width": half}


def flags(
    cells: Sequence[Mapping[str, Any]],
    unmarked: Sequence[Mapping[str, Any]],
    edits: Sequence[Edit],
    backbone: Backbone | None,
    lpips: bool,
) -> list[dict[str, Any]]:
    """What a reader must know before believing the figures."""
    found: list[dict[str, Any]] = []

    def flag(code: str, text: str, scheme: str | None = None, edit: str | None = None) -> None:
        found.append({"code": code, "scheme": scheme, "edit": edit, "text": text})

    redrawn = {edit.label for edit in edits if isinstance(edit, Redraw)}
    for each in cells:
        _alarms(each, redrawn, flag)
    _control(cells, redrawn, flag)
    for each in unmarked:
        if each["worst_ci"][0] > each["asked"] or each["mean_ci"][0] > each["asked"]:
            flag(
                "false-positives",
                f"{each['scheme']}: unmarked pictures pass for marked ones in {each['mean']:.3%} "
                f"(worst key {each['worst']:.2%}), where {each['asked']:.2%} was asked for; "
                "detection rates say less than their threshold claims.",
                each["scheme"],
            )
        if each["n"] < 3000:
            flag(
                "few-unmarked",
                f"{each['scheme']}: only {each['n']} unmarked pictures; 3,000 show a rate of "
                "0.1 %.",
                each["scheme"],
            )
    if cells and cells[0]["n"] < 50:
        flag("few-pictures", f"Only {cells[0]['n']} pictures, so wide intervals.")
    if getattr(getattr(backbone, "pipe", None), "watermark", None) is not None:
        flag(
            "second-watermark",
            "This pipeline marks what it draws (load it with add_watermarker=False); pictures "
            "here are decoded past that step and carry only the scheme's mark.",
        )
    if not lpips:
        flag("no-lpips", "LPIPS was not measured: it needs torchvision (expunge[metrics]).")
    return found


def _alarms(each: Mapping[str, Any], redrawn: set[str], flag: Any) -> None:
    name = each["edit"] if each["level"] is None else f"{each['edit']} {each['level']:.3g}"
    where = (each["scheme"], each["edit"])
    if each["ci"] and each["ci"][1] < 0.5:
        flag(
            "below-chance",
            f"{each['scheme']} under {name}: bit accuracy is below chance, which a destroyed mark "
            "is not; look for a fixed message or a wrong sign.",
            *where,
        )
    if each["edit"] == "none" and each["ci"] and each["bit_accuracy"] < 0.9:
        flag(
            "unreadable",
            f"{each['scheme']} reads only {each['bit_accuracy']:.1%} of bits before any edit, so "
            "what an edit takes away says little.",
            *where,
        )
    if each["edit"] in redrawn and each["psnr"] < CONTENT_FLOOR:
        flag(
            "content-changed",
            f"{each['scheme']} under {name}: {each['psnr']:.1f} dB from the marked picture, so the "
            "edit shows something else; it counts neither as survival nor as removal.",
            *where,
        )


def _control(cells: Sequence[Mapping[str, Any]], redrawn: set[str], flag: Any) -> None:
    """Regeneration shows something only where the mark outlives the autoencoder."""
    for scheme in dict.fromkeys(cell["scheme"] for cell in cells):
        ours = [cell for cell in cells if cell["scheme"] == scheme and cell["ci"]]
        control = next((cell for cell in ours if cell["edit"] == "vae"), None)
        others = [cell for cell in ours if cell["edit"] in redrawn - {"vae"}]
        if not others:
            continue
        if control is None:
            flag(
                "no-control",
                f"{scheme}: no edit vae among the edits, so what diffusion took away is not told "
                "from what the autoencoder did.",
                scheme,
            )
        elif control["ci"][0] <= 0.5:
            flag(
                "gone-at-vae",
                f"{scheme}: the mark is already at chance after the autoencoder alone, so "
                "regeneration shows nothing about it.",
                scheme,
            )
