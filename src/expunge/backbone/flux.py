"""Backbone of FLUX.1: dev, schnell, and models trained like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from expunge.backbone.conditioning import Conditioning
from expunge.backbone.flow import FlowBackbone
from expunge.backbone.profile import Sampling


class FluxBackbone(FlowBackbone):
    """A `FluxPipeline`: FLUX.1 dev, schnell, or one trained like them.

    Latents are kept as pictures, (n, channels, height, width), and packed two by two only for the
    transformer.
    """

    architecture = "flux"
    times = 1

    def __init__(self, pipe: Any) -> None:
        for name, what in (("text_encoder", "CLIP"), ("text_encoder_2", "T5")):
            if getattr(pipe, name, None) is None:
                raise ValueError(
                    f"a FLUX pipeline needs its {what} ({name}), got None; "
                    f"load the pipeline without {name}=None"
                )
        if pipe.transformer.config.guidance_embeds:
            self.guidance = "embedded"
        elif not pipe.scheduler.config.get("use_dynamic_shifting", False):
            self.guidance = "none"
        super().__init__(pipe)

    def _usual_sampling(self) -> Sampling:
        if self.guidance == "none":
            return Sampling(num_inference_steps=4, guidance_scale=1.0, batch_size=2)
        scale = 3.5 if self.guidance == "embedded" else 1.0
        return Sampling(num_inference_steps=28, guidance_scale=scale, batch_size=2)

    def _native_size(self) -> tuple[int, int]:
        side = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return side, side

    @property
    def grain(self) -> int:
        return 2 * int(self.pipe.vae_scale_factor)

    @property
    def max_sequence_length(self) -> int:
        return self.profile.max_sequence_length or (256 if self.guidance == "none" else 512)

    def _encode(self, pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        states, pooled, _ = pipe.encode_prompt(
            list(prompts), device=self.device, max_sequence_length=self.max_sequence_length
        )
        return states.to(self.dtype), pooled.to(self.dtype)

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self.pipe.tokenizer_2, self.max_sequence_length)]

    def _sigmas(self, steps: int) -> list[float] | None:
        return cast("list[float]", np.linspace(1.0, 1 / steps, steps).tolist())

    def as_picture(self, latents: Tensor, given: Mapping[str, Any]) -> Tensor:
        rows, columns = (given["img_ids"][:, 1:].amax(0) + 1).long().tolist()
        return unpack(latents, 2 * rows, 2 * columns)

    def as_given(self, picture: Tensor) -> Tensor:
        return pack(picture)

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
            guidance=guidance if self.guidance == "embedded" else None,
            pooled_projections=conditioning.pooled,
            encoder_hidden_states=conditioning.prompt_embeds,
            txt_ids=torch.zeros(words, 3, device=latents.device, dtype=latents.dtype),
            img_ids=positions(height // 2, width // 2).to(latents),
            return_dict=False,
        )
        return unpack(found[0], height, width)


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
