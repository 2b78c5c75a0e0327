"""Whether edits bring an erased concept back: the combined mode of a watermark bench."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.report.format import Record
from expunge.report.survival import Tally


@dataclass(frozen=True)
class Return:
    """One concept under edits by one model.

    Attributes:
        concept: what was erased.
        editor: the model that edits, `original` or `erased`.
        tally: after how many edits, of how many, the concept is shown more often than before.
        most: the cell with the largest difference.
    """

    concept: str
    editor: str
    tally: Tally
    most: Record


def returns(log: Record) -> list[Return]:
    """One per concept and editor, in the order of the log; none without the combined mode.

    Only edits in which a model draws are counted, where there are any: no other can bring back
    what the picture does not hold.
    """
    part = log.get("concept")
    if not part:
        return []
    redrawn = {(cell["edit"], cell["level"]) for cell in log["cells"] if cell["redrawn"]}
    drawn = [cell for cell in part["cells"] if (cell["edit"], cell["level"]) in redrawn]
    groups: dict[tuple[str, str], list[Record]] = {}
    for cell in drawn or part["cells"]:
        concept = cell.get("concept", part["concept"])
        groups.setdefault((concept, cell["editor"]), []).append(cell)
    # Sorted by concept, so that a sentence on each stands in one place.
    names = list(dict.fromkeys(concept for concept, _ in groups))
    keys = sorted(groups, key=lambda key: names.index(key[0]))
    return [_return(concept, editor, groups[concept, editor]) for concept, editor in keys]


def _return(concept: str, editor: str, cells: list[Record]) -> Return:
    back = sum(cell["difference_ci"][0] > 0 for cell in cells)
    most = max(cells, key=lambda cell: cell["difference"])
    return Return(concept, editor, Tally(back, len(cells)), most)
