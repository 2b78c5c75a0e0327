"""Backbone of Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from expunge.backbone.conditioning import Conditioning
from expunge.backbone.flow import FlowBackbone
from expunge.backbone.profile import Sampling


class SD3Backbone(FlowBackbone):
    """A `StableDiffusion3Pipeline`: SD3 and SD3.5. T5 may be left out, as the pipeline allows."""

    architecture = "sd3"

    def _usual_sampling(self) -> Sampling:
        return Sampling(num_inference_steps=28, guidance_scale=7.0, batch_size=2)

    def _native_size(self) -> tuple[int, int]:
        side = self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor
        return side, side

    @property
    def grain(self) -> int:
        return int(self.pipe.vae_scale_factor * self.pipe.transformer.config.patch_size)

    @property
    def max_sequence_length(self) -> int:
        return self.profile.max_sequence_length or 256

    def _encode(self, pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        states, _, pooled, _ = pipe.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return states.to(self.dtype), pooled.to(self.dtype)

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
        times = 1000 * torch.as_tensor(level, device=latents.device).float()
        found = self.pipe.transformer(
            hidden_states=latents,
            timestep=times.expand(len(latents)),
            encoder_hidden_states=conditioning.prompt_embeds,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )
        return cast("Tensor", found[0])
