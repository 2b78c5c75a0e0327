"""What an erasure does to a model, in a few numbers that an export can be held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from expunge.adapter import original
from expunge.backbone.base import Backbone
from expunge.erasure import Erasure

SIDE = 256
"""Pixels along a side of what signatures are taken of, at most: quick on a large model too."""


def fingerprint(backbone: Backbone, erasure: Erasure) -> dict[str, Any]:
    """How an erasure changes a model, in a few numbers that an export can be held against.

    Returns:
        `layers`, the Frobenius norm of every layer's change; `predictions`, for each concept and
        for the empty prompt the relative change of one seeded prediction (`shift`) and its
        projections on seeded directions (`signature`).
    """
    layers = {name: change.norm for name, change in erasure.changes().items()}
    with erasure.applied(backbone):
        predictions = signatures(backbone, [concept.name for concept in erasure.concepts])
    return {"layers": layers, "predictions": predictions}


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
        states = backbone.encode_prompts([prompt])
        with backbone.exact():
            now = backbone.predict(latents, 0.5, states, 1.0).float().cpu().flatten()
            with original():
                before = backbone.predict(latents, 0.5, states, 1.0).float().cpu().flatten()
        shift = float((now - before).norm() / before.norm())
        found.append({"prompt": prompt, "shift": shift, "signature": (directions @ now).tolist()})
    return found


def _size(backbone: Backbone) -> tuple[int, int]:
    sampling = backbone.profile.sampling
    assert sampling.height and sampling.width
    return min(sampling.height, SIDE), min(sampling.width, SIDE)
