"""What rectified-flow transformers with joint attention share: FLUX.1, SD3 and SD3.5.

The denoiser predicts a velocity, v = noise − clean, along x = (1 − σ) clean + σ noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from expunge.backbone.base import Backbone
from expunge.backbone.call import Asked
from expunge.backbone.conditioning import Conditioning, TextStream, pooled_state, token_states
from expunge.backbone.facts import PredictionKind
from expunge.backbone.layers import Part, check_weight
from expunge.backbone.profile import Sampling
from expunge.settings import Branch

_PICTURE: dict[str, Part] = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
_TEXT: dict[str, Part] = {
    "add_q_proj": "q",
    "add_k_proj": "k",
    "add_v_proj": "v",
    "to_add_out": "out",
}


class FlowBackbone(Backbone):
    """A pipeline with a `transformer` that predicts a velocity.

    Attributes:
        times: what the transformer calls the highest noise level.
    """

    denoiser_name = "transformer"
    times: ClassVar[float] = 1000

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
    def sampler(self) -> str:
        return "flow-match euler"

    @property
    def prediction(self) -> PredictionKind:
        return "flow"

    def text_streams(self) -> dict[str, TextStream]:
        names = "context_embedder", "time_text_embed.text_embedder.linear_1"
        layers = self._layers()
        tokens, pooled = ({name: cast("nn.Linear", layers[name])} for name in names)
        for name, layer in (*tokens.items(), *pooled.items()):
            check_weight(name, layer)
        return {
            "tokens": TextStream(tokens, token_states),
            "pooled": TextStream(pooled, pooled_state, tokenised=False),
        }

    def _projections(self, layers: Mapping[str, nn.Module]) -> Iterator[tuple[str, Branch, Part]]:
        for block, module in layers.items():
            if not hasattr(module, "to_q"):
                continue
            shared = block.startswith("single_")  # text and picture are one sequence there
            for end, part in (_PICTURE | _TEXT).items():
                if isinstance(layers.get(f"{block}.{end}"), nn.Linear):
                    branch: Branch = "cross" if shared or end in _TEXT else "self"
                    yield f"{block}.{end}", branch, part

    def text_projections(self, parts: Sequence[Part] | None = None) -> dict[str, nn.Module]:
        found = self.select("cross", parts).items()
        return {name: layer for name, layer in found if name.rpartition(".")[2] in _TEXT}

    def _in_transformer(self, layers: Mapping[str, nn.Module]) -> Callable[[str], bool]:
        return lambda name: name.startswith(("transformer_blocks.", "single_transformer_blocks."))

    def asked(self, given: Mapping[str, Any]) -> Asked:
        latents = self.as_picture(given["hidden_states"], given)
        times = torch.as_tensor(given["timestep"]).expand(len(latents))
        states = Conditioning(given["encoder_hidden_states"], given["pooled_projections"])
        return Asked(latents, times / self.times, states)

    def told(self, given: Mapping[str, Any], conditioning: Conditioning) -> dict[str, Any]:
        states, pooled = conditioning.prompt_embeds, conditioning.pooled
        return {**given, "encoder_hidden_states": states, "pooled_projections": pooled}

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

    def scheduler(self, sampling: Sampling) -> FlowMatchEulerDiscreteScheduler:
        config = dict(self.pipe.scheduler.config)
        if "flow_shift" in config:  # as DPM-Solver and UniPC call it
            config = {"shift": config["flow_shift"]} | config
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, stochastic_sampling=False)
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
        _, height, width = self.latent_shape(*self.size(sampling))
        get = self.pipe.scheduler.config.get
        few, many = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
        low, high = get("base_shift", 0.5), get("max_shift", 1.15)
        tokens = height * width // 4
        return cast("float", low + (high - low) * (tokens - few) / (many - few))

    def level_of(self, timestep: float) -> float:
        return timestep / 1000

    @property
    @abstractmethod
    def max_sequence_length(self) -> int:
        """Tokens that T5 reads."""
