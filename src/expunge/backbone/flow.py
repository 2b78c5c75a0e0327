"""Backbones of rectified-flow transformers with joint attention: FLUX.1, SD3 and SD3.5.

The denoiser predicts a velocity, v = noise − clean, along x = (1 − σ) clean + σ noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
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
from expunge.backbone.unet import clip_tokens

_PICTURE = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class FlowBackbone(Backbone):
    """What FLUX and SD3 share."""

    denoiser_name = "transformer"

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        if "flow" not in type(pipe.scheduler).__name__.lower() and not pipe.scheduler.config.get(
            "use_flow_sigmas"
        ):
            raise ValueError(
                f"{type(pipe).__name__} needs a flow-matching scheduler, "
                f"got {type(pipe.scheduler).__name__}"
            )

    @property
    def prediction(self) -> Prediction:
        return "flow"

    def text_streams(self) -> dict[str, TextStream]:
        pooled = self.pipe.transformer.time_text_embed.text_embedder.linear_1
        return {
            "tokens": TextStream(
                {"context_embedder": self.pipe.transformer.context_embedder}, token_states
            ),
            "pooled": TextStream(
                {"time_text_embed.text_embedder.linear_1": pooled}, pooled_state, tokenised=False
            ),
        }

    def attention_projections(self, attention: Attention = "all") -> dict[str, nn.Linear]:
        """Layers inside attention that adapters may train, by name in the transformer.

        `cross` are the text's own projections in joint blocks and, in blocks where text and picture
        share them, the shared ones; `self` are the picture's own.
        """
        found: dict[str, nn.Linear] = {}
        for block, module in self.pipe.transformer.named_modules():
            if not hasattr(module, "to_q"):
                continue
            alone = block.startswith("single_")  # text and picture are one sequence there
            own, text = ((), _PICTURE) if alone else (_PICTURE, _TEXT)
            wanted = {"self": own, "cross": text, "all": (*own, *text)}[attention]
            for name, layer in module.named_modules():
                if name in wanted and isinstance(layer, nn.Linear):
                    found[f"{block}.{name}"] = layer
        return found

    def _shift(self, level: Tensor | float, like: Tensor) -> Tensor:
        """The level of each latent, shaped to multiply them."""
        levels = torch.as_tensor(level, device=like.device).to(like.dtype)
        return levels.expand(len(like)).view(-1, *(1,) * (like.ndim - 1))

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor | float) -> Tensor:
        sigma = self._shift(level, clean)
        return (1 - sigma) * clean + sigma * noise

    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        return latents - self._shift(level, latents) * prediction

    def noise(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        return latents + (1 - self._shift(level, latents)) * prediction

    def log_snr(self, level: float) -> float:
        if level in (0, 1):
            return math.inf if level == 0 else -math.inf
        return 2 * math.log((1 - level) / level)

    def _scheduler(self, sampling: Sampling) -> FlowMatchEulerDiscreteScheduler:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(
            sigmas=self._sigmas(sampling.num_inference_steps),
            num_inference_steps=sampling.num_inference_steps,
            mu=self._mu(sampling) if scheduler.config.use_dynamic_shifting else None,
            device=self.device,
        )
        return scheduler

    def _sigmas(self, steps: int) -> list[float] | None:
        """Noise levels before the shift; None for the scheduler's own."""
        return None

    def _mu(self, sampling: Sampling) -> float:
        """The logarithm of the shift, linear in the number of the picture's tokens."""
        assert sampling.height and sampling.width
        _, height, width = self.latent_shape(sampling.height, sampling.width)
        get = self.pipe.scheduler.config.get
        few, many = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
        low, high = get("base_shift", 0.5), get("max_shift", 1.15)
        tokens = height * width // 4
        return cast("float", low + (high - low) * (tokens - few) / (many - few))

    def _level(self, timestep: Tensor) -> float:
        return float(timestep) / 1000

    @property
    def _grain(self) -> int:
        return 2 * int(self.pipe.vae_scale_factor)

    @property
    @abstractmethod
    def max_sequence_length(self) -> int:
        """Tokens that T5 reads."""

    def _t5_tokens(self, tokenizer: Any, prompts: Sequence[str]) -> Tokens:
        batch = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.max_sequence_length,
            truncation=True,
            return_tensors="pt",
        )
        return Tokens(batch.input_ids, int(tokenizer.eos_token_id))


