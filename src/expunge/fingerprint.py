"""What every record of an erasure says of its model, and of what the erasure does to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from expunge.backbone.base import Backbone
from expunge.erasure import Erasure
from expunge.hooks import original
from expunge.run.versions import versions

SIDE = 256
"""Pixels along a side of what signatures are taken of, at most: quick on a large model too."""
ASKED = 4
"""Concepts whose predictions are taken, at most: with a hundred they cost more than the solve."""


def describe(backbone: Backbone, erasure: Erasure) -> Erasure:
    """Complete an erasure's record: which model it was made for, and what it does to it."""
    erasure.record.update(
        {
            **backbone.source,
            "architecture": backbone.architecture,
            "components": {
                name: backbone.config_of(name)
                for name in sorted({backbone.denoiser_name, *erasure.components})
            },
            "denoiser": backbone.denoiser_name,
            "prediction": backbone.prediction,
            "loras": backbone.loras,
            "sketch": backbone.sketch(erasure.layers),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "versions": versions(),
        }
    )
    erasure.record["fingerprint"] = fingerprint(backbone, erasure)
    return erasure


def fingerprint(backbone: Backbone, erasure: Erasure) -> dict[str, Any]:
    """How an erasure changes a model, in a few numbers that an export can be held against.

    Returns:
        `layers`, the norm of every layer's change; `predictions`, for up to four concepts and for
        the empty prompt the relative change of one seeded prediction (`shift`) and its projections
        on seeded directions (`signature`).

    Raises:
        NotFeltError: the erasure is applied and the model does not run through it.
    """
    layers = {
        place: sum(change.norm for change in changes)
        for place, changes in erasure.by_place().items()
    }
    with erasure.applied(backbone):
        prompts = [concept.name for concept in erasure.concepts[:ASKED]]
        return {"layers": layers, "predictions": signatures(backbone, prompts)}


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
