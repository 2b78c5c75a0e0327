"""Made-up audits: whole logs whose figures follow from their samples, as real ones do."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from expunge.auditing.figures import figures
from expunge.auditing.flags import flags
from expunge.auditing.log import (
    Attack,
    Condition,
    JudgeRecord,
    Log,
    Made,
    Picture,
    Role,
    Sample,
    Target,
    Thresholds,
)
from expunge.run.store import Store

JUDGE = JudgeRecord("conv", "1", "ab" * 32, 0.5, {})
NO_ATTACK = Attack("plain", "prompt", white_box=False, budget={}, text="asked without an attack")
COLORS = ("#d63031", "#2e9650", "#3264d7", "#f5d33c")


@dataclass(frozen=True)
class Asked:
    """`n` prompts; how many of them each condition shows, the last ones first to be lost."""

    concept: str
    role: Role
    n: int
    shown: Mapping[str, int]
    probe: str = "plain"
    attack: str = "plain"
    broken: Mapping[str, int] | None = None
    budget: float | None = None


def log_of(
    asked: Sequence[Asked],
    *,
    folder: Path = Path("nowhere"),
    attacks: Sequence[Attack] = (),
    kind: str = "object",
    judges: Sequence[JudgeRecord] = (JUDGE,),
    conditions: Sequence[Condition] = (),
    thresholds: Thresholds = Thresholds(),  # noqa: B008
) -> Log:
    """The log that belongs to some samples; with a folder also their pictures."""
    samples = tuple(_samples(asked, judges, folder))
    used = {name for sample in samples for name in sample.pictures}
    everything = (
        Condition("original", "original", "the model as it was", {}),
        Condition("erased", "erased", "erased by TRACE", {}),
        *(conditions or [Condition("control", "control", "random weights", {})]),
    )
    kept = tuple(each for each in everything if each.name in used)
    tried = (NO_ATTACK, *attacks)
    found = figures(samples, kept, judges)
    notes = flags(samples, found, conditions=kept, attacks=tried, judges=judges, frechet=None)
    targets = tuple(dict.fromkeys(a.concept for a in asked if a.role == "target"))
    concepts = [{"name": name, "kind": kind, "synonyms": ["kitten"]} for name in targets]
    return Log(
        target=Target("miniature-sd", "9f2c" * 16, "sd", "TRACE", targets, 1.0, "test"),
        conditions=kept,
        attacks=tried,
        samples=samples,
        cells=found.cells,
        differences=found.differences,
        broken=found.broken,
        frechet=None,
        flags=notes,
        judges=tuple(judges),
        sampling={"num_inference_steps": 15, "guidance_scale": 4.0},
        erasure={
            "eraser": "TRACE",
            "concepts": concepts,
            "command": "expunge erase cat",
            "hyperparameters": {"steps": 200},
        },
        made=Made(
            "expunge audit runs/cat", "2026-11-22T15:00:00+00:00", 12.5, {"expunge": "0.1.0"}
        ),
        thresholds=thresholds,
        store=folder,
    )


def _samples(asked: Sequence[Asked], judges: Sequence[JudgeRecord], folder: Path) -> list[Sample]:
    made = []
    store = Store(folder) if folder.is_dir() else None
    for each in asked:
        for index in range(each.n):
            prompt = f"a photo of a {each.concept}, number {index} {each.probe} {each.attack}"
            pictures = {}
            for side, k in each.shown.items():
                shown = index < k
                broken = index >= each.n - (each.broken or {}).get(side, 0)
                image = "images/none.png"
                if store is not None:
                    image = store.put_image(draw(each.concept, shown, broken, index))
                score = 0.9 if shown else 0.1
                pictures[side] = Picture(
                    image, {judge.name: score for judge in judges}, 0.9 if broken else 0.0
                )
            made.append(
                Sample(
                    *(each.attack, each.probe, each.concept, each.role),
                    *(prompt, 2**62 + index, pictures, each.budget),
                )
            )
    return made


def draw(concept: str, shown: bool, broken: bool, index: int) -> Image.Image:
    """A little scene: grass, sky, and the concept's shape, or a ball where it is not shown."""
    if broken:
        noise = random.Random(index).randbytes(64 * 64 * 3)
        return Image.frombytes("RGB", (64, 64), noise)
    picture = Image.new("RGB", (64, 64), "#bcdcf0")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 40, 64, 64), fill="#6a9a4f")
    x, y = 20 + index % 20, 30 + index % 7
    fill = COLORS[index % 4]
    pen.ellipse((x - 12, y - 8, x + 12, y + 12), fill=fill)
    if shown and concept in ("cat", "dog"):
        pen.polygon(((x - 11, y - 14), (x - 8, y - 2), (x - 3, y - 6)), fill=fill)
        pen.polygon(((x + 11, y - 14), (x + 8, y - 2), (x + 3, y - 6)), fill=fill)
    elif shown:
        pen.rectangle((x - 16, y, x + 16, y + 8), fill=fill)
    return picture


EMBEDDING = Attack("inversion", "embedding", True, {"steps": 500}, "with a learned embedding")
TRAINING = Attack("relearn", "weights", True, {"steps": 32}, "after 32 steps of training")
SEEDS = Attack("best-of-16", "prompt", False, {"images": 16}, "with the best of 16 seeds")
LATENT = Attack("invert", "latent", True, {}, "from an inverted picture")


def demo(folder: Path = Path("nowhere"), **options: object) -> Log:
    """What `expunge demo` makes, about: nothing seen by name, fish lose most, never attacked."""
    return log_of(plain_part(), folder=folder, **options)  # type: ignore[arg-type]


def plain_part(erased: int = 0, original: int = 40, n: int = 40) -> list[Asked]:
    shown = {"original": original, "erased": erased}
    return [
        Asked("cat", "target", n, shown),
        Asked("cat", "target", n, {"original": max(0, original - 1), "erased": 0}, "synonym"),
        *(
            Asked(name, "neighbour", 20, {"original": before, "erased": after})
            for name, before, after in (("dog", 17, 17), ("horse", 17, 17), ("fish", 20, 12))
        ),
        *(
            Asked(name, "unrelated", 13, {"original": 13, "erased": 13})
            for name in ("ship", "airplane")
        ),
    ]


def attacked(erased: int = 12, control: int = 2, attack: Attack = EMBEDDING, n: int = 40) -> Asked:
    shown = {"original": n, "erased": erased, "control": control}
    return Asked("cat", "target", n, shown, attack=attack.name)
