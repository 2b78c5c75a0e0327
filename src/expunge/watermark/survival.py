"""From what was read of every picture to rates with intervals, and what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.backbone.base import Backbone
from expunge.measure.rates import Rate
from expunge.watermark.edit.base import Edit
from expunge.watermark.reported import reported
from expunge.watermark.scheme.base import Bits, Reading, Scheme

Record = dict[str, Any]
"""What one unit found, one entry a picture in each list."""

PAIRS = ("original_marked", "marked_edited", "original_edited")
CONTENT_FLOOR = 15.0
"""dB between marked and edited picture; below it a redrawn picture shows something else."""
CHANCE = 0.5
"""Share of bits that a destroyed mark still gets right."""
READABLE = 0.9
"""Share of bits, or of marks, that a scheme should read before any edit."""
ENOUGH = 3000
"""Unmarked pictures that check a threshold."""
SURE = 0.999
"""How sure an alarm about one of many cells is."""


def outcomes(scheme: Scheme, reading: Reading, payloads: Bits, rate: float) -> Record:
    """What a reading says of each picture, given the payloads that were embedded."""
    found: Record = {"detected": scheme.detect(reading, payloads, rate).tolist()}
    if not scheme.payload_bits:
        return found
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
        "redrawn": edit.redraws,
        "white_box": edit.white_box,
        "below_chance": False,
        "content_changed_rate": _changed(edit, record),
        "psnr": float(np.mean(record["quality"]["marked_edited"]["psnr"])),
        "quality": {pair: _means(record["quality"][pair]) for pair in PAIRS},
        "reported": reported(scheme.label, edit.label, edit.strength),
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
        "below_chance": bits.interval(SURE)[1] < CHANCE,
        "payload_rate": whole.value,
        "payload_ci": list(whole.interval()),
        "wrong_payload_rate": wrong.value,
        "declared_failure_rate": 1 - whole.value - wrong.value,
    }


def _changed(edit: Edit, record: Record) -> float:
    """Share of the pictures that a model drew too far from the marked ones."""
    distances = np.array(record["quality"]["marked_edited"]["psnr"])
    return float((distances < CONTENT_FLOOR).mean()) if edit.redraws else 0.0


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


class _Flags:
    """Collects what a reader must know before believing the figures."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def add(self, code: str, text: str, cell: Mapping[str, Any] | None = None) -> None:
        about = {key: (cell or {}).get(key) for key in ("scheme", "edit", "level", "editor")}
        self.found.append({"code": code, **about, "text": text})


def flags(
    cells: Sequence[Mapping[str, Any]],
    unmarked: Sequence[Mapping[str, Any]],
    schemes: Sequence[Scheme],
    backbone: Backbone | None,
    rate: float,
    lpips: bool,
) -> list[dict[str, Any]]:
    """What a reader must know before believing the figures.

    Args:
        cells: of the log.
        unmarked: of the log.
        schemes: of the bench.
        backbone: the model, None where there is none.
        rate: false positive rate of detection.
        lpips: whether it was measured.
    """
    flags = _Flags()
    for cell in cells:
        _alarms(cell, flags)
    for scheme in schemes:
        _control([cell for cell in cells if cell["scheme"] == scheme.label], rate, flags)
    for row in unmarked:
        _false_positives(row, flags)
    if cells and cells[0]["n"] < 50:
        flags.add("few-pictures", f"Only {cells[0]['n']} pictures, so wide intervals.")
    if getattr(getattr(backbone, "pipe", None), "watermark", None) is not None:
        flags.add(
            "second-watermark",
            "This pipeline marks what it draws (load it with add_watermarker=False); pictures "
            "here are decoded past that step and carry only the scheme's mark.",
        )
    if not lpips:
        flags.add("no-lpips", "LPIPS was not measured: it needs torchvision (expunge[metrics]).")
    return flags.found


def _named(cell: Mapping[str, Any]) -> str:
    level = "" if cell["level"] is None else f" {cell['level']:.3g}"
    return f"{cell['scheme']} under {cell['edit']}{level}"


def _alarms(cell: Mapping[str, Any], flags: _Flags) -> None:
    if cell["below_chance"]:
        flags.add(
            "below-chance",
            f"{_named(cell)}: bit accuracy is below chance, which a destroyed mark is not; look "
            "for a fixed message or a wrong sign.",
            cell,
        )
    share = cell["bit_accuracy"] if cell["ci"] else cell["detection_rate"]
    if cell["edit"] == "none" and share < READABLE:
        what = "of bits" if cell["ci"] else "of marks"
        flags.add(
            "unreadable",
            f"{cell['scheme']} reads only {share:.1%} {what} before any edit, so what an edit "
            "takes away says little.",
            cell,
        )
    if cell["content_changed_rate"] > 0:
        flags.add(
            "content-changed",
            f"{_named(cell)}: {cell['content_changed_rate']:.0%} of the pictures lie at less than "
            f"{CONTENT_FLOOR:.0f} dB from the marked ones and show something else; they are in "
            "the rates and count neither as survival nor as removal.",
            cell,
        )


def _control(cells: Sequence[Mapping[str, Any]], rate: float, flags: _Flags) -> None:
    """Regeneration shows something only where the mark is seen to outlive the autoencoder."""
    others = [cell for cell in cells if cell["redrawn"] and cell["edit"] != "vae"]
    control = next((cell for cell in cells if cell["edit"] == "vae"), None)
    if not others:
        return
    if control is None:
        flags.add(
            "no-control",
            f"{others[0]['scheme']}: no edit vae among the edits, so what diffusion took away is "
            "not told from what the autoencoder did.",
            others[0] | {"edit": None, "level": None},  # type: ignore[operator]
        )
    elif control["ci"][0] <= CHANCE if control["ci"] else control["detection_ci"][0] <= rate:
        flags.add(
            "gone-at-vae",
            f"{control['scheme']}: the mark is not shown to be above chance after the autoencoder "
            "alone, so regeneration shows nothing about it.",
            control,
        )


def _false_positives(row: Mapping[str, Any], flags: _Flags) -> None:
    if row["alarm"]:
        flags.add(
            "false-positives",
            f"{row['scheme']}: unmarked pictures pass for marked ones in {row['mean']:.3%} (worst "
            f"key {row['worst']:.2%}), where fair coins would in {row['law']:.3%} "
            f"({row['law_worst']:.2%}); detection rates say less than their threshold claims.",
            row,
        )
    if row["n"] < ENOUGH:
        flags.add(
            "few-unmarked",
            f"{row['scheme']}: only {row['n']} unmarked pictures; {ENOUGH:,} show a rate of 0.1 %.",
            row,
        )
