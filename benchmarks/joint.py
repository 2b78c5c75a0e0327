"""Several concepts in one closed form beside each alone: what is left, and what goes along.

    python benchmarks/joint.py [--prompts 100] [--others 25] [--json]

UCE's preset on miniature-sd, test prompts, same seeds; shown as the first judge says. For 2, 4 and
10 concepts at once every target stands beside its own single erasure, paired; neighbours of what
goes, and everything that is neither, beside the original.
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


def shown(backbone: Backbone, judge: Judge, concept: Concept, count: int) -> np.ndarray:
    """Whether each picture of a concept's test prompts shows it."""
    prompts = concept.prompts("plain", "test", count)
    pictures = backbone.draw([p.text for p in prompts], [p.seed() for p in prompts])
    return judge.shown(pictures, concept.name)


def erased(backbone: Backbone, names: tuple[str, ...]) -> Erasure:
    return expunge.erase(backbone, list(names), "uce")


def measure(prompts: int, others: int) -> list[dict[str, Any]]:
    backbone = as_backbone(expunge.load("miniature-sd"))
    judge, vocabulary = default_judge(backbone), backbone.profile.vocabulary
    known = {name: vocabulary.resolve(name) for name in vocabulary.concepts}
    alone = {}
    for name in TOGETHER:
        with erased(backbone, (name,)).applied(backbone):
            alone[name] = shown(backbone, judge, known[name], prompts)
    before = {name: shown(backbone, judge, concept, others) for name, concept in known.items()}
    rows = []
    for count in COUNTS:
        names = TOGETHER[:count]
        with erased(backbone, names).applied(backbone):
            left = {name: shown(backbone, judge, known[name], prompts) for name in names}
            kept = {
                name: shown(backbone, judge, concept, others)
                for name, concept in known.items()
                if name not in names
            }
        pairs = {name: Paired.of(alone[name], left[name]) for name in names}
        near = {name for concept in names for name in known[concept].neighbours} & set(kept)

        def keep(some: set[str], kept: dict[str, np.ndarray] = kept) -> dict[str, Any]:
            """Rates beside the original's: all together, and each."""
            each = {name: float(kept[name].sum() / before[name].sum()) for name in sorted(some)}
            all_of_them = sum(kept[n].sum() for n in some) / sum(before[n].sum() for n in some)
            return {"all": float(all_of_them), "each": each}

        rows.append(
            {
                "concepts": count,
                "mean_alone": float(np.mean([alone[name].mean() for name in names])),
                "mean_together": float(np.mean([left[name].mean() for name in names])),
                "targets": {
                    name: {
                        "alone": float(alone[name].mean()),
                        "together": float(left[name].mean()),
                        "ci": list(pair.interval()),
                    }
                    for name, pair in pairs.items()
                },
                "neighbours_keep": keep(near),
                "unrelated_keep": keep(set(kept) - near),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--others", type=int, default=25, help="prompts of what stays, each")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = measure(given.prompts, given.others)
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        gaps = {n: t["together"] - t["alone"] for n, t in row["targets"].items()}
        worst = max(gaps, key=lambda name: gaps[name])
        low, high = row["targets"][worst]["ci"]
        near, far = row["neighbours_keep"], row["unrelated_keep"]
        least = [min(kept["each"], key=lambda name: kept["each"][name]) for kept in (near, far)]
        print(
            f"{row['concepts']} concepts: shown {row['mean_together']:.1%} together, "
            f"{row['mean_alone']:.1%} alone; furthest {worst} {100 * gaps[worst]:+.0f} "
            f"[{100 * low:+.1f}, {100 * high:+.1f}] points; neighbours keep {near['all']:.1%} "
            f"({least[0]} {near['each'][least[0]]:.0%}), {len(far['each'])} unrelated "
            f"{far['all']:.1%} ({least[1]} {far['each'][least[1]]:.0%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
