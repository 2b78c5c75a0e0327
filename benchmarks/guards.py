"""Measure the figures of docs/guards.md again: IRECE against inverted latents, and neighbours.

    python benchmarks/guards.py [--out runs/guards] [--pictures 48] [--split test]
                                [--guards none irece irece:presence=none irece:form=plain]

Pictures that the original draws are inverted with an empty prompt, by fixed points and by DDIM,
with the original (black box) and with the erased model (white box), and drawn again from there with
an empty prompt by the erased model. Every row is kept: a stopped run goes on where it was. About
twenty minutes on one core for four guards and 48 pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from expunge.auditing.audit import usual_judges
from safetensors.torch import load_file, save_file
from torch import Tensor

import expunge
from expunge import names
from expunge.backbone.base import Backbone
from expunge.backbone.guidance import Plain
from expunge.backbone.load import as_backbone
from expunge.backbone.sampling import follow, invert, levels_below
from expunge.backbone.solvers import FixedPoint, Straight
from expunge.condition import erased, guarded, original
from expunge.erasure import Erasure
from expunge.measure.rates import _wilson

CONCEPT, NEIGHBOUR = "cat", "dog"
STEPS, BATCH = 15, 16
WAYS = ("black_fixed", "black_ddim", "white_fixed", "white_ddim")
SHOWN = 0.5


def in_batches(make: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    return torch.cat([make(part) for part in given.split(BATCH)])


def inverted(
    backbone: Backbone, erasure: Erasure, concept: str, split: Any, count: int
) -> dict[str, Tensor]:
    """Latents of the original's pictures at the highest noise level, by way of inversion."""
    prompts = backbone.profile.vocabulary.resolve(concept).prompts("plain", split, count)
    drawn = backbone.draw([p.text for p in prompts], [p.seed() for p in prompts])
    clean = in_batches(
        lambda rows: backbone.encode_images([drawn[i] for i in rows]), torch.arange(len(drawn))
    )
    empty, levels = backbone.encode_prompts([""]), levels_below(1.0, STEPS)

    def up(solver: Any) -> Tensor:
        return in_batches(
            lambda x: invert(backbone, x, Plain(empty.repeat(len(x))), levels, solver=solver), clean
        )

    found = {"black_fixed": up(FixedPoint()), "black_ddim": up(Straight())}
    with erasure.applied(backbone):
        return found | {"white_fixed": up(FixedPoint()), "white_ddim": up(Straight())}


def again(backbone: Backbone, latents: Tensor) -> list[Any]:
    """Pictures from inverted latents with an empty prompt."""
    empty, levels = backbone.encode_prompts([""]), levels_below(1.0, STEPS)
    clean = in_batches(lambda x: follow(backbone, x, Plain(empty.repeat(len(x))), levels), latents)
    return backbone.decode(clean)


def plain(backbone: Backbone, concept: str, split: Any, count: int) -> list[Any]:
    """Pictures of prompts that name a concept."""
    prompts = backbone.profile.vocabulary.resolve(concept).prompts("plain", split, count)
    return backbone.draw([p.text for p in prompts], [p.seed() for p in prompts])


class Bench:
    """One model, one erasure, and what was measured so far."""

    def __init__(self, out: Path, split: str, count: int) -> None:
        self.out, self.split, self.count = out, split, count
        self.backbone = as_backbone(expunge.load("miniature-sd", device="cpu"))
        folder = out / "uce"
        if not (folder / "erasure.json").exists():
            expunge.erase(self.backbone, CONCEPT, "uce").save(folder)
        self.erasure = Erasure.load(folder)
        self.judges = usual_judges(self.backbone)
        self.rows = out / f"rows-{split}-{count}.json"
        self.known = json.loads(self.rows.read_text()) if self.rows.exists() else {}

    def latents(self, concept: str) -> dict[str, Tensor]:
        path = self.out / f"{self.split}_{concept}.safetensors"
        if not path.exists():
            save_file(inverted(self.backbone, self.erasure, concept, self.split, self.count), path)
        return load_file(path)

    def row(self, guard: str, concept: str, way: str) -> dict[str, Any]:
        """Shown and broken pictures of one cell; under a guard by name, or `none`."""
        key = f"{guard} | {concept} | {way}"
        if key not in self.known:
            condition = erased(self.erasure)
            if guard == "original":
                condition = original()
            elif guard != "none":
                condition = guarded(condition, names.make("guard", guard))
            start = time.monotonic()
            with torch.no_grad(), condition.on(self.backbone) as backbone:
                if way == "drawn":
                    pictures = plain(backbone, concept, self.split, self.count)
                else:
                    pictures = again(backbone, self.latents(concept)[way][: self.count])
            self.known[key] = self.judged(pictures, concept) | {
                "seconds": round((time.monotonic() - start) / len(pictures), 3)
            }
            self.rows.write_text(json.dumps(self.known, indent=1))
        found = self.known[key]
        print(key, found, flush=True)
        return found

    def judged(self, pictures: Sequence[Any], concept: str) -> dict[str, Any]:
        broken = np.max([judge.broken(pictures) for judge in self.judges], axis=0) >= SHOWN
        shown = {
            judge.name: int(((judge.score(pictures, concept) >= SHOWN) & ~broken).sum())
            for judge in self.judges
        }
        return {"n": len(pictures), "shown": shown, "broken": int(broken.sum())}


def cell(found: dict[str, Any]) -> str:
    first, *_ = found["shown"].values()
    rate = 100 * first / found["n"]
    low, high = _wilson(rate / 100, found["n"], 0.95)
    return f"{rate:.0f} [{100 * low:.0f}, {100 * high:.0f}] ({found['broken']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/guards"))
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--concepts", nargs="+", default=[CONCEPT, NEIGHBOUR])
    parser.add_argument(
        "--guards", nargs="+", default=["none", "irece", "irece:presence=none", "irece:form=plain"]
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(asked.out, asked.split, asked.pictures)
    for concept in asked.concepts:
        print(f"\n| {concept} | {' | '.join(asked.guards)} |")
        print("| --- " * (1 + len(asked.guards)) + "|")
        for way in (*asked.ways, "drawn"):
            cells = [cell(bench.row(guard, concept, way)) for guard in asked.guards]
            print(f"| {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
