"""What rectified-flow transformers with joint attention share: FLUX.1, SD3 and SD3.5.

The denoiser predicts a velocity, v = noise − clean, along x = (1 − σ) clean + σ noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from expunge.backbone.base import Attention, Backbone, Prediction
from expunge.backbone.conditioning import TextStream, pooled_state, token_states
from expunge.backbone.profile import Sampling

_PICTURE = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class FlowBackbone(Backbone):
    """A pipeline with a `transformer` that predicts a velocity."""

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

    def _sigma(self, level: Tensor | float, like: Tensor) -> Tensor:
        """The level of each latent, shaped to multiply them."""
        levels = torch.as_tensor(level, device=like.device).to(like.dtype)
        return levels.expand(len(like)).view(-1, *(1,) * (like.ndim - 1))

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor | float) -> Tensor:
        sigma = self._sigma(level, clean)
        return (1 - sigma) * clean + sigma * noise

    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        return latents - self._sigma(level, latents) * prediction

    def noise(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        return latents + (1 - self._sigma(level, latents)) * prediction

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
    def grain(self) -> int:
        return 2 * int(self.pipe.vae_scale_factor)

    @property
    @abstractmethod
    def max_sequence_length(self) -> int:
        """Tokens that T5 reads."""
