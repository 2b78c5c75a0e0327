"""Every supported architecture, at full size without weights and as a tiny random pipeline."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from expunge.backbone.profile import BUNDLED

SIDE = 64
"""Pixels along a side of a tiny pipeline's picture; its latents have 8."""

# --- full size: call under `with torch.device("meta")`


def sd15_unet() -> UNet2DConditionModel:
    """The UNet of Stable Diffusion 1.5: the class's blocks, 8 heads everywhere."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=8,
        cross_attention_dim=768,
    )


def sdxl_unet() -> UNet2DConditionModel:
    """The UNet of SDXL base 1.0."""
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def sd3_transformer() -> SD3Transformer2DModel:
    """The transformer of Stable Diffusion 3 medium."""
    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )


def flux_transformer() -> FluxTransformer2DModel:
    """The transformer of FLUX.1-dev."""
    return FluxTransformer2DModel(guidance_embeds=True)


REAL: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "sd15": (sd15_unet, 859_520_964),
    "sdxl": (sdxl_unet, 2_567_463_684),
    "sd3": (sd3_transformer, 2_028_328_000),
    "flux": (flux_transformer, 11_901_408_320),
}
"""Full-size builder and published number of parameters."""

# --- tiny: parts

_Builder = Callable[[], Any]


def _seeded(build: _Builder) -> _Builder:
    """Same weights at every call, whatever was drawn before, and the caller's seed untouched."""

    @functools.wraps(build)
    def built() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = build()
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return built


def _clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    folder = BUNDLED["miniature-sd"] / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder, pad_token=pad_token)


def _clip(
    tokenizer: CLIPTokenizer,
    width: int,
    model: type[Any] = CLIPTextModel,
    hidden_act: str = "quick_gelu",
) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act=hidden_act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model(config)


def _t5_tokenizer() -> T5Tokenizer:
    """Some words, and all letters for the rest."""
    words = ["a", "an", "photo", "of", "the", "in", "cat", "dog", "horse", "car", "tree"]
    pieces = [f"▁{word}" for word in words] + ["▁", *string.printable[:94]]
    vocabulary = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    vocabulary += [(piece, -1.0 - len(words) * (len(piece) == 1)) for piece in pieces]
    vocabulary += [(f"<extra_id_{index}>", 0.0) for index in reversed(range(16))]
    return T5Tokenizer(vocab=vocabulary, extra_ids=16, model_max_length=32)


def _t5(tokenizer: T5Tokenizer, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def _vae(latent_channels: int, scaling_factor: float, **more: Any) -> AutoencoderKL:
    """Eight pixels a latent, as in every real model."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        sample_size=SIDE,
        **more,
    )


def _vae_without_quantiser(scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    """The autoencoder of SD3 and FLUX."""
    return _vae(
        16,
        scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _unet(cross_attention_dim: int, **more: Any) -> UNet2DConditionModel:
    shape: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(
        sample_size=SIDE // 8,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=cross_attention_dim,
        **(shape | more),
    )


_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# --- tiny: pipelines


@_seeded
def tiny_sd() -> StableDiffusionPipeline:
    """Stable Diffusion 1.x: predicts noise."""
    tokenizer = _clip_tokenizer()
    return StableDiffusionPipeline(
        vae=_vae(4, 0.18215),
        text_encoder=_clip(tokenizer, 32),
        tokenizer=tokenizer,
        unet=_unet(32),
        scheduler=PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@_seeded
def tiny_sd2() -> StableDiffusionPipeline:
    """Stable Diffusion 2.1: predicts v, and OpenCLIP (which it keeps without the last layer)."""
    tokenizer = _clip_tokenizer(pad_token="!")
    return StableDiffusionPipeline(
        vae=_vae(4, 0.18215),
        text_encoder=_clip(tokenizer, 32, hidden_act="gelu"),
        tokenizer=tokenizer,
        unet=_unet(32, use_linear_projection=True, attention_head_dim=[2, 4]),
        scheduler=DDIMScheduler(
            **_BETAS,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@_seeded
def tiny_sdxl() -> StableDiffusionXLPipeline:
    """SDXL base: the states of two encoders side by side, the second one's pooled state."""
    tokenizer, tokenizer_2 = _clip_tokenizer(), _clip_tokenizer(pad_token="!")
    return StableDiffusionXLPipeline(
        vae=_vae(4, 0.13025),
        text_encoder=_clip(tokenizer, 16),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer_2, 32, CLIPTextModelWithProjection, "gelu"),
        tokenizer_2=tokenizer_2,
        unet=_unet(
            16 + 32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2],
            attention_head_dim=[2, 4],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def _sd3(**more: Any) -> StableDiffusion3Pipeline:
    tokenizer, tokenizer_2, tokenizer_3 = _clip_tokenizer(), _clip_tokenizer("!"), _t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=SIDE // 8,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,  # wider than the CLIPs together, which are padded to it
            caption_projection_dim=32,
            pooled_projection_dim=16 + 32,
            pos_embed_max_size=16,
            **more,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae_without_quantiser(1.5305, 0.0609),
        text_encoder=_clip(tokenizer, 16, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer_2, 32, CLIPTextModelWithProjection, "gelu"),
        tokenizer_2=tokenizer_2,
        text_encoder_3=_t5(tokenizer_3, 64),
        tokenizer_3=tokenizer_3,
    )


@_seeded
def tiny_sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 medium: two CLIPs and a T5."""
    return _sd3()


@_seeded
def tiny_sd35() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5: normed queries and keys, and blocks with a second self-attention."""
    return _sd3(qk_norm="rms_norm", dual_attention_layers=(0, 1))


def _flux(guidance_embeds: bool, shift: float, use_dynamic_shifting: bool) -> FluxPipeline:
    tokenizer, tokenizer_2 = _clip_tokenizer(), _t5_tokenizer()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=shift, use_dynamic_shifting=use_dynamic_shifting
        ),
        vae=_vae_without_quantiser(0.3611, 0.1159),
        text_encoder=_clip(tokenizer, 16),
        tokenizer=tokenizer,
        text_encoder_2=_t5(tokenizer_2, 32),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            in_channels=4 * 16,  # two by two latents a token
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
    )


@_seeded
def tiny_flux_dev() -> FluxPipeline:
    """FLUX.1-dev: reads its guidance scale, shifts noise levels by the picture's size."""
    return _flux(guidance_embeds=True, shift=3.0, use_dynamic_shifting=True)


@_seeded
def tiny_flux_schnell() -> FluxPipeline:
    """FLUX.1-schnell: no guidance, noise levels as they are."""
    return _flux(guidance_embeds=False, shift=1.0, use_dynamic_shifting=False)


TINY: dict[str, _Builder] = {
    build.__name__.removeprefix("tiny_"): build
    for build in (
        tiny_sd,
        tiny_sd2,
        tiny_sdxl,
        tiny_sd3,
        tiny_sd35,
        tiny_flux_dev,
        tiny_flux_schnell,
    )
}
"""Tiny pipelines by name, for parametrised tests."""
