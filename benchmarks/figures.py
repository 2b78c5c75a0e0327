"""Measure the figures of docs/figures.md again: every method on six concepts fixed in advance.

    python benchmarks/figures.py [--out runs/figures] [--jobs 2] [--methods trace uce esd]
                                 [--concepts cat car] [--model miniature-sd]

Every step is kept: a stopped run goes on where it was. Some minutes a method and concept on one
core; a training of them about half of that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from expunge.auditing.log import Broken, Cell, Log

CONCEPTS = ("cat", "car", "bicycle", "Ada Lindqvist", "Ivo Brandt", "hazard sign")
METHODS = ("uce", "speed", "esd", "spm", "receler", "trace", "fade")
SIZES = ("--prompts", "100", "--neighbours", "50", "--unrelated", "25")
"""Prompts for each way of asking, for each neighbour, for each unrelated concept."""


def expunge(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "expunge", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def measure(method: str, concept: str, model: str, out: Path) -> Path:
    folder = out / f"{method}-{concept.replace(' ', '-')}"
    if not (folder / "erasure.json").exists():
        expunge("erase", concept, "--method", method, "--model", model, "--out", str(folder))
    expunge("audit", str(folder), *SIZES, "--store", str(out / "store"), "--no-frechet")
    print(f"{method} {concept} done", flush=True)
    return folder


def _share(cell: Cell | Broken | None) -> str:
    if cell is None:
        return "–"
    low, high = cell.ci
    return f"{100 * cell.rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _shown(log: Log, probe: str) -> str:
    try:
        before, after = (log.cell(probe, side) for side in ("original", "erased"))
    except KeyError:
        return "–"
    return f"{_share(before)} → **{_share(after)}**"


def _seconded(log: Log) -> str:
    """The plain rate of the erased model by the second judge."""
    concept = log.target.concepts[0]
    wanted = ("plain", "erased", "plain", concept, log.judges[-1].name)
    found = [c for c in log.cells if (c.probe, c.condition, c.attack, c.concept, c.judge) == wanted]
    return _share(found[0])


def _broken(log: Log, role: str, condition: str) -> str:
    wanted = (role, condition, "plain")
    found = [each for each in log.broken if (each.role, each.condition, each.attack) == wanted]
    return _share(found[0] if found else None)


def line(method: str, log: Log) -> str:
    concept = log.target.concepts[0]
    shown = [_shown(log, probe) for probe in ("plain", "synonym", "implied")]
    kept = [
        (row.second_rate / row.first_rate if row.first_rate else 0.0, row.concept)
        for row in log.differences
        if (row.role, row.second, row.judge) == ("neighbour", "erased", log.judge.name)
    ]
    least, which = min(kept)
    mean = sum(share for share, _ in kept) / len(kept)
    benign = [_broken(log, "benign", side) for side in ("original", "erased")]
    wrecked = _broken(log, "target", "erased")
    columns = (
        concept,
        method,
        *shown,
        _seconded(log),
        f"{100 * mean:.1f}",
        f"{100 * least:.1f} ({which})",
        f"{benign[0]} → {benign[1]}",
        wrecked,
    )
    return "| " + " | ".join(map(str, columns)) + " |"


HEAD = (
    "| concept | method | plain | synonyms | implied | plain, second judge |"
    " neighbours keep, mean | least | broken, benign | broken, target |\n|" + " --- |" * 10
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/figures"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS, choices=CONCEPTS)
    parser.add_argument("--model", default="miniature-sd")
    asked = parser.parse_args()
    jobs = [(method, concept) for concept in asked.concepts for method in asked.methods]
    with ThreadPoolExecutor(asked.jobs) as pool:
        folders = list(pool.map(lambda job: measure(*job, asked.model, asked.out), jobs))
    lines = []
    for (method, _), folder in zip(jobs, folders, strict=True):
        lines.append(line(method.upper(), Log.load(folder / "log")))
    table = "\n".join([HEAD, *lines])
    (asked.out / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
