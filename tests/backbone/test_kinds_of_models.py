"""Models with unusual schedulers, autoencoders and layers are drawn right, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backbone.architectures import SIDE, TINY, _unet
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from torch import nn

from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.watermark.edit.base import to_float

WITHIN = 2
"""Of 255, on every pixel: what two implementations may differ by."""


def drawn_by_pipe(pipe: Any, backbone: Backbone, sampling: Sampling, scheduler: Any) -> Any:
    """What plain `pipe(...)` draws with the sampler that ours is."""
    before, pipe.scheduler = pipe.scheduler, scheduler
    noise = backbone.initial_noise([0], sampling)
    image = pipe(
        "a photo of a cat",
        height=SIDE,
        width=SIDE,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        latents=noise.clone(),
    ).images[0]
    pipe.scheduler = before
    return np.asarray(image).astype(int)


def drawn(backbone: Backbone, sampling: Sampling) -> Any:
    with backbone.exact():
        return np.asarray(backbone.draw(["a photo of a cat"], [0], sampling)[0]).astype(int)


def solver(pipe: Any, **more: Any) -> Any:
    how = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", **more}
    return DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **how)


@pytest.mark.parametrize(
    ("name", "scheduler", "words"),
    [
        ("sdxl", EDMEulerScheduler(), "EDMEulerScheduler counts noise levels by σ"),
        ("sdxl", EulerDiscreteScheduler(timestep_type="continuous"), "counts noise levels by σ"),
        ("sdxl", FlowMatchEulerDiscreteScheduler(), "predicts a flow .FlowMatchEuler"),
        ("sd", UniPCMultistepScheduler(use_flow_sigmas=True), "predicts a flow .UniPC"),
        ("sd", DDIMScheduler(prediction_type="sample"), "the scheduler says 'sample'"),
    ],
)
def test_schedules_that_are_not_known_are_refused(name: str, scheduler: Any, words: str) -> None:
    pipe = TINY[name]()
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=words):
        as_backbone(pipe)


def test_a_normed_autoencoder_is_heeded_as_the_pipeline_does() -> None:
    pipe = TINY["sdxl"]()
    pipe.vae.register_to_config(latents_mean=[1.0, -2, 0.5, 3], latents_std=[4.0, 5, 6, 7])
    backbone, sampling = as_backbone(pipe), Sampling(3, 5.0, SIDE, SIDE)
    theirs = drawn_by_pipe(pipe, backbone, sampling, solver(pipe))
    assert np.abs(drawn(backbone, sampling) - theirs).max() <= WITHIN
    latents = torch.randn(1, 4, 8, 8)
    scale, shift = backbone._scale_and_shift(latents)
    with torch.no_grad():
        inside = pipe.vae.encode(torch.zeros(1, 3, SIDE, SIDE)).latent_dist.mode()
    assert torch.allclose(
        backbone.encode_pixels(torch.zeros(1, 3, SIDE, SIDE)) * scale + shift, inside, atol=1e-4
    )


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_the_shift_of_flow_solvers_is_kept(kind: Any) -> None:
    pipe = TINY["sd3"]()
    pipe.scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    backbone, sampling = as_backbone(pipe), Sampling(4, 5.0, SIDE, SIDE)
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert backbone.levels(sampling) == pytest.approx(as_backbone(TINY["sd3"]()).levels(sampling))
    theirs = drawn_by_pipe(pipe, backbone, sampling, euler)
    assert np.abs(drawn(backbone, sampling) - theirs).max() <= WITHIN


def test_consistency_models_read_their_guidance() -> None:
    pipe = TINY["sd"]()
    pipe.unet = _unet(32, time_cond_proj_dim=8).eval()
    with torch.no_grad():
        pipe.unet.time_embedding.cond_proj.weight.mul_(20)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    backbone = as_backbone(pipe)
    usual = backbone.profile.sampling
    assert (usual.num_inference_steps, usual.guidance_scale) == (4, 8.5)
    assert backbone.guidance == "embedded"
    sampling = Sampling(4, 8.5, SIDE, SIDE)
    theirs = drawn_by_pipe(pipe, backbone, sampling, solver(pipe, solver_order=1))
    assert np.abs(drawn(backbone, sampling) - theirs).max() <= WITHIN
    told, noise = backbone.encode_prompts(["a cat"]), backbone.initial_noise([0], sampling)
    with torch.no_grad():
        low, high = (backbone.guidance_for(told, s)(backbone, noise, 0.5) for s in (1.0, 8.5))
    assert float((high - low).norm() / low.norm()) > 0.01


@pytest.mark.parametrize(
    ("scheduler", "steps", "scale"),
    [
        (LCMScheduler(), 4, 1.0),
        (EulerAncestralDiscreteScheduler(timestep_spacing="trailing"), 4, 1.0),
        (EulerDiscreteScheduler(timestep_spacing="trailing"), 4, 1.0),
        (EulerDiscreteScheduler(timestep_spacing="leading"), 30, 5.0),
        (EulerDiscreteScheduler(timestep_spacing="trailing", rescale_betas_zero_snr=True), 30, 5.0),
        (
            EulerDiscreteScheduler(timestep_spacing="trailing", prediction_type="v_prediction"),
            30,
            5.0,
        ),
    ],
)
def test_distilled_models_are_drawn_in_few_steps(scheduler: Any, steps: int, scale: float) -> None:
    pipe = TINY["sdxl"]()
    pipe.scheduler = scheduler
    backbone = as_backbone(pipe)
    usual = backbone.profile.sampling
    assert (usual.num_inference_steps, usual.guidance_scale) == (steps, scale)
    assert backbone.sampler == f"dpmsolver++, order {1 if steps == 4 else 2}"


def test_a_tiny_autoencoder_encodes() -> None:
    pipe = TINY["sd"]()
    pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    backbone = as_backbone(pipe)
    pixels = to_float(torch.randint(256, (2, 3, SIDE, SIDE))) * 2 - 1
    latents = backbone.encode_pixels(pixels)
    with torch.no_grad():
        assert torch.equal(latents, pipe.vae.encode(pixels).latents)
    assert backbone.decode_pixels(latents).shape == pixels.shape
    assert len(backbone.draw(["a cat"], [0], Sampling(2, 3.0, SIDE, SIDE))) == 1


def test_sizes_of_sd3_follow_its_patches() -> None:
    backbone = as_backbone(TINY["sd3"]())
    assert backbone.grain == 16
    with pytest.raises(ValueError, match="multiples of 16, got 72"):
        backbone.latent_shape(72, 64)


@pytest.mark.parametrize("name", ["sd", "flux_dev"])
def test_packed_layers_are_refused_by_name(name: str) -> None:
    backbone = as_backbone(TINY[name]())
    layer_name, layer = next(iter(backbone.prompt_projections().items()))
    packed = torch.zeros(layer.out_features, layer.in_features // 2, dtype=torch.uint8)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ValueError, match=f"{layer_name} holds its weights as Linear packs them"):
        backbone.text_streams()


@pytest.mark.parametrize("name", list(TINY))
def test_fused_projections_are_refused_where_layers_are_looked_up(name: str) -> None:
    backbone = as_backbone(TINY[name]())
    names = set(backbone.select("attention"))
    backbone.denoiser.fuse_qkv_projections()  # type: ignore[operator]
    for look in (backbone.select, backbone.text_streams, backbone.attention_modules):
        with pytest.raises(ValueError, match=r"unfuse_qkv_projections\(\) first"):
            look()
    backbone.denoiser.unfuse_qkv_projections()  # type: ignore[operator]
    assert set(backbone.select("attention")) == names


def test_layers_are_found_under_wrappers() -> None:
    peft = pytest.importorskip("peft")
    backbone = as_backbone(TINY["sd"]())
    plain = {name: layer.weight for name, layer in backbone.select("attention").items()}
    config = peft.LoraConfig(r=2, target_modules=["to_k", "to_q"])
    peft.inject_adapter_in_model(config, backbone.pipe.unet, "users")
    backbone.pipe.unet = torch.compile(backbone.pipe.unet, backend="eager")
    found = {name: layer.weight for name, layer in backbone.select("attention").items()}
    assert found.keys() == plain.keys()
    assert all(found[name] is weight for name, weight in plain.items())
    streams = backbone.text_streams()["tokens"].layers
    assert all(layer.weight is plain[name] for name, layer in streams.items())
