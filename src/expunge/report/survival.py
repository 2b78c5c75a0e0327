"""The cells of a watermark bench in the order a reader asks for them, and what outlived what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from expunge.report.format import Record

CHANCE = 0.5
"""Share of bits that a destroyed mark still gets right."""
MOST = 0.5
"""Share of pictures above which a payload, or detection, counts as surviving."""
BEFORE, CONTROL = "none", "vae"


def level(value: float | None, unit: str) -> str:
    """An edit's level as text, empty where it has none."""
    if value is None:
        return ""
    return f"{255 * value:.3g}/255" if unit == "σ/255" else f"{value:.3g}"


def name(record: Record, units: Record) -> str:
    """An edit with its level, as people say it; `units` by the edit's name."""
    plain = f"{record['edit']} {level(record['level'], units.get(record['edit'], ''))}".strip()
    return plain + ", erased model" * by_erased(record)


def by_erased(record: Record) -> bool:
    """Whether a model drew in this edit from which a concept was erased."""
    return record.get("editor") == "erased" and bool(record["redrawn"])


def cells(log: Record) -> list[Record]:
    """The log's cells, once where it makes no difference that an erased model edits."""
    originals = [_figures(cell) for cell in log["cells"] if cell["editor"] != "erased"]
    return [
        cell
        for cell in log["cells"]
        if cell["editor"] != "erased" or _figures(cell) not in originals
    ]


def _figures(cell: Record) -> dict[str, Any]:
    return {key: value for key, value in cell.items() if key != "editor"}


@dataclass(frozen=True)
class Tally:
    """After how many of some edits something is still there."""

    survived: int
    total: int


@dataclass(frozen=True)
class Standing:
    """What became of one scheme's mark.

    Attributes:
        scheme: its record in the log.
        before: the cell without any edit, None where it was not measured.
        distortions: cells of edits of pixels alone.
        control: the autoencoder alone, None where it was not measured.
        redrawn: cells of all other edits by a model.
        white_box: cells of edits that hold the scheme's decoder.
        changed: cells among `redrawn` and `control` that show something else, so that they count
            for nothing.
        gone_at_vae: whether the mark is not shown to be above chance after the autoencoder alone.
        unmarked: how often unmarked pictures were detected, None where not measured.
        asked: the false positive rate that the threshold is for.
    """

    scheme: Record
    before: Record | None
    distortions: list[Record]
    control: Record | None
    redrawn: list[Record]
    white_box: list[Record]
    changed: list[Record]
    gone_at_vae: bool
    unmarked: Record | None
    asked: float

    @property
    def bits(self) -> bool:
        """Whether the mark carries bits, and is not only there or not."""
        return bool(self.scheme["raw_bits"])

    @property
    def hardest(self) -> Record | None:
        """The distortion that leaves least."""
        return self._least(self.distortions)

    @property
    def attack(self) -> Record | None:
        """The white-box edit that leaves least.

        What one attack that holds the decoder does; no bound, and no ordinary edit.
        """
        return self._least(self.white_box)

    def _least(self, found: list[Record]) -> Record | None:
        measure = "bit_accuracy" if self.bits else "detection_rate"
        return min(found, key=lambda cell: cell[measure], default=None)

    @property
    def ordinary(self) -> list[Record]:
        """All cells but white-box ones: before any edit, distortions, then edits by a model."""
        every = [self.before, *self.distortions, self.control, *self.redrawn]
        return [cell for cell in every if cell is not None]

    @property
    def law(self) -> float | None:
        """How often fair coins reach the threshold, None for a mark without bits."""
        bits, threshold = self.scheme["raw_bits"], self.scheme["threshold"]
        if threshold is None:
            return None
        reached = sum(comb(bits, right) for right in range(threshold, bits + 1))
        return float(reached / 2**bits)

    def tally(self, cells: Sequence[Record], measure: str) -> Tally:
        """After how many edits `bits`, `payload` or `detection` is still there."""
        counted = [cell for cell in cells if not any(cell is each for each in self.changed)]
        return Tally(sum(survives(cell, measure) for cell in counted), len(counted))


def survives(cell: Record, measure: str) -> bool:
    """Whether `bits`, `payload` or `detection` is still there after an edit."""
    if measure == "bits":
        return cell["ci"] is not None and cell["ci"][0] > CHANCE
    rate = cell[f"{measure}_rate"]
    return rate is not None and rate > MOST


def standings(log: Record) -> list[Standing]:
    """One per scheme, in the order of the log."""
    every = cells(log)
    return [
        _standing(log, scheme, [cell for cell in every if cell["scheme"] == scheme["scheme"]])
        for scheme in log["schemes"]
    ]


def _standing(log: Record, scheme: Record, ours: list[Record]) -> Standing:
    label = scheme["scheme"]
    black = [cell for cell in ours if not cell["white_box"]]
    before = next((cell for cell in black if cell["edit"] == BEFORE), None)
    control = next((cell for cell in black if cell["edit"] == CONTROL), None)
    edits = [cell for cell in black if cell["edit"] != BEFORE and cell is not control]
    flagged = [_place(flag) for flag in log["flags"] if flag["code"] == "content-changed"]
    gone = [flag["scheme"] for flag in log["flags"] if flag["code"] == "gone-at-vae"]
    return Standing(
        scheme=scheme,
        before=before,
        distortions=[cell for cell in edits if not cell["redrawn"]],
        control=control,
        redrawn=[cell for cell in edits if cell["redrawn"]],
        white_box=[cell for cell in ours if cell["white_box"]],
        changed=[cell for cell in black if _place(cell) in flagged],
        gone_at_vae=label in gone,
        unmarked=next((u for u in log["unmarked"] if u["scheme"] == label), None),
        asked=log["false_positive_rate"],
    )


def _place(record: Record) -> tuple[Any, ...]:
    """Which cell a cell is, or a flag speaks of."""
    return tuple(record[key] for key in ("scheme", "edit", "level", "editor"))


def units(log: Record) -> dict[str, str]:
    """What levels count, by the edit's name."""
    return {cell["edit"]: cell["unit"] for cell in log["cells"]}


def settings(edit: Record) -> dict[str, Any]:
    """How an edit of the log was set, beyond its name and level."""
    return {k: v for k, v in edit.items() if k not in {"edit", "level", "label", "unit"}}
