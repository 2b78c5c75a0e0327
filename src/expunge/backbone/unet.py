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
        return [clip_tokens(self.pipe.tokenizer, prompts)]

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self.pipe.tokenizer, self.pipe.tokenizer.model_max_length)]

    def _timesteps(self, level: Tensor | float, count: int) -> Tensor:
        last = len(self._alphas) - 1
        levels = torch.as_tensor(level, device=self.device, dtype=torch.float64).expand(count)
        return (levels * len(self._alphas)).round().long().clamp(0, last)

    def _signal_and_noise(self, level: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self._alphas.to(like.device)[self._timesteps(level, len(like))]
        alphas = alphas.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))
        return alphas.sqrt(), (1 - alphas).sqrt()

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

    Where the pipeline's `force_zeros_for_empty_prompt` is set, the empty prompt is all zeros, as in
    its own guidance.
    """

    architecture = "sdxl"

    def _usual_sampling(self) -> Sampling:
        return Sampling(guidance_scale=5.0)

    def text_streams(self) -> dict[str, TextStream]:
        embedder = self.pipe.unet.add_embedding.linear_1
        pooled = TextStream(
            {"add_embedding.linear_1": embedder}, self._pooled_and_sizes, tokenised=False
        )
        return {**super().text_streams(), "pooled": pooled}

    def _pooled_and_sizes(self, conditioning: Conditioning) -> Tensor:
        """What `add_embedding` reads at the native size, (n, 1, width)."""
        pooled = pooled_state(conditioning)
        sizes = self._time_ids(*self._native_size(), count=len(pooled))
        embedded = self.pipe.unet.add_time_proj(sizes.flatten()).view(len(pooled), 1, -1)
        return torch.cat([pooled, embedded.to(pooled)], dim=-1)

    def _time_ids(self, height: int, width: int, count: int) -> Tensor:
        """Original size, crop and target size: an uncropped picture of the size asked for."""
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype)
        return ids.to(self.device).expand(count, -1)

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        states, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        if self.pipe.config.get("force_zeros_for_empty_prompt", True):
            told = torch.tensor([text != "" for text in prompts], device=states.device)
            states, pooled = states * told[:, None, None], pooled * told[:, None]
        return Conditioning(states.to(self.dtype), pooled.to(self.dtype))

    def _added(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        assert conditioning.pooled is not None
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        sizes = self._time_ids(height, width, len(latents))
        return {"text_embeds": conditioning.pooled, "time_ids": sizes}


def clip_tokens(tokenizer: Any, prompts: Sequence[str]) -> Tokens:
    """What CLIP's encoder reads of n prompts."""
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return Tokens(batch.input_ids, int(tokenizer.eos_token_id), int(tokenizer.bos_token_id))
