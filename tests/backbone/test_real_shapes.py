from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backbone.architectures import REAL, SIDE, TINY, tiny_flux_dev

from expunge.backbone.attention import AttentionMaps


@pytest.mark.parametrize(
    ("name", "layers"), [("sd15", 16), ("sdxl", 70), ("sd3", 24), ("flux", 19 + 38)]
)
def test_full_size_models_are_the_published_ones(name: str, layers: int) -> None:
    build, parameters = REAL[name]
    with torch.device("meta"):
        denoiser = build()
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters
    with AttentionMaps(denoiser):
        hooked = [part for part in denoiser.modules() if part._forward_hooks]
    assert sum(hasattr(part, "heads") for part in hooked) == layers


@pytest.mark.parametrize("name", TINY)
def test_tiny_pipelines_draw_what_they_are_asked(name: str) -> None:
    pipe = TINY[name]()

    def draw(prompt: str) -> Any:
        generator = torch.Generator().manual_seed(0)
        size = {"height": SIDE, "width": SIDE, "num_inference_steps": 2}
        return pipe(prompt, generator=generator, output_type="np", **size).images[0]

    cat, dog = draw("a photo of a cat"), draw("a photo of a dog")
    assert cat.shape == (SIDE, SIDE, 3) and np.isfinite(cat).all()
    assert np.abs(cat - dog).max() > 1e-6


def test_tiny_pipelines_have_the_same_weights_whatever_the_seed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = tiny_flux_dev().transformer.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = tiny_flux_dev().transformer.state_dict()
    assert all(torch.equal(first[name], value) for name, value in second.items())
