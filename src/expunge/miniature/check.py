"""What the bundled model and its judges can do, measured with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from expunge.backbone.base import Backbone
from expunge.concept import Concept, Kind, Probe, Prompt
from expunge.judge.base import BROKEN
from expunge.judge.miniature import MiniatureJudge
from expunge.judge.networks import Variant
from expunge.measure.rates import Rate
from expunge.miniature import autoencoder, judges
from expunge.miniature.broken import wrecked_latents
from expunge.miniature.data import Pictures, pictures, unsigned
from expunge.miniature.unknown import HELD_OUT, pairs
from expunge.run.progress import progress_bar

FRESH_SEED = 99
"""Of renders no network was trained on."""

DRAWN, DRAWN_EACH = 0.95, 0.90
JUDGED, JUDGED_ROUND_TRIP = 0.99, 0.98
NONE_OF_THEM = 0.97
"""Unknown shapes and broken pictures in which a judge finds none of the ten objects."""
DECIBELS = 28.0


def _row(figure: str, of: str, rate: Rate, wanted: float) -> dict[str, Any]:
    low, high = rate.interval()
    return {
        "figure": figure,
        "of": of,
        "n": rate.n,
        "value": rate.value,
        "ci": [low, high],
        "wanted": wanted,
        "unit": "rate",
        "met": rate.value >= wanted,
    }


def _ask(concepts: Sequence[Concept], probe: Probe, total: int) -> list[Prompt]:
    share = -(-total // len(concepts))
    return [prompt for concept in concepts for prompt in concept.prompts(probe, "test", share)]


def _domains(concepts: Iterable[Concept], total: int) -> dict[str, list[Prompt]]:
    """Held-out prompts by domain and way of asking."""
    by_kind: dict[str, list[Concept]] = {}
    for concept in concepts:
        sign = concept.name.endswith(" sign")
        by_kind.setdefault("signs" if sign else concept.kind, []).append(concept)
    kinds: tuple[Kind | str, ...] = ("object", "identity", "style", "signs")
    found = {}
    for kind in kinds:
        for probe in get_args(Probe):
            prompts = _ask(by_kind.get(kind, []), probe, total) if kind in by_kind else []
            if prompts:
                found[f"{kind}, {probe}"] = prompts[:total]
    return found


def _drawn(backbone: Backbone, judge: MiniatureJudge, total: int) -> list[dict[str, Any]]:
    domains = _domains(backbone.profile.vocabulary.concepts.values(), total)
    rows, each = [], []
    with progress_bar("drawing", sum(map(len, domains.values()))) as advance:
        for domain, prompts in domains.items():
            images = backbone.draw(
                [prompt.text for prompt in prompts],
                [prompt.seed() for prompt in prompts],
                advance=lambda count: advance(count, ""),
            )
            names = np.array([prompt.concept for prompt in prompts])
            shown = np.zeros(len(prompts), bool)
            for name in dict.fromkeys(names.tolist()):
                mine = np.flatnonzero(names == name)
                shown[mine] = judge.shown([images[i] for i in mine], name)
                rate = Rate.of(shown[mine])
                each.append(_row("drawn right, each", f"{name} ({domain})", rate, DRAWN_EACH))
            rows.append(_row("drawn right", domain, Rate.of(shown), DRAWN))
            rows.append(_proper(domain, judge.broken(images) < BROKEN))
    return rows + sorted(each, key=lambda row: row["value"])


def _proper(domain: str, flags: np.ndarray) -> dict[str, Any]:
    return _row("not broken", domain, Rate.of(flags), DRAWN)


def _autoencoder(backbone: Backbone, data: Pictures) -> dict[str, Any]:
    with torch.no_grad():
        values = autoencoder.psnr(backbone.pipe.vae, data).double()
    half = 1.96 * float(values.std()) / len(values) ** 0.5
    mean = float(values.mean())
    return {
        "figure": "autoencoder PSNR, dB",
        "of": "fresh renders",
        "n": len(values),
        "value": mean,
        "ci": [mean - half, mean + half],
        "wanted": DECIBELS,
        "unit": "dB",
        "met": mean >= DECIBELS,
    }


def _judges(backbone: Backbone, data: Pictures, folder: Path | None) -> list[dict[str, Any]]:
    trips = judges.round_trip(backbone.pipe.vae, data.pixels)
    rows = []
    for variant in get_args(Variant):
        judge = MiniatureJudge.load(variant, folder)
        sides = (("renders", data.pixels, JUDGED), ("round trips", trips, JUDGED_ROUND_TRIP))
        for title, pixels, wanted in sides:
            for head, (k, n) in judges.accuracy(judge.network, pixels, data).items():
                right = n - k if head == "broken" else k
                rows.append(_row(f"judge {variant}, {title}", head, Rate(right, n), wanted))
    return rows


def none_of_them(judge: MiniatureJudge, pixels: torch.Tensor) -> Rate:
    """How often a judge finds none of the ten objects.

    Args:
        judge: one of the miniature's.
        pixels: pictures without any, uint8, (n, 3, 64, 64).
    """
    verdict = judges.verdicts(judge.network, pixels)
    broken = verdict.broken[:, 0].sigmoid().numpy()
    shown = [judge.counts(scores, broken) for scores in verdict.objects.sigmoid().numpy().T]
    return Rate.of(~np.any(shown, axis=0))


def without_objects(vae: Any, data: Pictures, count: int) -> dict[str, torch.Tensor]:
    """Pictures that show none of the ten objects, uint8, (count, 3, 64, 64) each.

    Args:
        vae: the model's autoencoder.
        data: renders that broken pictures are made of.
        count: pictures of every sort.
    """
    unknown = pictures(count, FRESH_SEED, pair=pairs(HELD_OUT)).pixels
    wrecks = judges.decode(vae, wrecked_latents(vae, data.pixels, count, FRESH_SEED))
    lessons = judges.Lessons(data, data.pixels, (wrecks,))
    generator = torch.Generator().manual_seed(FRESH_SEED)
    return {
        "unknown shapes, renders": unknown,
        "unknown shapes, round trips": judges.round_trip(vae, unknown),
        "broken pictures": unsigned(lessons.broken(count, generator)),
    }


def _nothing(backbone: Backbone, data: Pictures, folder: Path | None) -> list[dict[str, Any]]:
    sorts = without_objects(backbone.pipe.vae, data, min(len(data.captions), 600))
    rows = []
    for variant in get_args(Variant):
        judge = MiniatureJudge.load(variant, folder)
        for sort, pixels in sorts.items():
            rate = none_of_them(judge, pixels)
            rows.append(_row(f"judge {variant}, none of the ten", sort, rate, NONE_OF_THEM))
    return rows


def check(backbone: Backbone, prompts: int = 1000, folder: Path | None = None) -> dict[str, Any]:
    """All figures a shipped miniature must reach.

    Args:
        backbone: the model.
        prompts: distinct held-out prompts a domain and way of asking, at most; one seed each.
        folder: of the judges, None for the bundled ones.

    Returns:
        `schema`, `model`, and `figures`: rows with `figure`, `of`, `n`, `value`, `ci`, `wanted`,
        `unit` and `met`.

    Raises:
        ValueError: `prompts` is below 1, or the model has no vocabulary.
    """
    if prompts < 1:
        raise ValueError(f"prompts must be at least 1, got {prompts}")
    if not backbone.profile.vocabulary.concepts:
        raise ValueError(f"{backbone.name} is no model of the miniature world")
    data = pictures(min(2 * prompts, 2000), FRESH_SEED)
    judge = MiniatureJudge.load("conv", folder)
    rows = [_autoencoder(backbone, data), *_judges(backbone, data, folder)]
    rows += _nothing(backbone, data, folder)
    rows += _drawn(backbone, judge, prompts)
    return {"schema": "expunge.check/1", "model": backbone.name, "figures": rows}
