"""Measure the figures of docs/figures.md again: three methods on six concepts fixed in advance.

    python benchmarks/figures.py [--out runs/figures] [--jobs 2] [--methods trace uce esd]
                                 [--model miniature-sd]

Every step is kept: a stopped run goes on where it was. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONCEPTS = ("cat", "car", "bicycle", "Ada Lindqvist", "Ivo Brandt", "hazard sign")
SIZES = {"trace": (400, 75, 50), "uce": (50, 25, 25), "esd": (50, 25, 25)}
"""Prompts for each way of asking, for each neighbour, for each unrelated concept."""


def expunge(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "expunge", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def measure(method: str, concept: str, model: str, out: Path) -> Path:
    folder = out / f"{method}-{concept.replace(' ', '-')}"
    if not (folder / "erasure.json").exists():
        expunge("erase", concept, "--method", method, "--model", model, "--out", str(folder))
    target, neighbour, unrelated = map(str, SIZES[method])
    sizes = ("--prompts", target, "--neighbours", neighbour, "--unrelated", unrelated)
    expunge("audit", str(folder), *sizes, "--store", str(out / "store"), "--no-frechet")
    print(f"{method} {concept} done", flush=True)
    return folder


def _cell(rows: list[dict[str, object]], **wanted: str) -> str:
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if not found:
        return "–"
    (row,) = found
    low, high = row["ci"]  # type: ignore[misc]
    return f"{100 * row['rate']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"  # type: ignore[operator]


def line(method: str, log: dict[str, object]) -> str:
    cells, broken = log["cells"], log["broken"]
    concept = log["target"]["concepts"][0]  # type: ignore[index]
    shown = [
        f"{_cell(cells, concept=concept, probe=probe, condition='original')} → "  # type: ignore[arg-type]
        f"**{_cell(cells, concept=concept, probe=probe, condition='erased')}**"  # type: ignore[arg-type]
        for probe in ("plain", "synonym", "implied")
    ]
    kept = [
        (row["second_rate"] / row["first_rate"] if row["first_rate"] else 0.0, row["concept"])
        for row in log["differences"]  # type: ignore[attr-defined]
        if row["role"] == "neighbour"
    ]
    least, which = min(kept)
    mean = sum(share for share, _ in kept) / len(kept)
    benign = [_cell(broken, role="benign", condition=side) for side in ("original", "erased")]  # type: ignore[arg-type]
    wrecked = _cell(broken, role="target", condition="erased")  # type: ignore[arg-type]
    columns = (
        concept,
        method,
        *("–" if part.startswith("–") else part for part in shown),
        f"{100 * mean:.1f}",
        f"{100 * least:.1f} ({which})",
        f"{benign[0]} → {benign[1]}",
        wrecked,
    )
    return "| " + " | ".join(map(str, columns)) + " |"


HEAD = (
    "| concept | method | plain | synonyms | implied | neighbours keep, mean | least |"
    " broken, benign | broken, target |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/figures"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--model", default="miniature-sd")
    asked = parser.parse_args()
    jobs = [(method, concept) for method in asked.methods for concept in CONCEPTS]
    with ThreadPoolExecutor(asked.jobs) as pool:
        folders = list(pool.map(lambda job: measure(*job, asked.model, asked.out), jobs))
    lines = []
    for (method, _), folder in zip(jobs, folders, strict=True):
        lines.append(line(method.upper(), json.loads((folder / "log" / "audit.json").read_text())))
    table = "\n".join([HEAD, *sorted(lines, key=lambda row: [c in row for c in CONCEPTS][::-1])])
    (asked.out / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
