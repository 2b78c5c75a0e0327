"""Contact sheets of the miniature world, and of what a model makes of the same captions."""

from __future__ import annotations

import random
from pathlib import Path

from expunge.backbone.base import Backbone
from expunge.concept import Prompt
from expunge.miniature.captions import random_pair
from expunge.miniature.render import render, sheet

COLUMNS = 12


def show(backbone: Backbone, folder: Path, count: int = 60, seed: int = 1) -> list[Path]:
    """Write `world.png`, `model.png` and `captions.txt`.

    Args:
        backbone: the model that draws.
        folder: where to.
        count: pictures a sheet, at least 1.
        seed: of the scenes.

    Returns:
        The three files.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    rng = random.Random(seed)
    pairs = [random_pair(rng) for _ in range(count)]
    captions = [caption for _, caption in pairs]
    folder.mkdir(parents=True, exist_ok=True)
    world, model, text = (folder / name for name in ("world.png", "model.png", "captions.txt"))
    sheet([render(scene).image for scene, _ in pairs], COLUMNS).save(world)
    seeds = [Prompt(caption, "").seed() for caption in captions]
    sheet(backbone.draw(captions, seeds), COLUMNS).save(model)
    text.write_text("".join(f"{i + 1:3d}  {c}\n" for i, c in enumerate(captions)))
    return [world, model, text]