class FluxBackbone(FlowBackbone):
    """A `FluxPipeline`: FLUX.1 dev, schnell, or one trained like them.

    Latents are kept as pictures, (n, channels, height, width), and packed two by two only for the
    transformer.
    """

    architecture = "flux"

    def __init__(self, pipe: Any) -> None:
        for name, what in (("text_encoder", "CLIP"), ("text_encoder_2", "T5")):
            if getattr(pipe, name, None) is None:
                raise ValueError(
                    f"a FLUX pipeline needs its {what} ({name}), got None; "
                    f"load the pipeline without {name}=None"
                )
        config = pipe.transformer.config
        self.embeds_guidance = bool(config.guidance_embeds)
        self._few_steps = not (
            self.embeds_guidance or pipe.scheduler.config.get("use_dynamic_shifting", False)
        )
        super().__init__(pipe)

    def _usual_sampling(self) -> Sampling:
        if self._few_steps:
            return Sampling(num_inference_steps=4, guidance_scale=1.0)
        return Sampling(num_inference_steps=28, guidance_scale=3.5 if self.embeds_guidance else 1.0)

    def check_guidance(self, guidance_scale: float) -> None:
        if self._few_steps and guidance_scale != 1:
            raise ValueError(
                f"this model was distilled to draw in few steps without guidance (FLUX.1-schnell): "
                f"guidance_scale must be 1, got {guidance_scale:g}"
            )

    def _native_size(self) -> tuple[int, int]:
        # The pipeline's own default of 512 for a factor of 4 is an accident of its class.
        side = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return side, side

    @property
    def max_sequence_length(self) -> int:
        return self.profile.max_sequence_length or (256 if self._few_steps else 512)

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        states, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.device, max_sequence_length=self.max_sequence_length
        )
        return Conditioning(states.to(self.dtype), pooled.to(self.dtype))

    def tokens(self, prompts: Sequence[str]) -> list[Tokens]:
        return [self._t5_tokens(self.pipe.tokenizer_2, prompts)]

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self.pipe.tokenizer_2, self.max_sequence_length)]

    def _sigmas(self, steps: int) -> list[float] | None:
        return cast("list[float]", np.linspace(1.0, 1 / steps, steps).tolist())

    def _predict(
        self,
        latents: Tensor,
        level: Tensor | float,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        count, _, height, width = latents.shape
        times = (1000 * torch.as_tensor(level, device=latents.device)).to(latents.dtype)
        guidance = torch.full((count,), guidance_scale, device=latents.device)
        words = conditioning.prompt_embeds.shape[1]
        found = self.pipe.transformer(
            hidden_states=pack(latents),
            timestep=times.expand(count) / 1000,  # rounded as the pipeline does
            guidance=guidance if self.embeds_guidance else None,
            pooled_projections=conditioning.pooled,
            encoder_hidden_states=conditioning.prompt_embeds,
            txt_ids=torch.zeros(words, 3, device=latents.device, dtype=latents.dtype),
            img_ids=positions(height // 2, width // 2).to(latents),
            return_dict=False,
        )
        return unpack(found[0], height, width)


class SD3Backbone(FlowBackbone):
    """A `StableDiffusion3Pipeline`: SD3 and SD3.5. T5 may be left out, as the pipeline allows."""

    architecture = "sd3"

    def _usual_sampling(self) -> Sampling:
        return Sampling(num_inference_steps=28, guidance_scale=7.0)

    def _native_size(self) -> tuple[int, int]:
        side = self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor
        return side, side

    @property
    def _grain(self) -> int:
        return int(self.pipe.vae_scale_factor * self.pipe.transformer.config.patch_size)

    @property
    def max_sequence_length(self) -> int:
        return self.profile.max_sequence_length or 256

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        states, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return Conditioning(states.to(self.dtype), pooled.to(self.dtype))

    def tokens(self, prompts: Sequence[str]) -> list[Tokens]:
        runs = [clip_tokens(self.pipe.tokenizer, prompts)]
        if self.pipe.text_encoder_3 is not None:
            runs.append(self._t5_tokens(self.pipe.tokenizer_3, prompts))
        return runs

    def _tokenizers(self) -> list[tuple[Any, int]]:
        found = [(self.pipe.tokenizer, self.pipe.tokenizer.model_max_length)]
        if self.pipe.text_encoder_3 is not None:
            found.append((self.pipe.tokenizer_3, self.max_sequence_length))
        return found

    def _predict(
        self,
        latents: Tensor,
        level: Tensor | float,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        times = (1000 * torch.as_tensor(level, device=latents.device)).to(latents.dtype)
        found = self.pipe.transformer(
            hidden_states=latents,
            timestep=times.expand(len(latents)),
            encoder_hidden_states=conditioning.prompt_embeds,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )
        return cast("Tensor", found[0])


def pack(latents: Tensor) -> Tensor:
    """(n, c, h, w) to (n, h/2 · w/2, 4c): one token for two by two places, channel by channel."""
    count, channels, height, width = latents.shape
    blocks = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """What `pack` made, as (n, c, height, width) again."""
    count, _, channels = tokens.shape
    blocks = tokens.view(count, height // 2, width // 2, channels // 4, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(count, channels // 4, height, width)


def positions(height: int, width: int) -> Tensor:
    """Rotary positions of a picture's tokens, (height · width, 3): nothing, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).float()
