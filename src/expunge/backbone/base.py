"""A diffusers pipeline seen as mathematics: encode, noise, predict, sample, decode."""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor, nn

from expunge.concept import Concept, Vocabulary

Prediction = Literal["epsilon", "v_prediction", "flow"]
Attention = Literal["cross", "self", "all"]
Precision = Literal["own", "bfloat16"]
"""How the denoiser computes: in its weights' own type, or its products in bfloat16."""

PROFILE = "expunge.json"
"""What a model's folder may say about itself: how it is sampled best and what it can draw."""


BUNDLED = {"miniature-sd": Path(__file__).parent.parent / "miniature" / "weights" / "miniature-sd"}
"""Models that come with the package, by name."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Attributes:
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 switches it off.
        height: pixels; None for the model's own size.
        width: pixels; None for the model's own size.
        batch_size: prompts a guided call takes at once.
    """

    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps must be at least 1, got {self.num_inference_steps}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class Profile:
    """What is known of one model.

    Attributes:
        sampling: how it draws best.
        vocabulary: concepts it is known to draw.
        judge: name of the judge made for its pictures.
        preset: name of the hyperparameters tuned on it.
    """

    sampling: Sampling = field(default_factory=Sampling)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    judge: str | None = None
    preset: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Profile:
        """The profile in a model's folder, or an empty one where there is none."""
        path = folder / PROFILE
        if not path.is_file():
            return cls()
        data = json.loads(path.read_text())
        concepts = (Concept.from_dict(entry) for entry in data["concepts"])
        sampling, vocabulary = Sampling(**data["sampling"]), Vocabulary.of(concepts)
        return cls(sampling, vocabulary, data.get("judge"), data.get("preset"))


@dataclass(frozen=True)
class Conditioning:
    """What the text encoders say about n prompts.

    Attributes:
        prompt_embeds: token states, (n, tokens, width).
        pooled: pooled states, (n, width), for models that read them.
    """

    prompt_embeds: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def __getitem__(self, index: Any) -> Conditioning:
        pooled = None if self.pooled is None else self.pooled[index]
        return Conditioning(self.prompt_embeds[index], pooled)

    def repeat(self, count: int) -> Conditioning:
        """The only prompt, `count` times."""
        return self[torch.zeros(count, dtype=torch.long)]

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Several one after the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(
            torch.cat([part.prompt_embeds for part in parts]), torch.cat(pooled) if pooled else None
        )


ConditioningAt = Conditioning | Callable[[float], Conditioning]
"""What guides a sampling run: the same all along, or chosen by noise level."""


