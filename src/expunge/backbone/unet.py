"""Backbone of UNet pipelines with cross-attention: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor, nn

from expunge.backbone.base import Attention, Backbone, Prediction
from expunge.backbone.conditioning import (
    Conditioning,
    TextStream,
    Tokens,
    padded_tokens,
    pooled_state,
    token_states,
)
from expunge.backbone.profile import Sampling

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
        channels, latents = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
        if channels != latents:
            raise ValueError(
                f"the unet reads {channels} channels and the autoencoder gives {latents}: "
                "inpainting and editing models are not supported, load a text-to-image model"
            )
        self._prediction = cast("Prediction", kind)
        self._alphas = self._schedule().alphas_cumprod

    @property
    def prediction(self) -> Prediction:
        return self._prediction

    def _native_size(self) -> tuple[int, int]:
        side = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        return side, side

    def text_streams(self) -> dict[str, TextStream]:
        layers = self.attention_projections("cross")
        reading = {n: layer for n, layer in layers.items() if n.endswith((".to_k", ".to_v"))}
        return {"tokens": TextStream(reading, token_states)}

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

    def tokens(self, prompts: Sequence[str]) -> list[Tokens]:
        tokenizer = self.pipe.tokenizer
        return [padded_tokens(tokenizer, prompts, tokenizer.model_max_length)]

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self.pipe.tokenizer, self.pipe.tokenizer.model_max_length)]

    def _timesteps(self, level: Tensor | float, count: int) -> Tensor:
        last = len(self._alphas) - 1
        levels = torch.as_tensor(level, device=self.device, dtype=torch.float64).expand(count)
        return (levels * len(self._alphas)).round().long().clamp(0, last)

    def _signal_and_noise(self, level: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self._alphas.to(like.device)[self._timesteps(level, len(like))]
        alphas = alphas.view(-1, *(1,) * (like.ndim - 1))
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)

    def _predict(
        self,
        latents: Tensor,
        level: Tensor | float,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        timesteps = self._timesteps(level, len(latents))
        more = self._added(latents, conditioning)
        states = conditioning.prompt_embeds
        found = self.pipe.unet(
            latents, timesteps, states, added_cond_kwargs=more, return_dict=False
        )
        return cast("Tensor", found[0])

    def _added(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """What the UNet reads beside token states."""
        return None

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor | float) -> Tensor:
        signal, sigma = self._signal_and_noise(level, clean)
        return signal * clean + sigma * noise

    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        signal, sigma = self._signal_and_noise(level, latents)
        if self.prediction == "v_prediction":
            return signal * latents - sigma * prediction
        return (latents - sigma * prediction) / signal

    def noise(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        if self.prediction == "epsilon":
            return prediction
        signal, sigma = self._signal_and_noise(level, latents)
        return sigma * latents + signal * prediction

    def log_snr(self, level: float) -> float:
        alpha = float(self._alphas[int(self._timesteps(level, 1))])
        return math.log(alpha / (1 - alpha))

    def _schedule(self) -> DPMSolverMultistepScheduler:
        return DPMSolverMultistepScheduler.from_config(
            self.pipe.scheduler.config, algorithm_type="dpmsolver++", final_sigmas_type="zero"
        )

    def _scheduler(self, sampling: Sampling) -> DPMSolverMultistepScheduler:
        scheduler = self._schedule()
        scheduler.set_timesteps(sampling.num_inference_steps, device=self.device)
        return scheduler

    def _level(self, timestep: Tensor) -> float:
        return float(timestep) / len(self._alphas)


class SDXLBackbone(UNetBackbone):
    """A `StableDiffusionXLPipeline`: two text encoders, a pooled state, and picture sizes.

    Where the pipeline's `force_zeros_for_empty_prompt` is set, guidance leads away from zeros.
    """

    architecture = "sdxl"

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        if pipe.text_encoder is None:
            raise ValueError("SDXL's refiner is not supported, load the base model")

    def _usual_sampling(self) -> Sampling:
        return Sampling(guidance_scale=5.0, batch_size=2)

    def text_streams(self) -> dict[str, TextStream]:
        embedder = self.pipe.unet.add_embedding.linear_1
        pooled = TextStream(
            {"add_embedding.linear_1": embedder}, self._pooled_without_sizes, tokenised=False
        )
        return {**super().text_streams(), "pooled": pooled}

    def _pooled_without_sizes(self, conditioning: Conditioning) -> Tensor:
        """What `add_embedding` reads, with zeros for the picture's size, (n, 1, width).

        So a closed form does not depend on the size that is drawn.
        """
        pooled = pooled_state(conditioning)
        width = self.pipe.unet.add_embedding.linear_1.in_features
        return nn.functional.pad(pooled, (0, width - pooled.shape[-1]))

    def unconditional(self) -> Conditioning:
        empty = super().unconditional()
        if not self.pipe.config.get("force_zeros_for_empty_prompt", True):
            return empty
        assert empty.pooled is not None
        return Conditioning(torch.zeros_like(empty.prompt_embeds), torch.zeros_like(empty.pooled))

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        states, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        return Conditioning(states.to(self.dtype), pooled.to(self.dtype))

    def _added(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """The pooled state, and sizes: an uncropped picture of the size that is drawn."""
        assert conditioning.pooled is not None
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        sizes = [height, width, 0, 0, height, width]
        ids = torch.tensor(sizes, dtype=latents.dtype, device=latents.device)
        return {"text_embeds": conditioning.pooled, "time_ids": ids.expand(len(latents), -1)}
