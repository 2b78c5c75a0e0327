"""What every backbone promises, on a tiny pipeline of every real architecture."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from backbone.architectures import REAL, SIDE, TINY
from diffusers import DPMSolverMultistepScheduler, FluxPipeline
from torch import nn

from expunge.backbone import text
from expunge.backbone.attention import attention_to, token_places
from expunge.backbone.base import Backbone
from expunge.backbone.flux import FluxBackbone, pack, positions, unpack
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.backbone.sampling import follow, invert
from expunge.backbone.solvers import SOLVERS, FixedPoint
from expunge.change import LowRank
from expunge.layouts import kohya_flux, kohya_sd, kohya_sdxl

FLOWS = [name for name in TINY if "flux" in name or "sd3" in name]


@pytest.fixture(scope="module", params=list(TINY))
def tiny(request: pytest.FixtureRequest) -> Backbone:
    backbone = as_backbone(TINY[request.param]())
    backbone.precision = "own"
    return backbone


def _sampling(backbone: Backbone, **more: Any) -> Sampling:
    usual = backbone.profile.sampling
    return dataclasses.replace(usual, num_inference_steps=3, height=SIDE, width=SIDE, **more)


def _noise(backbone: Backbone, count: int = 2) -> torch.Tensor:
    return backbone.initial_noise(list(range(count)), _sampling(backbone))


def test_drawing_agrees_with_the_pipeline(tiny: Backbone) -> None:
    """The same noise, steps and guidance draw the picture that `pipe(...)` draws."""
    pipe, sampling = tiny.pipe, _sampling(tiny)
    if tiny.prediction != "flow":  # ours is DPM-Solver++, whatever the pipeline was given
        config, how = pipe.scheduler.config, {"algorithm_type": "dpmsolver++"}
        before = pipe.scheduler
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            config, **how, final_sigmas_type="zero"
        )
    noise = _noise(tiny)
    flux = isinstance(tiny, FluxBackbone)
    more = {"max_sequence_length": tiny.max_sequence_length} if flux else {}
    theirs = pipe(
        ["a photo of a cat", "a dog"],
        height=SIDE,
        width=SIDE,
        num_inference_steps=3,
        guidance_scale=sampling.guidance_scale,
        latents=pack(noise) if flux else noise.clone(),
        output_type="latent",
        **more,
    ).images
    if tiny.prediction != "flow":
        pipe.scheduler = before
    ours = tiny.sample(["a photo of a cat", "a dog"], [0, 1], sampling)
    assert torch.allclose(pack(ours) if flux else ours, theirs, atol=1e-4)


def test_noise_and_picture_come_back_from_a_perfect_prediction(tiny: Backbone) -> None:
    clean, noise = _noise(tiny, 3), torch.randn_like(_noise(tiny, 3))
    levels = torch.tensor([0.1, 0.5, 0.9])
    noisy = tiny.add_noise(clean, noise, levels)
    if tiny.prediction == "flow":
        perfect = noise - clean
    elif tiny.prediction == "epsilon":
        perfect = noise
    else:
        zero = torch.zeros_like(noise)
        perfect = tiny.add_noise(noise, zero, levels) - tiny.add_noise(zero, clean, levels)
    assert torch.allclose(tiny.clean(noisy, perfect, levels), clean, atol=1e-4)
    assert torch.allclose(tiny.noise(noisy, perfect, levels), noise, atol=1e-4)
    one = slice(0, 1)
    moved = tiny.move(noisy[one], perfect[one], 0.1, 0.7)
    assert torch.allclose(moved, tiny.add_noise(clean[one], noise[one], 0.7), atol=1e-4)


def test_the_log_of_signal_over_noise_falls_with_the_level(tiny: Backbone) -> None:
    levels = [0.05, 0.3, 0.6, 0.95]
    snrs = [tiny.log_snr(level) for level in levels]
    assert snrs == sorted(snrs, reverse=True)
    signal = tiny.add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0.3)
    noise = tiny.add_noise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0.3)
    assert tiny.log_snr(0.3) == pytest.approx(2 * float((signal / noise).log()), abs=1e-4)


def test_every_text_stream_is_what_its_layers_read(tiny: Backbone) -> None:
    """Hooks on the layers see exactly what the stream says, apart from the batch."""
    prompts = ["a photo of a cat", "a dog"]
    conditioning, latents = tiny.encode_prompts(prompts), _noise(tiny)
    for stream in tiny.text_streams().values():
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, name=name, seen=seen: seen.update({name: args[0]})
            )
            for name, layer in stream.layers.items()
        ]
        with torch.no_grad():
            tiny.predict(latents, 0.5, conditioning)
        for hook in hooks:
            hook.remove()
        wanted = stream.states(conditioning)
        read = wanted.shape[-1]
        if tiny.architecture == "sdxl" and not stream.tokenised:  # sizes follow, left at zero
            assert conditioning.pooled is not None
            read = conditioning.pooled.shape[-1]
            assert not wanted[..., read:].any()
        assert set(seen) == set(stream.layers)
        for found in seen.values():
            shown = found.view_as(wanted)[..., :read]
            assert torch.allclose(shown, wanted[..., :read], atol=1e-5)


def test_encoded_prompts_are_kept_within_a_budget(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = tiny.encode_prompts(["a cat"]).nbytes
    monkeypatch.setattr(text, "CACHE_BYTES", 3 * each)
    prompts = ["a cat", "a dog", "a cat", "a mat", "a photo", "a dog"]
    again = tiny.encode_prompts(prompts)
    assert len(tiny._cache) == 3
    assert len(again) == 6
    assert torch.equal(again.prompt_embeds[0], again.prompt_embeds[2])
    assert not torch.equal(again.prompt_embeds[0], again.prompt_embeds[1])


def test_token_runs_cover_the_token_states(tiny: Backbone) -> None:
    runs = tiny.tokens(["a photo of a cat", "a dog"])
    states = tiny.encode_prompts(["a dog"]).prompt_embeds
    assert sum(run.ids.shape[1] for run in runs) == states.shape[1]
    assert all((run.ids == run.end).any(dim=1).all() for run in runs)


def test_fixed_points_invert_euler_sampling(tiny: Backbone) -> None:
    """Inverting what straight steps drew gives back the noise it was drawn from."""
    sampling = _sampling(tiny, guidance_scale=1.0)
    sampling = dataclasses.replace(sampling, num_inference_steps=8)
    conditioning = tiny.encode_prompts(["a photo of a cat", "a dog"])
    guidance, noise = tiny.guidance_for(conditioning, 1.0), _noise(tiny)
    latents = follow(tiny, noise, guidance, tiny.levels(sampling))
    errors = {}
    for name, solver in (SOLVERS | {"fixed_point": FixedPoint(25)}).items():
        found = invert(tiny, latents, guidance, sampling, solver=solver)
        errors[name] = float((found - noise).norm() / noise.norm())
    assert errors["fixed_point"] < 1e-3
    assert errors["fixed_point"] < errors["euler"]
    assert errors["midpoint"] < 0.5


def test_a_prompt_too_long_is_named(tiny: Backbone) -> None:
    long = "a photo of a cat " * 200
    found = tiny.cut_short([long, "a cat"])
    assert list(found) == [long]
    tokens, limit = found[long]
    assert tokens > limit >= 77


def test_attention_to_a_name_is_a_map_of_the_picture(tiny: Backbone) -> None:
    prompts = ["a photo of a cat on a mat", "a cat"]
    places = token_places(tiny, prompts, "cat")
    assert places.shape == tiny.encode_prompts(prompts).prompt_embeds.shape[:2]
    assert (places.sum(dim=1) == places[1].sum()).all()
    latents = _noise(tiny)
    found = attention_to(tiny, latents, 0.5, prompts, "cat")
    assert found.shape == (2, *latents.shape[-2:])
    assert found.requires_grad and (found > 0).all() and (found < 1).all()
    with pytest.raises(ValueError, match="does not hold 'dog'"):
        token_places(tiny, prompts, "dog")


@pytest.mark.parametrize("branch", ["cross", "self", "attention"])
def test_changes_may_be_made_to_every_attention_layer(branch: Any, tiny: Backbone) -> None:
    layers = tiny.select(branch)
    assert layers
    assert all(isinstance(layer, nn.Linear) for layer in layers.values())
    parts = [tiny.select(branch, (part,)) for part in ("q", "k", "v", "out")]
    assert all(parts)
    assert {name for part in parts for name in part} == set(layers)
    assert sum(map(len, parts)) == len(layers)
    assert {*tiny.select("cross"), *tiny.select("self")} == set(tiny.select("attention"))
    modules = tiny.attention_modules(branch)
    assert {re.split(r"\.(?:to|add)_", name)[0] for name in layers} == set(modules)
    assert all(hasattr(module, "to_q") for module in modules.values())


def test_wider_branches_hold_the_narrower_ones(tiny: Backbone) -> None:
    attention, blocks, every = (
        set(tiny.select(branch)) for branch in ("attention", "transformer", "all")
    )
    assert attention < blocks < every
    rest, cross = set(tiny.select("not-cross")), set(tiny.select("cross"))
    assert rest | cross == every and not rest & cross
    kinds = (nn.Linear, nn.Conv2d)
    assert len(every) == sum(isinstance(module, kinds) for module in tiny.denoiser.modules())
    with pytest.raises(ValueError, match="parts must be None with branch 'all'"):
        tiny.select("all", ("q",))


PROJECTIONS = {
    # reads text, text's share of attention, picture's share
    "sd15": (32, 64, 64),
    "sdxl": (141, 280, 280),
    "sd3": (2, 95, 96),
    "flux": (2, 190, 76),
}
"""By hand: SD 1.5 has 16 transformer blocks, SDXL 70 (and the pooled embedder), SD3-medium 24 joint
blocks of which the last gives no text, FLUX.1 19 joint blocks and 38 with shared layers q, k, v."""


WRITTEN = {
    "sd15": (128, "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"),
    "sdxl": (561, "lora_unet_output_blocks_0_1_transformer_blocks_9_attn2_to_v"),
    "flux": (2 + 19 * 4 + 38, "lora_unet_single_blocks_37_linear1"),
}
"""Layers in a kohya file of a full-size model, and the name of one."""


@pytest.mark.parametrize("name", REAL)
def test_full_size_models_have_the_projections_counted_by_hand(name: str) -> None:
    build, _ = REAL[name]
    with torch.device("meta"):
        denoiser = build()
    family = {"sd15": "sd", "flux": "flux_dev"}.get(name, name)
    backbone = as_backbone(TINY[family]())
    setattr(backbone.pipe, backbone.denoiser_name, denoiser)
    found = (
        len(backbone.prompt_projections()),
        len(backbone.select("cross")),
        len(backbone.select("self")),
    )
    assert found == PROJECTIONS[name]
    every = {**backbone.prompt_projections(), **backbone.select("attention")}
    nothing = LowRank(torch.zeros(1, 1), torch.zeros(1, 1))
    changes = {
        n: LowRank(nothing.down.expand(1, x.in_features), nothing.up.expand(x.out_features, 1))
        for n, x in every.items()
    }
    if name == "sdxl":
        written = kohya_sdxl(changes, backbone.denoiser_config)
    elif name != "sd3":
        written = {"sd15": kohya_sd, "flux": kohya_flux}[name](changes)
    if name in WRITTEN:
        count, one = WRITTEN[name]
        assert len(written) == count
        assert one in written


def test_packing_is_flux_own_and_comes_undone() -> None:
    latents = torch.randn(2, 16, 8, 12)
    theirs = FluxPipeline._pack_latents(latents, 2, 16, 8, 12)
    assert torch.equal(pack(latents), theirs)
    assert torch.equal(unpack(pack(latents), 8, 12), latents)
    ids = FluxPipeline._prepare_latent_image_ids(1, 4, 6, torch.device("cpu"), torch.float32)
    assert torch.equal(positions(4, 6), ids)


def test_schnell_draws_without_guidance() -> None:
    backbone = as_backbone(TINY["flux_schnell"]())
    assert backbone.profile.sampling.guidance_scale == 1
    assert backbone.profile.sampling.num_inference_steps == 4
    with pytest.raises(ValueError, match=r"guidance_scale must be 1, got 3\.5"):
        backbone.sample(["a cat"], [0], _sampling(backbone, guidance_scale=3.5))


def test_dev_takes_guidance_as_an_input() -> None:
    backbone = as_backbone(TINY["flux_dev"]())
    conditioning, latents = backbone.encode_prompts(["a cat"]), _noise(backbone, 1)
    with torch.no_grad():
        low, high = (backbone.predict(latents, 0.5, conditioning, g) for g in (1.0, 7.0))
        guided = backbone.guidance_for(conditioning, 7.0)(backbone, latents, 0.5)
    assert not torch.allclose(low, high)
    assert torch.equal(guided, high)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_flux_without_an_encoder_is_refused(name: str) -> None:
    pipe = TINY["flux_dev"]()
    setattr(pipe, name, None)
    with pytest.raises(ValueError, match=f"{name}.*got None"):
        as_backbone(pipe)


def test_sd3_draws_without_t5() -> None:
    pipe = TINY["sd3"]()
    pipe.text_encoder_3 = None
    backbone = as_backbone(pipe)
    assert len(backbone.tokens(["a cat"])) == 1
    assert len(backbone.draw(["a cat"], [0], _sampling(backbone))) == 1


def test_mixed_types_are_refused() -> None:
    pipe = TINY["flux_dev"]()
    pipe.transformer.context_embedder.half()
    with pytest.raises(ValueError, match=r"several types \(float16, float32\); cast it"):
        as_backbone(pipe)


def test_an_unknown_pipeline_is_told_what_it_has_and_lacks() -> None:
    class Odd:
        unet = nn.Linear(2, 2)
        text_encoder = nn.Linear(2, 2)

    with pytest.raises(ValueError, match=r"no backbone for Odd: it has .*lacks .*autoencoder"):
        as_backbone(Odd())


def test_a_subclass_of_a_known_pipeline_is_known() -> None:
    pipe = TINY["flux_schnell"]()

    class Mine(FluxPipeline):  # type: ignore[misc]
        pass

    assert isinstance(as_backbone(Mine(**pipe.components)), FluxBackbone)


def test_guidance_of_sdxl_leads_away_from_zeros() -> None:
    backbone = as_backbone(TINY["sdxl"]())
    nothing = backbone.unconditional()
    assert nothing.pooled is not None
    assert not nothing.prompt_embeds.any() and not nothing.pooled.any()
    assert backbone.encode_prompts([""]).prompt_embeds.any()
    backbone.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    empty = backbone.encode_prompts([""]).prompt_embeds
    assert torch.equal(backbone.unconditional().prompt_embeds, empty)


def test_models_that_edit_pictures_are_refused() -> None:
    pipe = TINY["sd"]()
    pipe.unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="reads 9 channels and the autoencoder gives 4"):
        as_backbone(pipe)
    refiner = TINY["sdxl"]()
    refiner.text_encoder = None
    with pytest.raises(ValueError, match="refiner is not supported"):
        as_backbone(refiner)
