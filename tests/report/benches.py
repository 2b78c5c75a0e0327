"""Made-up logs of watermark benches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Log = dict[str, Any]
DASH = "\N{EN DASH}"

EDITS: tuple[tuple[str, float | None, str, float, float], ...] = (
    ("none", None, "", 0.999, 100.0),
    ("jpeg", 90.0, "quality", 0.99, 38.0),
    ("jpeg", 50.0, "quality", 0.93, 33.1),
    ("jpeg", 20.0, "quality", 0.81, 28.7),
    ("crop", 0.1, "share of each side", 0.88, 17.2),
    ("noise", 10 / 255, "σ/255", 0.96, 28.2),
    ("jpeg:50+crop:0.1", None, "", 0.79, 16.9),
    ("vae", None, "", 0.76, 29.3),
    ("regeneration", 0.1, "noise level", 0.62, 27.5),
    ("regeneration", 0.3, "noise level", 0.531, 24.4),
    ("regeneration", 0.6, "noise level", 0.507, 14.1),
    ("guided", 0.1, "noise level", 0.48, 26.3),
    ("guided", 0.3, "noise level", 0.43, 23.9),
)
"""Edit, level, unit, bit accuracy, and PSNR from marked to edited."""
DRAWN = {"vae", "regeneration", "guided"}
"""Edits among them in which a model draws."""
SCHEMES = {"learned": 32, "trustmark": 100, "tree-ring": 0}
"""Scheme -> bits in the picture."""


def around(rate: float, half: float = 0.021) -> list[float]:
    return [max(rate - half, 0.0), min(rate + half, 1.0)]


def cell(scheme: str, edit: str, level: float | None, unit: str, bits: float, psnr: float) -> Log:
    """A cell whose figures all differ, so that each can be looked for in the page."""
    shift = 0.0017 * list(SCHEMES).index(scheme)
    bits, payload = bits - shift, max(0.0, 2 * bits - 1.003 - shift)
    made: Log = {"scheme": scheme, "edit": edit, "level": level, "unit": unit, "n": 500}
    made |= {"log_snr": None if unit != "noise level" else 3.17 - 10 * (level or 0)}
    made |= dict.fromkeys(("bit_accuracy", "ci", "advantage", "payload_rate", "payload_ci"))
    made |= dict.fromkeys(("wrong_payload_rate", "declared_failure_rate"))
    found = (payload + bits) / 2
    made |= {"detection_rate": found, "detection_ci": around(found, 0.034)}
    made |= {"white_box": edit == "guided", "redrawn": edit in DRAWN, "psnr": psnr}
    made |= {"content_changed_rate": 0.0, "below_chance": False, "editor": "original"}
    far = {"psnr": psnr, "ssim": psnr / 101, "lpips": 3.3 / psnr, "psnr_half_width": 0.7}
    near = {"psnr": 36.2 + shift, "ssim": 0.987, "lpips": None, "psnr_half_width": 0.04}
    both = {"psnr": psnr - 0.3, "ssim": psnr / 103, "lpips": 3.6 / psnr, "psnr_half_width": None}
    made["quality"] = {"original_marked": near, "marked_edited": far, "original_edited": both}
    made["reported"] = 94.7 if (scheme, edit, level) == ("trustmark", "jpeg", 50.0) else None
    if SCHEMES[scheme]:
        made |= {"bit_accuracy": bits, "ci": around(bits), "advantage": 2 * bits - 1}
        made["below_chance"] = made["ci"][1] < 0.5
        made |= {"payload_rate": payload, "payload_ci": around(payload, 0.029)}
        wrong = (1 - payload) / 3
        made |= {"wrong_payload_rate": wrong, "declared_failure_rate": 1 - payload - wrong}
    return made


def draw(folder: Path, name: str, strength: int) -> str:
    """A little scene; marks and edits are a checkered shade on it."""
    picture = Image.new("RGB", (64, 64), "#bcdcf0")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 40, 64, 64), fill="#6a9a4f")
    pen.ellipse((20, 18, 44, 46), fill="#d63031")
    shade = (np.indices((64, 64)).sum(axis=0) // 4 % 2 * 2 - 1)[..., None] * strength
    pixels = np.clip(np.asarray(picture, np.int16) + shade, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return name


def example(folder: Path, made: Log, index: int) -> Log:
    kept = ("scheme", "edit", "level", "bit_accuracy", "psnr")
    stem = f"images/{index}-{made['scheme']}"
    strength = round(100 / made["psnr"])
    return {key: made[key] for key in kept} | {
        "picture": f"world {index}",
        "caption": f"a red ball on the grass, number {index}",
        "original": draw(folder, f"images/{index}.png", 0),
        "marked": draw(folder, f"{stem}.png", 2),
        "edited": draw(folder, f"{stem}-{made['edit']}-{made['level']}.png", 2 + strength),
        "detected": made["detection_rate"] > 0.5,
    }


def make_log(folder: Path, pictures: int = 2) -> Log:
    """A whole made-up log of three schemes, one of them only there or not, and its pictures."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    cells = [
        cell(scheme, *edit)
        for scheme in SCHEMES
        for edit in EDITS
        if SCHEMES[scheme] or edit[0] != "guided"
    ]
    examples = [example(folder, c, index) for c in cells for index in range(pictures)]
    return complete(cells, examples)


