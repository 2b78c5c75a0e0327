"""What every record of an erasure says of its model, and of what the erasure does to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.adapter import find_weights
from expunge.backbone.base import Backbone
from expunge.backbone.identity import sketch
from expunge.backbone.profile import BUNDLED
from expunge.change import Change, LowRank, summed
from expunge.erasure import Erasure
from expunge.hooks import original
from expunge.run.versions import versions

SIDE = 256
"""Pixels along a side of what signatures are taken of, at most: quick on a large model too."""
DIRECTIONS = 4
"""Pairs of directions that every layer's change is seen between."""
ASKED = 4
"""Concepts whose predictions are taken, at most: a hundred would cost more than the solve."""


_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hub_id(model: str) -> str | None:
    """A model's id on the hub, None for a folder, a file, a bundled model or one in memory."""
    there = model in BUNDLED or Path(model).exists() or Path(model).suffix == ".safetensors"
    return None if there or not _HUB.fullmatch(model) else model


def describe(backbone: Backbone, erasure: Erasure) -> Erasure:
    """Complete an erasure's record: which model it was made for, and what it does to it."""
    erasure.record.update(
        {
            **backbone.source,
            "hub": hub_id(backbone.name_or_path),
            "architecture": backbone.architecture,
            "components": {
                name: backbone.config_of(name)
                for name in sorted({backbone.denoiser_name, *erasure.components})
            },
            "denoiser": backbone.denoiser_name,
            "prediction": backbone.prediction,
            "loras": backbone.loras,
            "sketch": sketch(find_weights(backbone.networks, erasure.layers)),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "versions": versions(),
        }
    )
    erasure.record["fingerprint"] = fingerprint(backbone, erasure)
    return erasure


def fingerprint(backbone: Backbone, erasure: Erasure) -> dict[str, Any]:
    """How an erasure changes a model, in a few numbers that an export can be held against.

    Returns:
        `layers`, the norm of every layer's change; `projections`, what it is between seeded
        directions; `predictions`, for up to four concepts and for the empty prompt the relative
        change of one seeded prediction (`shift`) and its projections on seeded directions
        (`signature`).

    Raises:
        NotFeltError: the erasure is applied and the model does not run through it.
    """
    by_place = erasure.by_place()
    with erasure.applied(backbone):
        prompts = [concept.name for concept in erasure.concepts[:ASKED]]
        return {**of_changes(by_place), "predictions": signatures(backbone, prompts)}


def of_changes(by_place: Mapping[str, Iterable[Change]]) -> dict[str, Any]:
    """`layers` and `projections` of a fingerprint."""
    norms, between = {}, {}
    for place, changes in sorted(by_place.items()):
        each = list(changes)
        if all(change.weight_change for change in each):
            whole = summed(each)
            norms[place], between[place] = whole.norm, projections(place, whole)
        else:
            norms[place] = sum(change.norm for change in each)
    return {"layers": norms, "projections": between}


def projections(place: str, change: Change | Tensor) -> list[float]:
    """A change of a weight between seeded directions: uᵀ Δ v, whose expected square is Δ's norm's.

    A norm alone is the same for a change, its opposite, and a turned one.

    Args:
        place: seeds the directions.
        change: a change of a weight, or its delta, (out, in) or (out, in, height, width).
    """
    parts: list[Tensor]
    if isinstance(change, LowRank):
        parts = [change.up, change.down]
    else:
        parts = [change.delta if isinstance(change, Change) else change]
    flat = [part.detach().to("cpu", torch.float64).flatten(1) for part in parts]
    seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:6], "big")
    generator = torch.Generator().manual_seed(seed)
    shapes = (DIRECTIONS, flat[0].shape[0]), (DIRECTIONS, flat[-1].shape[1])
    left, right = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    for part in flat:
        left = left @ part
    found: list[float] = (left * right).sum(1).tolist()
    return found


@torch.no_grad()
def signatures(backbone: Backbone, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Seeded predictions of the model as it stands beside the original, for `fingerprint`."""
    shape = backbone.latent_shape(*_size(backbone))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, *shape), generator=generator)
    directions = torch.randn((8, noise.numel()), generator=generator) / noise.numel() ** 0.5
    latents = noise.to(backbone.device, backbone.dtype)
    found = []
    for prompt in (*prompts, ""):
        with backbone.exact():
            now = _prediction(backbone, latents, prompt)
            with original():
                before = _prediction(backbone, latents, prompt)
        shift = float((now - before).norm() / before.norm())
        found.append({"prompt": prompt, "shift": shift, "signature": (directions @ now).tolist()})
    return found


def _prediction(backbone: Backbone, latents: torch.Tensor, prompt: str) -> torch.Tensor:
    states = backbone.encode_prompts([prompt])
    return backbone.predict(latents, 0.5, states, 1.0).float().cpu().flatten()


def _size(backbone: Backbone) -> tuple[int, int]:
    sampling = backbone.profile.sampling
    assert sampling.height and sampling.width
    return min(sampling.height, SIDE), min(sampling.width, SIDE)