class Backbone(ABC):
    """One pipeline, with its own sampler. The pipeline is read and never changed.

    Noise level means t/T for ε- and v-models and σ after shift for flows: 1 is pure noise, 0 clean.

    Attributes:
        pipe: the pipeline.
        architecture: family name, such as `sd`.
        denoiser_name: the pipeline's component that predicts, `unet` or `transformer`.
        profile: sampling defaults and known concepts.
        precision: how predictions are computed; bfloat16 where the machine has units for it.
    """

    architecture: str
    denoiser_name: str

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.precision: Precision = fastest(self.device) if self.dtype == torch.float32 else "own"
        self._cache: dict[str, Conditioning] = {}
        own = Profile.read(BUNDLED.get(self.name_or_path, Path(self.name_or_path)))
        height, width = self._native_size()
        sampling = replace(
            own.sampling, height=own.sampling.height or height, width=own.sampling.width or width
        )
        self.profile = replace(own, sampling=sampling)

    # --- what the pipeline is

    @property
    def name_or_path(self) -> str:
        """Where the pipeline was loaded from, empty if it was built in memory."""
        return str(self.pipe.config.get("_name_or_path") or "")

    @property
    def name(self) -> str:
        """A short name for people."""
        path = self.name_or_path
        return Path(path).name if Path(path).exists() else path or type(self.pipe).__name__

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts."""
        denoiser: nn.Module = getattr(self.pipe, self.denoiser_name)
        return denoiser

    @property
    def device(self) -> torch.device:
        """Where the denoiser lives."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision."""
        return next(self.denoiser.parameters()).dtype

    @property
    @abstractmethod
    def prediction(self) -> Prediction:
        """What the denoiser predicts."""

    @abstractmethod
    def _native_size(self) -> tuple[int, int]:
        """Height and width in pixels the model was trained at."""

    def weight_hash(self, names: Iterable[str] | None = None) -> str:
        """SHA-256 over layers' weights, cast to bf16, in name order; all layers if None."""
        modules = dict(self.denoiser.named_modules())
        if names is None:
            names = {n for n, m in modules.items() if isinstance(getattr(m, "weight", 0), Tensor)}
        digest = hashlib.sha256()
        for name in sorted(names):
            weight = modules[name].weight
            assert isinstance(weight, Tensor)
            digest.update(name.encode())
            digest.update(
                weight.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
            )
        return digest.hexdigest()

    # --- projections

    @abstractmethod
    def prompt_projections(self) -> dict[str, nn.Linear]:
        """Layers that receive the text encoder's output as it is, by name in the denoiser."""

    @abstractmethod
    def attention_projections(self, attention: Attention = "all") -> dict[str, nn.Linear]:
        """Layers inside attention that adapters may train, by name in the denoiser."""

    # --- text

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Token states of every prompt, computed once per distinct text."""
        missing = [text for text in dict.fromkeys(prompts) if text not in self._cache]
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            encoded = self._encode(part)
            self._cache |= {text: encoded[index : index + 1] for index, text in enumerate(part)}
        return Conditioning.cat([self._cache[text] for text in prompts])

    @abstractmethod
    def _encode(self, prompts: Sequence[str]) -> Conditioning: ...

    @abstractmethod
    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """Ids of the tokens behind `prompt_embeds`, padded, (n, tokens)."""

    @property
    @abstractmethod
    def end_of_text(self) -> int:
        """Id of the token that ends a text."""

    # --- noise

    @abstractmethod
    def _predict(
        self, latents: Tensor, level: Tensor | float, conditioning: Conditioning
    ) -> Tensor: ...

    def predict(self, latents: Tensor, level: Tensor | float, conditioning: Conditioning) -> Tensor:
        """The denoiser's own prediction, shaped like `latents`, at one or n noise levels."""
        fast = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            return self._predict(latents, level, conditioning).to(latents.dtype)

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Within this context predictions are computed in the weights' own type."""
        before, self.precision = self.precision, "own"
        try:
            yield
        finally:
            self.precision = before

    def guided(
        self,
        latents: Tensor,
        level: float,
        conditioning: Conditioning,
        guidance_scale: float,
        negative: Conditioning,
    ) -> Tensor:
        """Classifier-free guidance in one batched call.

        Args:
            latents: noisy latents, (n, …).
            level: noise level of all of them.
            conditioning: of n prompts.
            guidance_scale: 1 asks for the plain conditional prediction.
            negative: of one prompt.
        """
        if guidance_scale == 1:
            return self.predict(latents, level, conditioning)
        both = Conditioning.cat([negative.repeat(len(latents)), conditioning])
        away, toward = self.predict(torch.cat([latents, latents]), level, both).chunk(2)
        return away + guidance_scale * (toward - away)

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor | float) -> Tensor:
        """The noisy latent of a clean one."""

    @abstractmethod
    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        """The clean latent a prediction stands for."""

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent for a picture of that size in pixels."""

    def initial_noise(self, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        """Starting noise, one CPU generator per picture, so a seed means the same in any batch."""
        assert sampling.height and sampling.width
        shape = self.latent_shape(sampling.height, sampling.width)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(drawn).to(self.device, self.dtype)

    # --- sampling

    @abstractmethod
    def _scheduler(self) -> DPMSolverMultistepScheduler:
        """A fresh sampler of this model's noise schedule."""

    @abstractmethod
    def _level(self, timestep: Tensor) -> float:
        """The noise level of a sampler's timestep."""

    @torch.no_grad()
    def trajectory(
        self,
        conditioning: ConditioningAt,
        noise: Tensor,
        sampling: Sampling,
        *,
        negative: ConditioningAt | None = None,
    ) -> Iterator[tuple[float, Tensor]]:
        """Sample with DPM-Solver++, yielding (noise level, latents) before every step and at 0.

        Args:
            conditioning: of n prompts, or a function of the noise level.
            noise: (n, …), from `initial_noise`.
            sampling: steps and guidance.
            negative: of one prompt, or a function of the noise level; the empty prompt if None.
        """
        scheduler = self._scheduler()
        scheduler.set_timesteps(sampling.num_inference_steps, device=self.device)
        empty = self.encode_prompts([""])
        latents = noise
        for timestep in scheduler.timesteps:
            level = self._level(timestep)
            yield level, latents
            toward = conditioning(level) if callable(conditioning) else conditioning
            away = negative(level) if callable(negative) else negative or empty
            predicted = self.guided(latents, level, toward, sampling.guidance_scale, away)
            latents = scheduler.step(predicted, timestep, latents).prev_sample
        yield 0.0, latents

    def sample(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling | None = None
    ) -> Tensor:
        """Clean latents for n prompts and n seeds, drawn as one batch."""
        sampling = sampling or self.profile.sampling
        noise = self.initial_noise(seeds, sampling)
        states = self.trajectory(self.encode_prompts(prompts), noise, sampling)
        [(_, latents)] = deque(states, maxlen=1)  # the last one
        return latents

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        advance: Callable[[int], object] | None = None,
    ) -> list[Image.Image]:
        """Pictures for n prompts and n seeds, in batches of `sampling.batch_size`."""
        sampling = sampling or self.profile.sampling
        drawn: list[Image.Image] = []
        for start in range(0, len(prompts), sampling.batch_size):
            part = slice(start, start + sampling.batch_size)
            drawn += self.decode(self.sample(prompts[part], seeds[part], sampling))
            if advance:
                advance(len(drawn) - start)
        return drawn

    @abstractmethod
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of clean latents."""

    @abstractmethod
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Clean latents of pictures of one size (the posterior's mode)."""


def fastest(device: torch.device) -> Precision:
    """bfloat16 where the device multiplies in it natively."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "own"
    native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "own"


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pictures of decoded pixels in [-1, 1], (n, 3, height, width)."""
    array = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in array.permute(0, 2, 3, 1).cpu().numpy()]


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as float32 in [-1, 1], (n, 3, height, width)."""
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
