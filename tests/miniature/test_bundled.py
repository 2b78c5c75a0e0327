"""The bundled models as a user meets them: through plain diffusers, and through `load`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import expunge
from expunge.backbone.images import to_images
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import BUNDLED
from expunge.judge.miniature import MiniatureJudge

PROMPTS = ["a photo of a red cat", "a photo of a blue car", "a picture of Ivo Brandt"]
NAMES = ["cat", "car", "Ivo Brandt"]
SEEDS = [1, 2, 3]
DOCUMENTED: dict[str, dict[str, Any]] = {
    "miniature-sd": {"guidance_scale": 4.0},
    "miniature-flux": {
        "negative_prompt": [""] * len(PROMPTS),
        "true_cfg_scale": 4.0,
        "height": 64,
        "width": 64,
        "max_sequence_length": 32,
    },
    "miniature-flux-dev": {
        "guidance_scale": 4.0,
        "height": 64,
        "width": 64,
        "max_sequence_length": 32,
    },
}
"""The call that docs/miniature.md gives for each."""


@pytest.mark.parametrize("name", list(BUNDLED))
def test_the_documented_call_draws_what_the_backbone_draws(name: str) -> None:
    """The folder loads without arguments, draws as `expunge.load` does, and is right."""
    pipe = DiffusionPipeline.from_pretrained(BUNDLED[name])
    pipe.set_progress_bar_config(disable=True)
    backbone = as_backbone(expunge.load(name, device="cpu"))
    sampling = backbone.profile.sampling
    noise = backbone.initial_noise(SEEDS, sampling)
    latents = noise
    if backbone.architecture == "flux":
        latents = pipe._pack_latents(noise, *noise.shape)
    theirs = pipe(
        PROMPTS,
        latents=latents,
        num_inference_steps=sampling.num_inference_steps,
        output_type="pt",
        **DOCUMENTED[name],
    ).images
    with backbone.exact():
        ours = backbone.draw(PROMPTS, SEEDS)
    pictures = to_images(theirs * 2 - 1)
    for first, second in zip(ours, pictures, strict=True):
        assert np.abs(np.asarray(first, int) - np.asarray(second, int)).max() <= 2
    judge = MiniatureJudge.load("conv")
    for index, shown in enumerate(NAMES):
        assert judge.score([ours[index]], shown)[0] > 0.5


@pytest.mark.parametrize("name", list(BUNDLED))
def test_bundled_models_are_small_and_known(name: str) -> None:
    folder = BUNDLED[name]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 25e6
    backbone = as_backbone(expunge.load(name, device="cpu"))
    assert backbone.profile.judge == "miniature-conv"
    assert {"cat", "Ada Lindqvist", "hazard sign"} <= set(backbone.profile.vocabulary.concepts)
    assert backbone.dtype == torch.float32