def complete(cells: list[Log], examples: list[Log]) -> Log:
    """The log that belongs to some cells."""
    return {
        "schema": "expunge.watermark/1",
        "pictures": {"n": 500, "sizes": [{"height": 64, "width": 64, "n": 500}], "captions": 500},
        "model": {"name": "miniature-sd", "architecture": "sd", "hash": "9f2c" * 16},
        "schemes": [scheme_of(name, raw) for name, raw in SCHEMES.items()],
        "edits": [
            {"edit": edit, "level": level, "label": edit, "unit": unit, "prompt": "empty"}
            for edit, level, unit, _, _ in EDITS
        ],
        "psnr": 37.25,
        "false_positive_rate": 0.001,
        "cells": cells,
        "unmarked": [unmarked(name, raw) for name, raw in SCHEMES.items()],
        "examples": examples,
        "reported": {
            "source": "Vanishing Watermarks, Table 1",
            "note": "The paper calls these figures decoding accuracy.",
            "edits": [{"edit": "none", "level": None}, {"edit": "jpeg", "level": 50}],
            "schemes": {"stegastamp": [99.8, 92.5], "vine": [100.0, 96.4]},
            "quality": {"regeneration": {"psnr": 31.8, "ssim": 0.95, "lpips": 0.03}},
        },
        "flags": [],
        "made": {
            "command": "expunge watermark bench --schemes learned",
            "started": "2026-11-24T14:07:18+00:00",
            "seconds": 26.7,
            "versions": {"expunge": "0.1.0", "torch": "2.13.0"},
        },
    }


def scheme_of(name: str, raw: int) -> Log:
    threshold = {32: 26, 100: 66}.get(raw)
    made = {"scheme": name, "weights": name.encode().hex(), "source": f"the paper of {name}"}
    made |= {"terms": f"terms of {name}", "payload_bits": raw * 3 // 5, "raw_bits": raw}
    return made | {"threshold": threshold, "strength": 0.95}


def unmarked(name: str, raw: int) -> Log:
    made = {"scheme": name, "n": 3000, "keys": 1000, "asked": 0.001, "raw_bits": raw}
    made |= {"threshold": {32: 26, 100: 66}.get(raw), "law": 0.000268 + raw * 1e-6}
    made |= {"mean": 0.00031, "mean_ci": [0.00025, 0.00037]}
    made |= {"worst": 0.0023, "worst_ci": [0.0009, 0.0047], "law_worst": 0.0017}
    made |= {"alarm": False}
    return made | {"law_worst_high": 0.0021, "bias": 0.145 if raw else None}


def concept_of(differences: list[tuple[float, float]]) -> Log:
    cells = []
    for before, after in differences:
        made = {"scheme": "learned", "edit": "regeneration", "level": 0.3, "editor": "original"}
        for side, value in (("before", before), ("after", after)):
            k = round(value * 200)
            made[side] = {"rate": value, "ci": around(value), "n": 200, "k": k}
        gap = after - before
        made |= {"n": 200, "difference": gap, "difference_ci": [gap - 0.03, gap + 0.03]}
        cells.append(made | {"p": 0.0123})
    judge = {"name": "miniature-conv", "version": "1", "threshold": 0.5}
    return {"concept": "cat", "judge": judge, "cells": cells}
