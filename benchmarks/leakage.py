"""What a fresh discriminator still tells of a concept that is erased: a line for each erasure.

    python benchmarks/leakage.py runs/cat-fade runs/cat-trace [--model miniature-sd]
                                 [--train 100] [--test 80]

The original is measured once for each concept. About two minutes a line on one core. What is found
is a lower bound: a better network may find more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import expunge
from expunge.backbone.load import as_backbone
from expunge.erasure import Erasure
from expunge.leakage import leaking


def _cell(row: dict[str, Any]) -> str:
    low, high = row["ci"]
    return f"{100 * row['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {row['n']}"


def line(concept: str, who: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    bound = f"{found['variation_at_least']:.2f}"
    cells = (concept, who, _cell(found["unpaired"]), _cell(found["paired"]), bound)
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("erasures", type=Path, nargs="+")
    parser.add_argument("--model", default="miniature-sd")
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=80)
    given = parser.parse_args()
    backbone = as_backbone(expunge.load(given.model))
    sizes = {"train": given.train, "test": given.test}
    print("| concept | method | told one by one | told in pairs | total variation at least |")
    print("| --- | --- | --- | --- | --- |")
    measured: set[str] = set()
    for folder in given.erasures:
        erasure = Erasure.load(folder)
        for concept in erasure.concepts:
            if concept.name not in measured:
                found = leaking(backbone, concept, **sizes)
                print(line(concept.name, "original", found), flush=True)
                measured.add(concept.name)
            with erasure.applied(backbone):
                found = leaking(backbone, concept, **sizes)
            print(line(concept.name, str(erasure.record["eraser"]), found), flush=True)


if __name__ == "__main__":
    main()
