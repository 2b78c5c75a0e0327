"""Backbone of UNet pipelines with cross-attention: Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor, nn

from expunge.backbone.base import (
    Attention,
    Backbone,
    Conditioning,
    Prediction,
    to_images,
    to_pixels,
)

_PROJECTIONS = (".to_q", ".to_k", ".to_v", ".to_out.0")
_BRANCHES: dict[Attention, tuple[str, ...]] = {
    "cross": (".attn2",),
    "self": (".attn1",),
    "all": (".attn1", ".attn2"),
}


class UNetBackbone(Backbone):
    """A `StableDiffusionPipeline` or one built like it."""

    architecture = "sd"
    denoiser_name = "unet"

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        kind = pipe.scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"a UNet must predict 'epsilon' or 'v_prediction', the scheduler says {kind!r}"
            )
        self._prediction = cast("Prediction", kind)
        self._alphas = self._scheduler().alphas_cumprod

    @property
    def prediction(self) -> Prediction:
        return self._prediction

    def _native_size(self) -> tuple[int, int]:
        side = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        return side, side

    def prompt_projections(self) -> dict[str, nn.Linear]:
        layers = self.attention_projections("cross")
        return {n: layer for n, layer in layers.items() if n.endswith((".to_k", ".to_v"))}

    def attention_projections(self, attention: Attention = "all") -> dict[str, nn.Linear]:
        found = {}
        for name, module in self.pipe.unet.named_modules():
            branch = name.endswith(_PROJECTIONS) and any(b in name for b in _BRANCHES[attention])
            if branch and isinstance(module, nn.Linear):
                found[name] = module
        return found

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        states, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, False)
        return Conditioning(states.to(self.dtype))

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        tokenizer = self.pipe.tokenizer
        batch = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return cast("Tensor", batch.input_ids)

    @property
    def end_of_text(self) -> int:
        return int(self.pipe.tokenizer.eos_token_id)

    def _timesteps(self, level: Tensor | float, count: int) -> Tensor:
        last = len(self._alphas) - 1
        levels = torch.as_tensor(level, device=self.device, dtype=torch.float64).expand(count)
        return (levels * len(self._alphas)).round().long().clamp(0, last)

    def _signal_and_noise(self, level: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self._alphas.to(like.device)[self._timesteps(level, len(like))]
        alphas = alphas.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))
        return alphas.sqrt(), (1 - alphas).sqrt()

    def _predict(
        self, latents: Tensor, level: Tensor | float, conditioning: Conditioning
    ) -> Tensor:
        timesteps = self._timesteps(level, len(latents))
        states = conditioning.prompt_embeds
        return cast("Tensor", self.pipe.unet(latents, timesteps, states, return_dict=False)[0])

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor | float) -> Tensor:
        signal, sigma = self._signal_and_noise(level, clean)
        return signal * clean + sigma * noise

    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        signal, sigma = self._signal_and_noise(level, latents)
        if self.prediction == "v_prediction":
            return signal * latents - sigma * prediction
        return (latents - sigma * prediction) / signal

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        factor = self.pipe.vae_scale_factor
        if height % factor or width % factor:
            raise ValueError(
                f"height and width must be multiples of {factor}, got {height} and {width}"
            )
        return (self.pipe.unet.config.in_channels, height // factor, width // factor)

    def _scheduler(self) -> DPMSolverMultistepScheduler:
        return DPMSolverMultistepScheduler.from_config(
            self.pipe.scheduler.config, algorithm_type="dpmsolver++", final_sigmas_type="zero"
        )

    def _level(self, timestep: Tensor) -> float:
        return float(timestep) / len(self._alphas)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        vae = self.pipe.vae
        return to_images(vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0])

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        vae = self.pipe.vae
        pixels = to_pixels(images).to(self.device, self.dtype)
        return cast("Tensor", vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor)
