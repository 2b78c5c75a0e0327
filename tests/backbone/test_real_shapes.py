from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backbone.architectures import REAL, SIDE, TINY, tiny_flux_dev

from expunge.backbone.attention import AttentionMaps


@pytest.mark.parametrize("name", REAL)
def test_full_size_models_have_the_published_number_of_parameters(name: str) -> None:
    build, parameters = REAL[name]
    with torch.device("meta"):
        denoiser = build()
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters


@pytest.mark.parametrize(("name", "layers"), [("sd15", 16), ("sdxl", 70), ("sd3", 24)])
def test_every_attention_to_text_is_recorded(name: str, layers: int) -> None:
    build, _ = REAL[name]
    with torch.device("meta"):
        denoiser = build()
        latents = torch.randn(1, denoiser.config.in_channels, 32, 32)
        width = denoiser.config.get("cross_attention_dim") or denoiser.config.joint_attention_dim
        call: dict[str, Any] = {"encoder_hidden_states": torch.randn(1, 77, width)}
        call |= {"timestep": torch.ones(1)}
        if name == "sd3":
            call["pooled_projections"] = torch.randn(1, 2048)
        if name == "sdxl":
            more = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.randn(1, 6)}
            call["added_cond_kwargs"] = more
        with torch.no_grad(), AttentionMaps(denoiser) as maps:
            denoiser(latents, **call)
    assert len(maps.layers) == layers
    assert {probabilities.shape[-1] for probabilities in maps.layers.values()} == {77}


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
