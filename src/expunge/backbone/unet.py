"""Backbone of UNet pipelines with cross-attention: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor, nn

from expunge.backbone.base import Backbone
from expunge.backbone.call import Asked
from expunge.backbone.conditioning import (
    Conditioning,
    TextStream,
    pooled_state,
    token_states,
)
from expunge.backbone.facts import PredictionKind
from expunge.backbone.layers import Part, check_weight
from expunge.backbone.profile import Sampling
from expunge.settings import Branch

_PARTS: dict[str, Part] = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
_BRANCHES: dict[str, Branch] = {"attn1": "self", "attn2": "cross"}


class UNetBackbone(Backbone):
    """A `StableDiffusionPipeline` or one built like it."""

    architecture = "sd"
    denoiser_name = "unet"
    causal_text = True  # CLIP, one or two of them

    def __init__(self, pipe: Any) -> None:
        kind = _checked_prediction(pipe.scheduler)
        if pipe.unet.config.get("time_cond_proj_dim") is not None:
            self.guidance = "embedded"
        super().__init__(pipe)
        channels, latents = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
        if channels != latents:
            raise ValueError(
                f"the unet reads {channels} channels and the autoencoder gives {latents}: "
                "inpainting and editing models are not supported, load a text-to-image model"
            )
        self._prediction = kind
        self._alphas = self._schedule().alphas_cumprod

    @property
    def sampler(self) -> str:
        return f"dpmsolver++, order {self._schedule().config.solver_order}"

    @property
    def prediction(self) -> PredictionKind:
        return self._prediction

    @property
    def distilled(self) -> bool:
        """Whether the model was made to draw in few steps.

        LCM's and TCD's own schedulers tell, and a denoiser that reads its guidance; of the turbo
        and lightning kind Euler's scheduler with time steps counted from the end.
        """
        name, config = type(self.pipe.scheduler).__name__, self.pipe.scheduler.config
        few = name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
        few = few and config.get("timestep_spacing") == "trailing"
        few = few and config.get("prediction_type", "epsilon") == "epsilon"
        zero_snr = bool(config.get("rescale_betas_zero_snr"))
        made = self.guidance == "embedded" or name in ("LCMScheduler", "TCDScheduler")
        return made or (few and not zero_snr)

    def _usual_sampling(self) -> Sampling:
        usual = super()._usual_sampling()
        if self.guidance == "embedded":  # latent consistency models, at their pipelines' default
            return replace(usual, num_inference_steps=4, guidance_scale=8.5)
        if self.distilled:
            return replace(usual, num_inference_steps=4, guidance_scale=1.0)
        return usual

    def _native_size(self) -> tuple[int, int]:
        side = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        return side, side

    def text_streams(self) -> dict[str, TextStream]:
        reading = cast("dict[str, nn.Linear]", self.select("cross", ("k", "v")))
        return {"tokens": TextStream(reading, token_states)}

    def _projections(self, layers: Mapping[str, nn.Module]) -> Iterator[tuple[str, Branch, Part]]:
        for name, layer in layers.items():
            for end, part in _PARTS.items():
                attention = name.removesuffix(f".{end}").rpartition(".")[2]
                if attention in _BRANCHES and isinstance(layer, nn.Linear) and name.endswith(end):
                    yield name, _BRANCHES[attention], part

    def _in_transformer(self, layers: Mapping[str, nn.Module]) -> Callable[[str], bool]:
        blocks = {n for n, m in layers.items() if type(m).__name__ == "Transformer2DModel"}
        return lambda name: any(name.startswith(f"{block}.") for block in blocks)

    def _encode(self, pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        states, _ = pipe.encode_prompt(list(prompts), self.device, 1, False)
        return states.to(self.dtype), None

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self.pipe.tokenizer, self.pipe.tokenizer.model_max_length)]

    def _timesteps(self, level: Tensor | float, count: int) -> Tensor:
        last = len(self._alphas) - 1
        levels = torch.as_tensor(level, device=self.device, dtype=torch.float64).expand(count)
        return (levels * len(self._alphas)).round().long().clamp(0, last)

    def _signal_and_noise(self, level: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self._alphas.to(like.device)[self._timesteps(level, len(like))]
        # The first timestep holds a little noise; level 0 holds none.
        clean = torch.as_tensor(level, device=like.device).expand(len(like)) == 0
        alphas = torch.where(clean, 1.0, alphas)
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
            latents,
            timesteps,
            states,
            timestep_cond=self._scale_states(latents, guidance_scale),
            added_cond_kwargs=more,
            return_dict=False,
        )
        return cast("Tensor", found[0])

    def asked(self, given: Mapping[str, Any]) -> Asked:
        latents, added = given["sample"], given.get("added_cond_kwargs") or {}
        times = torch.as_tensor(given["timestep"]).expand(len(latents))
        states = Conditioning(given["encoder_hidden_states"], added.get("text_embeds"))
        return Asked(latents, times / len(self._alphas), states)

    def told(self, given: Mapping[str, Any], conditioning: Conditioning) -> dict[str, Any]:
        added = dict(given.get("added_cond_kwargs") or {})
        if conditioning.pooled is not None:
            added["text_embeds"] = conditioning.pooled
        more = {"added_cond_kwargs": added} if added else {}
        return {**given, "encoder_hidden_states": conditioning.prompt_embeds, **more}

    def _scale_states(self, latents: Tensor, guidance_scale: float) -> Tensor | None:
        """The guidance scale as a consistency model reads it, (n, width)."""
        if self.guidance != "embedded":
            return None
        scales = torch.full((len(latents),), guidance_scale - 1)
        width = self.pipe.unet.config.time_cond_proj_dim
        states: Tensor = self.pipe.get_guidance_scale_embedding(scales, embedding_dim=width)
        return states.to(latents)

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
        if level == 0:
            return math.inf
        alpha = float(self._alphas[int(self._timesteps(level, 1))])
        return math.log(alpha / (1 - alpha))

    def _schedule(self) -> DPMSolverMultistepScheduler:
        return DPMSolverMultistepScheduler.from_config(
            self.pipe.scheduler.config,
            algorithm_type="dpmsolver++",
            final_sigmas_type="zero",
            # Between the few steps of a distilled model nothing can be extrapolated.
            **({"solver_order": 1} if self.distilled else {}),
        )

    def scheduler(self, sampling: Sampling) -> DPMSolverMultistepScheduler:
        scheduler = self._schedule()
        scheduler.set_timesteps(sampling.num_inference_steps, device=self.device)
        return scheduler

    def level_of(self, timestep: float) -> float:
        return timestep / len(self._alphas)


class SDXLBackbone(UNetBackbone):
    """A `StableDiffusionXLPipeline`: two text encoders, a pooled state, and picture sizes.

    Where the pipeline's `force_zeros_for_empty_prompt` is set, guidance leads away from zeros.
    """

    architecture = "sdxl"
    normed_latents = True

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        if pipe.text_encoder is None:
            raise ValueError("SDXL's refiner is not supported, load the base model")

    def _usual_sampling(self) -> Sampling:
        usual = replace(super()._usual_sampling(), batch_size=2)
        return usual if self.distilled else replace(usual, guidance_scale=5.0)

    def text_streams(self) -> dict[str, TextStream]:
        name = "add_embedding.linear_1"
        embedder = cast("nn.Linear", self._layers()[name])
        check_weight(name, embedder)
        pooled = TextStream({name: embedder}, self._pooled_without_sizes, tokenised=False)
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
        zeros, none = torch.zeros_like(empty.prompt_embeds), torch.zeros_like(empty.pooled)
        return Conditioning(zeros, none, empty.known)

    def _encode(self, pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        states, _, pooled, _ = pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        return states.to(self.dtype), pooled.to(self.dtype)

    def _added(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """The pooled state, and sizes: an uncropped picture of the size that is drawn."""
        assert conditioning.pooled is not None
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        sizes = [height, width, 0, 0, height, width]
        ids = torch.tensor(sizes, dtype=latents.dtype, device=latents.device)
        return {"text_embeds": conditioning.pooled, "time_ids": ids.expand(len(latents), -1)}


def _checked_prediction(scheduler: Any) -> PredictionKind:
    """What a UNet predicts, by its scheduler.

    Raises:
        ValueError: noise levels that are no variance-preserving schedule of betas.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if "EDM" in name or config.get("timestep_type") == "continuous":
        raise ValueError(
            f"{name} counts noise levels by σ with EDM's preconditioning (Playground v2.5, CosXL), "
            "which is not supported; load a model of ε- or v-prediction"
        )
    kind = config.get("prediction_type", "epsilon")
    flow = "flow" in name.lower() or config.get("use_flow_sigmas") or kind == "flow_prediction"
    if flow:
        raise ValueError(
            f"a UNet that predicts a flow ({name}) is not supported; load a model of ε- or "
            "v-prediction, or give it the scheduler it was trained with"
        )
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise ValueError(f"{name} states no schedule of betas, so its noise levels are not known")
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"a UNet must predict 'epsilon' or 'v_prediction', the scheduler says {kind!r}"
        )
    return cast("PredictionKind", kind)
