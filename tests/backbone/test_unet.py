from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

import expunge
from expunge.backbone.base import Backbone
from expunge.backbone.images import to_images, to_pixels
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import BUNDLED, Sampling

SAMPLING = Sampling(num_inference_steps=4, guidance_scale=3.0, height=64, width=64, batch_size=2)


def _noise(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_clean_latent_comes_back_from_a_perfect_prediction(pipe: Any, kind: str) -> None:
    parts = {name: getattr(pipe, name) for name in pipe.components}
    parts["scheduler"] = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=kind)
    backbone = as_backbone(StableDiffusionPipeline(**parts, requires_safety_checker=False))
    clean, noise = _noise(3), torch.randn(3, 4, 16, 16)
    levels = torch.tensor([0.1, 0.5, 0.9])
    noisy = backbone.add_noise(clean, noise, levels)
    perfect = noise
    if kind == "v_prediction":
        zero = torch.zeros_like(noise)
        perfect = backbone.add_noise(noise, zero, levels) - backbone.add_noise(zero, clean, levels)
    assert torch.allclose(backbone.clean(noisy, perfect, levels), clean, atol=1e-4)


def test_flow_models_are_no_unets(pipe: Any) -> None:
    parts = {name: getattr(pipe, name) for name in pipe.components}
    parts["scheduler"] = DDIMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="must predict"):
        as_backbone(StableDiffusionPipeline(**parts, requires_safety_checker=False))


def test_a_seed_means_the_same_in_any_batch(backbone: Backbone) -> None:
    alone = backbone.sample(["a cat"], [7], SAMPLING)
    together = backbone.sample(["a dog", "a cat"], [3, 7], SAMPLING)
    with backbone.exact():
        exact_alone = backbone.sample(["a cat"], [7], SAMPLING)
        exact_together = backbone.sample(["a dog", "a cat"], [3, 7], SAMPLING)
    assert torch.allclose(exact_alone[0], exact_together[1], atol=1e-4)
    assert torch.allclose(alone[0], together[1], atol=0.2)


def test_sampling_agrees_with_the_pipeline(pipe: Any, backbone: Backbone) -> None:
    """The same scheduler, steps, guidance and noise draw the same picture as `pipe(...)`."""
    noise = backbone.initial_noise([5], SAMPLING)
    theirs = pipe(
        "a photo of a red car",
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
    ).images
    with backbone.exact():
        ours = backbone.sample(["a photo of a red car"], [5], SAMPLING)
    assert torch.allclose(ours, theirs, atol=1e-3)


def test_the_pipelines_scheduler_is_left_alone(pipe: Any) -> None:
    parts = {name: getattr(pipe, name) for name in pipe.components}
    euler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    parts["scheduler"] = euler
    backbone = as_backbone(StableDiffusionPipeline(**parts, requires_safety_checker=False))
    state = {k: v for k, v in vars(euler).items() if not isinstance(v, torch.Tensor)}
    backbone.sample(["a cat"], [0], SAMPLING)
    assert {k: v for k, v in vars(euler).items() if not isinstance(v, torch.Tensor)} == state


def test_text_is_encoded_once(pipe: Any) -> None:
    backbone = as_backbone(pipe)
    calls = []
    encode = type(backbone)._encode

    class Counting(type(backbone)):  # type: ignore[misc]
        def _encode(self, pipe: Any, prompts: Any) -> Any:
            calls.append(list(prompts))
            return encode(self, pipe, prompts)

    counting = Counting(pipe)
    counting.encode_prompts(["a cat", "a cat", "a dog"])
    states = counting.encode_prompts(["a dog", "a cat"])
    assert calls == [["a cat", "a dog"]]
    assert states.prompt_embeds.shape == (2, 77, 128)


def test_projections_are_those_that_read_text(backbone: Backbone) -> None:
    reading = backbone.prompt_projections()
    assert len(reading) == 14
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in reading)
    assert {layer.in_features for layer in reading.values()} == {128}
    assert set(reading) < set(backbone.select("cross"))
    everything = set(backbone.select("attention"))
    cross, own = set(backbone.select("cross")), set(backbone.select("self"))
    assert everything == cross | own
    assert not cross & own


def test_images_survive_encode_and_decode(backbone: Backbone) -> None:
    drawn = backbone.draw(["a photo of a blue fish"], [1])
    again = backbone.decode(backbone.encode_images(drawn))
    error = np.asarray(drawn[0], float) - np.asarray(again[0], float)
    assert np.sqrt((error**2).mean()) < 20
    assert to_images(to_pixels(drawn))[0].tobytes() == drawn[0].tobytes()


def test_loading_with_plain_diffusers_needs_no_arguments() -> None:
    plain = StableDiffusionPipeline.from_pretrained(BUNDLED["miniature-sd"])
    plain.set_progress_bar_config(disable=True)
    image = plain("a photo of a cat", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 5


def test_a_pipeline_in_hand_and_a_folder_have_one_profile(backbone: Backbone) -> None:
    plain = StableDiffusionPipeline.from_pretrained(BUNDLED["miniature-sd"])
    other = as_backbone(plain)
    assert other.profile.vocabulary.resolve("cat").synonyms == ("kitten", "feline")
    assert other.profile == backbone.profile
    assert other.content_hash() == backbone.content_hash()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("minature-sd", "did you mean 'miniature-sd'"),
        ("./nowhere", "no model at"),
        ("", "no model at"),
    ],
)
def test_unknown_models_get_one_sentence(source: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expunge.load(source)


def test_single_files_need_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="config"):
        expunge.load(path)
    with pytest.raises(ValueError, match="does not load with config"):
        expunge.load(path, config=BUNDLED["miniature-sd"])


def test_other_pipelines_are_refused() -> None:
    with pytest.raises(ValueError, match="no backbone for"):
        as_backbone(object())


def test_sizes_must_fit_the_latents(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="multiples of"):
        backbone.initial_noise([0], replace(SAMPLING, height=63))
    with pytest.raises(ValueError, match="num_inference_steps"):
        Sampling(num_inference_steps=0)


def test_stable_diffusion_2_predicts_velocity(pipe: Any) -> None:
    """An SD 2.x-like pipeline: linear projections, v-prediction, one more level."""
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
    )
    parts = {name: getattr(pipe, name) for name in pipe.components}
    parts |= {
        "unet": unet,
        "vae": AutoencoderKL.from_config(pipe.vae.config),
        "scheduler": DDIMScheduler.from_config(
            pipe.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=True
        ),
    }
    backbone = as_backbone(StableDiffusionPipeline(**parts, requires_safety_checker=False))
    assert backbone.prediction == "v_prediction"
    assert len(backbone.draw(["a cat"], [0], replace(SAMPLING, num_inference_steps=2))) == 1
