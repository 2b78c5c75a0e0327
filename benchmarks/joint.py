"""Several concepts in one closed form beside each alone: what is left, and what goes along.

    python benchmarks/joint.py [--prompts 100] [--json]

UCE's preset on miniature-sd, test prompts, same seeds; shown as the first judge says. For 2, 4 and
10 concepts at once every target stands beside its own single erasure, paired, and concepts that
were not erased beside the original.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

import expunge
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.concept import Concept
from expunge.erasure import Erasure
from expunge.judge.base import Judge
from expunge.judge.choose import default_judge
from expunge.measure.paired import Paired

TOGETHER = (
    "cat", "car", "Ada Lindqvist", "Ivo Brandt", "dog", "bicycle", "ship", "Boris Halloran",
    "Tessa Okoro", "hazard sign",
)  # fmt: skip
COUNTS = (2, 4, 10)
OTHERS = ("fish", "airplane", "Celia Montrose", "Kenji Arvo")


def shown(backbone: Backbone, judge: Judge, concept: Concept, count: int) -> np.ndarray:
    """Whether each picture of a concept's test prompts shows it."""
    prompts = concept.prompts("plain", "test", count)
    pictures = backbone.draw([p.text for p in prompts], [p.seed() for p in prompts])
    return judge.shown(pictures, concept.name)


def erased(backbone: Backbone, names: tuple[str, ...]) -> Erasure:
    return expunge.erase(backbone, list(names), "uce")


def measure(prompts: int) -> list[dict[str, Any]]:
    backbone = as_backbone(expunge.load("miniature-sd"))
    judge = default_judge(backbone)
    known = {name: backbone.profile.vocabulary.resolve(name) for name in (*TOGETHER, *OTHERS)}
    alone = {}
    for name in TOGETHER:
        with erased(backbone, (name,)).applied(backbone):
            alone[name] = shown(backbone, judge, known[name], prompts)
    before = {name: shown(backbone, judge, known[name], prompts) for name in OTHERS}
    rows = []
    for count in COUNTS:
        names = TOGETHER[:count]
        with erased(backbone, names).applied(backbone):
            left = {name: shown(backbone, judge, known[name], prompts) for name in names}
            kept = {name: shown(backbone, judge, known[name], prompts) for name in OTHERS}
        pairs = {name: Paired.of(alone[name], left[name]) for name in names}
        rows.append(
            {
                "concepts": count,
                "mean_alone": float(np.mean([alone[name].mean() for name in names])),
                "mean_together": float(np.mean([left[name].mean() for name in names])),
                "targets": {
                    name: {"difference": pair.difference, "ci": list(pair.interval())}
                    for name, pair in pairs.items()
                },
                "others_keep": float(
                    sum(kept[name].sum() for name in OTHERS)
                    / sum(before[name].sum() for name in OTHERS)
                ),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = measure(given.prompts)
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        worst = max(row["targets"].items(), key=lambda item: item[1]["difference"])
        low, high = worst[1]["ci"]
        print(
            f"{row['concepts']} concepts: shown {row['mean_together']:.1%} together, "
            f"{row['mean_alone']:.1%} alone; furthest {worst[0]} "
            f"{100 * worst[1]['difference']:+.0f} [{100 * low:+.1f}, {100 * high:+.1f}] points; "
            f"others keep {row['others_keep']:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
