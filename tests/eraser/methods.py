"""One row for every method, small enough for a test. A new method adds its own."""

from __future__ import annotations

from typing import Any

from expunge.eraser.ant import ANT
from expunge.eraser.base import Eraser
from expunge.eraser.erase_anything import EraseAnything
from expunge.eraser.esd import ESD
from expunge.eraser.fade import FADE
from expunge.eraser.receler import Receler
from expunge.eraser.speed import SPEED
from expunge.eraser.spm import SPM
from expunge.eraser.trace import TRACE
from expunge.eraser.trce import TRCE
from expunge.eraser.uce import UCE

TUNING: dict[str, Any] = {"steps": 3, "batch_size": 2, "rank": 2, "lr": 1e-3}
WALKS: dict[str, Any] = {**TUNING, "trajectories": 3}

ERASERS: dict[str, Eraser] = {
    "uce": UCE(),
    "uce, prompts": UCE(
        prompts=4, preserved=6, tokens="suffix", to_anchor=True, synonyms=True, ridge=0.1
    ),
    "uce, names held": UCE(prompts=4, preserved=6, hold="names", to_anchor=True),
    "speed": SPEED(prompts=4, preserved=6, hold="names", tokens="suffix"),
    "esd": ESD(**WALKS),
    "esd, kept": ESD(**WALKS | {"preserve": 1.0}, attention="self"),
    "ant": ANT(**WALKS, maps=2, attention="cross"),
    "ant, low rank": ANT(**WALKS, form="low-rank", attention="cross"),
    "trace": TRACE(**WALKS, prompts=4, preserved=6, synonyms=True),
    "trace, phase 1": TRACE(tune=False, prompts=4, preserved=6),
    "trace, phase 1, collapse": TRACE(tune=False, variant="collapse", prompts=2, preserved=6),
    "trace, phase 2": TRACE(**WALKS, refine=False),
    "trace, phase 2, reversed": TRACE(**WALKS, refine=False, target="reversed", from_level=0.6),
    "trce": TRCE(**WALKS, prompts=4, preserved=6, form="low-rank"),
    "trce, stage 1": TRCE(tune=False, prompts=4, preserved=6),
    "trce, stage 2": TRCE(**WALKS, refine=False, above=0.2),
    "erase anything": EraseAnything(**WALKS, words=1, inner=2),
    "spm": SPM(**WALKS | {"rank": 1}),
    "receler": Receler(**WALKS, hidden=8, inner_steps=2, vectors=2),
    "fade": FADE(**WALKS, head_start=0, refill=2, refill_every=2),
}

ONE_A_METHOD = (
    "uce, prompts", "speed", "esd, kept", "ant", "trace", "trce", "erase anything", "spm",
    "receler", "fade",
)  # fmt: skip
"""Rows that run on every architecture."""

FLUX_ALONE = ("erase anything",)
"""Rows of methods that work on joint attention alone; their bundled model is miniature-flux."""
